"""When the parts of the image were changed, as the live server notes it for each cut: see `cow.live.dating`.

A cut without a table is shown as chunks by nobody, and costs those who copy them a full copy the next time; nothing
else depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from cow import Cut, Protect, finish_times, follow_times, resume_times
from snapfs.servers.instance import Instance

_LOG = logging.getLogger(__name__)


class Dating:
    """In threads, one thing at a time: each table is made from the one before."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._turn = trio.Lock()

    async def resume(self) -> None:
        """At the start."""
        await self._do(resume_times, self._instance.store)

    async def follow(self, cut: Cut, before: Cut) -> None:
        """`cut` came after `before`; both are held."""
        store = self._instance.store
        await self._do(follow_times, store, cut, before)
        if store.header.protect is Protect.ALL:
            await self.finish(cut)

    async def finish(self, cut: Cut) -> None:
        """The map of `cut`, which is held, is known, or there will be none."""
        await self._do(finish_times, self._instance.store, cut)

    async def _do(self, step: Callable[..., None], *arguments: object) -> None:
        async with self._turn:
            try:
                await trio.to_thread.run_sync(step, *arguments)
            except OSError as error:
                reason = error.strerror or str(error)
                # No more than that, and whoever looks for chunks is told.
                _LOG.info("nobody will know what has changed since the snapshot before: %s", reason)
