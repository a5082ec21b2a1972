"""A snapshot of a mounted image as the source of a backup. Rules: see `source`."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bitarray import bitarray
from bitarray.util import ones

from cow import Files, Image
from snapfs.ahead import read_ahead
from snapfs.chosen import file_of, listed_now, read_chosen
from snapfs.client import request
from snapfs.destination.access import Access
from snapfs.errors import NotMountedError, SnapfsError, SnapshotLostError
from snapfs.imager.extents import Extent, clear_free, plan, used_bytes, used_cells
from snapfs.imager.medium import PAGE_BYTES
from snapfs.imager.sparse import hole_cells
from snapfs.imager.unread import UnreadableError
from snapfs.noted import noted_between
from snapfs.protocol import GetMap, GetStatus, MapGiven, Release, deadline_in
from snapfs.system.mounts import DEAD_VIEW_ERRORS
from snapfs.system.shown_files import ShownFile
from snapfs.system.store_files import read_store_file
from snapfs.system.stores import owner_of_store
from snapfs.usedmap.domain import set_extents
from snapfs.usedmap.result import ImageMap
from snapfs.whole import read_whole

_MAP_LOOK_S: Final = 0.02
_MAP_TIMEOUT_S: Final = 600.0
_RELEASE_TIMEOUT_S: Final = 120.0
# In the middle of a backup a busy server is waited for.
_PATIENCE_S: Final = 30.0
_LOST_STATES: Final = frozenset({"overflowed", "damaged", "lost"})


class LostBlocksError(UnreadableError, SnapshotLostError):
    """Blocks of the snapshot are lost, or the disk under them is bad."""


class SnapshotSource:
    """The snapshot of a mounted image that is called `name`; None: the newest."""

    def __init__(self, store: Path, name: str | None = None, *, takes_damaged: bool = False) -> None:
        self._store = store
        self._lost_states = _LOST_STATES - {"damaged"} if takes_damaged else _LOST_STATES
        status = read_chosen(store, name)
        self._snapshot = status["snapshot"]
        self._image, self._pid = Path(status["image"]), int(status["pid"])
        file = file_of(status)
        self.path = file.path
        self.size_bytes, self.block_bytes = status["image_bytes"], status["block_bytes"]
        self._check_state(self._snapshot)
        image_map = self._await_map()
        self.used = _read_used(store, image_map, -(-self.size_bytes // self.block_bytes))
        self.used_bytes = used_bytes(self.used, self.block_bytes, self.size_bytes)
        names = ("id", "taken_at", "freeze_ms")
        cut = {name: self._snapshot[name] for name in names if name in self._snapshot}
        self.facts = {"image": status["image"], "cut": cut, "regions": list(image_map.regions)}
        file.check(store)
        self._fd = self._open(file)
        self.access = Access.of(self._fd).and_of(self._image)

    def _open(self, file: ShownFile) -> int:
        """Past the page cache: it would fill with what is read once, and its pages cost more than the request."""
        try:
            return file.open(os.O_DIRECT)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self.check()
                raise SnapfsError(
                    f"{file.path} does not show that snapshot yet; see snapfs status, and try again.", path=file.path
                ) from error
            raise SnapfsError(
                f"{file.path} cannot be opened: {error.strerror}; ask as the user who mounted it.", path=file.path
            ) from error

    def _open_image(self) -> int | None:
        """None: it may not be looked at. What another user's server calls its image root does not open."""
        if owner_of_store(self._store) != os.geteuid():
            return None
        try:
            fd = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        if _is_open_in(self._pid, fd):
            return fd
        os.close(fd)
        return None

    def _await_map(self) -> MapGiven:
        """The answer about the map, once it is known; it is computed within seconds of a cut."""
        until = time.monotonic() + _MAP_TIMEOUT_S
        while True:
            try:
                answer = request(self._store, GetMap(id=self._snapshot["id"]))
            except SnapfsError:
                # Says more when that is why.
                self.check()
                raise
            if answer.state != "computing":
                return answer
            if time.monotonic() > until:
                raise SnapfsError(f"The map of {self.path} does not come to an end; see the log of its store.")
            time.sleep(_MAP_LOOK_S)

    @property
    def fd(self) -> int:
        """Open on its file, past the page cache."""
        return self._fd

    def used_extents(self) -> Iterator[tuple[int, int]]:
        """`(start, length)` in bytes of what is used, in order."""
        return set_extents(ImageMap(self.block_bytes, self.size_bytes, self.used, []))

    @property
    def identity(self) -> dict[str, Any]:
        return {"cut": self._snapshot["id"], "image_bytes": self.size_bytes}

    def extents(self) -> list[Extent]:
        return plan(self.used, self.block_bytes, self.size_bytes, self.holes())

    def holes(self) -> bitarray | None:
        """Cells of the image that are holes now, and in which nobody has written or discarded anything since the
        cut. So they were zeros at the cut, and need not be read."""
        if (fd := self._open_image()) is None:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            found = hole_cells(Image(fd, self.size_bytes, Files()))
        finally:
            os.close(fd)
        # In this order: what is discarded is noted before the image has the hole.
        try:
            written = noted_between(self._store, self._snapshot["id"], None, self.path)
        except SnapfsError:
            return None
        assert written is not None, "now is no older than a snapshot"
        return found & ~used_cells(written.used, self.block_bytes, self.size_bytes)

    def read_into(self, view: memoryview, offset: int) -> None:
        try:
            read_whole(self._fd, view, offset)
        except OSError as error:
            raise self._why(error, offset) from error
        # What somebody read of the view before the map was known may still be in the page cache.
        clear_free(view, offset, self.used, self.block_bytes)

    def will_read(self, offset: int, length: int) -> None:
        """Most of it is still in the image, where the snapshot server will look for it."""
        if self._hints_fd is not None:
            read_ahead(self._hints_fd, offset, length)

    @functools.cached_property
    def _hints_fd(self) -> int | None:
        return self._open_image()

    def reread_into(self, view: memoryview, offset: int) -> None:
        self.read_into(view, offset)

    def reread_unit_bytes(self) -> int:
        """A lost block is lost as a whole; of one that is still in the image a page may be."""
        unit_bytes: int = min(self.block_bytes, PAGE_BYTES)
        return unit_bytes

    def release(self, offset: int, length: int) -> None:
        message = Release(
            id=self._snapshot["id"],
            offset=offset,
            length=length,
            deadline_s=deadline_in(_RELEASE_TIMEOUT_S),
        )
        request(self._store, message)

    def check(self) -> None:
        try:
            snapshot = listed_now(self._store, self._snapshot["id"], _PATIENCE_S)
        except NotMountedError as error:
            raise self._killed() from error
        if snapshot is None:
            raise self._ended()
        self._check_state(snapshot)

    def buffer_bytes(self) -> int | None:
        try:
            stored: int = request(self._store, GetStatus(), _PATIENCE_S).status["buffer"]["stored_bytes"]
        except SnapfsError:
            return None
        return stored

    def close(self) -> None:
        # A dead server answers a close with an error, and there is nothing to lose.
        with contextlib.suppress(OSError):
            os.close(self._fd)
        if (hints_fd := self.__dict__.get("_hints_fd")) is not None:
            os.close(hints_fd)

    # --- what an errno of the view means ---------------------------------------------------------------------

    def _why(self, error: OSError, offset: int) -> SnapfsError:
        if error.errno in (*DEAD_VIEW_ERRORS, errno.ENODEV):
            return self._killed()
        try:
            # Says more than an errno where the snapshot as a whole is gone.
            self.check()
        except SnapfsError as reason:
            return reason
        if error.errno == errno.ESTALE:
            return self._ended()
        if error.errno == errno.ENODATA:
            return SnapfsError(
                f"Parts of {self.path} were released already, so it cannot be read as a whole any more; "
                "take a new cut, or go on with --resume where that backup was interrupted.",
                path=self.path,
            )
        return LostBlocksError(
            f"{self.path} cannot be read at {offset}: {error.strerror}; see the log in its store, and take a new "
            "cut, or go on past what is bad with --on-read-error skip.",
            path=self.path,
        )

    def _killed(self) -> SnapfsError:
        return SnapfsError(
            f"The snapfs of {self.path} was killed; mount the image again and go on with --resume.", path=self.path
        )

    def _ended(self) -> SnapfsError:
        if name := self._snapshot["name"]:
            return SnapfsError(
                f"The snapshot {name} of {self._image} was deleted meanwhile; make a backup of another one "
                "(snapfs list).",
                path=self.path,
            )
        return SnapfsError(
            f"A newer cut has replaced the snapshot that {self.path} showed; begin the backup again.", path=self.path
        )

    def _check_state(self, snapshot: dict[str, Any]) -> None:
        state = snapshot["state"]
        if state not in self._lost_states:
            return
        way_out = "take a new cut (snapfs snapshot)"
        if state == "damaged":
            way_out += ", or read what is whole with --on-read-error skip"
        raise SnapshotLostError(
            f"The snapshot {self.path} is {state}, so there is nothing whole to read; {way_out}.", path=self.path
        )


def _is_open_in(pid: int, fd: int) -> bool:
    """Whether the process has the file of `fd` open: a name may lead to another one meanwhile."""
    status = os.fstat(fd)
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), status):
                    return True
    return False


def _read_used(store: Path, image_map: MapGiven, block_count: int) -> bitarray:
    if image_map.free_file is None:
        return ones(block_count, "little")
    used = bitarray(endian="little")
    used.frombytes(read_store_file(store, image_map.free_file))
    if len(used) < block_count:
        raise SnapfsError(f"The map {image_map.free_file} is too short; take a new cut.")
    del used[block_count:]
    used.invert()
    return used
