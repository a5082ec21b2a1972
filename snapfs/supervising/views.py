"""The views: which of them are gone, what that means for the other one, and that nothing stays mounted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from snapfs.client import request
from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.protocol import StopMap, deadline_in
from snapfs.servers.instance import LIVE, SNAPSHOT, Instance
from snapfs.supervising.running import Running
from snapfs.system.holders import describe, holders_of_mount, unmount_unused
from snapfs.system.mounts import SNAPFS_TYPE, find_mount
from snapfs.system.view_mounts import ViewId, mounts_of, unmount_all

_LOG = logging.getLogger(__name__)
_STOP_MAP_TIMEOUT_S: Final = 30.0


class Views:
    """`on_last_gone` is called when nobody sees anything any more."""

    def __init__(self, instance: Instance, running: Running, on_last_gone: Callable[[], None]) -> None:
        self._instance, self._running, self._on_last_gone = instance, running, on_last_gone
        self._gone: set[str] = set()

    def note_gone(self, name: str) -> None:
        """A view was unmounted: the other follows, unless somebody uses it."""
        self._gone.add(name)
        other = SNAPSHOT if name == LIVE else LIVE
        if other in self._gone or self._running.get(other) is None:
            self._on_last_gone()
            return
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, StopMap(deadline_s=deadline_in(_STOP_MAP_TIMEOUT_S)))
        try:
            unmount_unused(self._instance.places.view(other))
        except BusyError as error:
            holders = ", ".join(error.holders) or "nobody knows by whom"
            point = self._instance.point(other)
            _LOG.warning("%s is in use (%s) and goes on alone until it is unmounted", point, holders)
        except NotMountedError:
            self._gone.add(other)
            self._on_last_gone()

    def clear_snapshot(self) -> bool:
        """Unmount what the dead snapshot server left; False when there is nothing to be shown again."""
        view = self._instance.places.view(SNAPSHOT)
        if SNAPSHOT in self._gone:
            return False
        if view is None:
            return True  # it ended before it had mounted anything
        if not mounts_of(view):
            self.note_gone(SNAPSHOT)
            return False
        self._instance.snap = self._instance.point(SNAPSHOT)
        for error in unmount_all(view, lazy=True):
            _LOG.error("the view of the snapshot server that died cannot be unmounted: %s", error.sentence)
        self._instance.places.note(SNAPSHOT, None)
        return True

    def unmount_anyway(self) -> None:
        """Both, whoever uses them."""
        for view in (SNAPSHOT, LIVE):
            shown = self._instance.places.view(view)
            if shown is None and view not in self._gone:
                # Its server may have failed between mounting and noting it: nobody else mounts there meanwhile.
                shown = _view_at(self._instance.point(view))
            _unmount_anyway(shown)


def _view_at(point: Path) -> ViewId | None:
    mount = find_mount(point)
    is_left = mount is not None and mount.mount_point == point and mount.fstype == SNAPFS_TYPE
    return ViewId.of(mount) if mount is not None and is_left else None


def _unmount_anyway(view: ViewId | None) -> None:
    """Unmount a view wherever it is; when it is busy, at least let nobody new in."""
    for error in unmount_all(view):
        if isinstance(error, BusyError):
            holders = [holder for mount in mounts_of(view)[:1] for holder in holders_of_mount(mount)]
            _LOG.warning("%s is still in use: %s", error.path, describe(holders))
        else:
            _LOG.warning("%s", error.sentence)
    unmount_all(view, lazy=True)
