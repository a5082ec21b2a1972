"""Noticing what somebody does to the image's file: when asked, at a cut, and now and then while writes go on."""

from __future__ import annotations

import logging
import time
from typing import Final

from snapfs.servers.instance import Instance
from snapfs.system.image_state import IN_PLACE, describe_image_state, image_state

_LOG = logging.getLogger(__name__)
_LOOK_NS: Final = 1_000_000_000


class ImageWatch:
    """`look` in one thread at a time; each new state is logged once."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._state, self._looked_ns = IN_PLACE, 0

    def look(self) -> str:
        """One of the words of `image_state`."""
        image, path = self._instance.image, self._instance.image_path
        image.look()
        state = image_state(image.fd, path, image.size_bytes, image.shortest_bytes)
        if state != self._state:
            self._state = state
            if state != IN_PLACE:
                _LOG.error("%s", describe_image_state(state, str(path)))
        return state

    def look_sometimes(self) -> None:
        """The same, when the last look was a while ago."""
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns > _LOOK_NS:
            self._looked_ns = now_ns
            self.look()
