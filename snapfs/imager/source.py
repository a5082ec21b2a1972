"""Where the imager reads: the snapshot view of a mounted image, or an image that nobody uses.

Rules
- A source is one cut: whatever is read belongs to the same instant, or an error says why it no longer can.
- An image that is not mounted is locked while it is read, and must be the same file, unchanged, at the end.
- Free blocks read as zeros from both, so that a backup never holds what was deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from bitarray import bitarray
from bitarray.util import ones

from snapfs.control import request
from snapfs.errors import NotMountedError, SnapfsError, SnapshotLostError
from snapfs.imager.extents import Extent, free_blocks_in, plan
from snapfs.imager.sparse import hole_cells
from snapfs.options import DEFAULT_BLOCK_BYTES
from snapfs.system.discovery import find_store
from snapfs.system.image_lock import lock_image
from snapfs.system.image_probe import check_image_size, check_image_unused
from snapfs.usedmap.scan import scan

_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_MAP_LOOK_S: Final = 0.05
_MAP_TIMEOUT_S: Final = 600.0
_RELEASE_TIMEOUT_S: Final = 120.0
_ZEROS: Final = bytes(1 << 20)
_LOST_STATES: Final = ("overflowed", "damaged", "lost")


class Source(Protocol):
    """One cut of an image, open for reading. `identity` is the same only for the same cut."""

    path: Path
    size_bytes: int
    block_bytes: int
    used_bytes: int
    facts: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]: ...

    def extents(self) -> list[Extent]:
        """What is to be imaged."""

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view`; SnapfsError says why that is no longer possible."""

    def release(self, offset: int, length: int) -> None:
        """The range is durably somewhere else; nothing need be kept for it any more."""

    def check(self) -> None:
        """SnapfsError when what was read may not all be of one cut."""

    def buffer_bytes(self) -> int | None:
        """What the side buffer holds now; None without one."""

    def close(self) -> None: ...


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The source that `path` (LIVE, SNAP, IMAGE) names."""
    try:
        store: Path | None = find_store(path)
    except NotMountedError:
        store = None
    source: Source = ImageSource(path) if store is None else SnapshotSource(store)
    try:
        yield source
    finally:
        source.close()


class ImageSource:
    """An image file or block device that nobody uses, read as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        _check_kind(path)
        check_image_unused(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SnapfsError(f"{path} cannot be opened: {error.strerror}; run as its owner.", path=path) from error
        try:
            lock_image(self._fd)
            self._status = os.fstat(self._fd)
            self._measure()
        except BaseException:
            os.close(self._fd)
            raise

    def _measure(self) -> None:
        is_device = stat.S_ISBLK(self._status.st_mode)
        self.size_bytes = _device_bytes(self._fd) if is_device else self._status.st_size
        check_image_size(self.path, self.size_bytes)
        self.block_bytes = DEFAULT_BLOCK_BYTES
        sector_bytes = _sector_bytes(self._fd) if is_device else None
        image_map = scan(self._fd, self.size_bytes, self.block_bytes, sector_bytes=sector_bytes)
        self._used = image_map.used
        self.used_bytes = _used_bytes(self._used, self.block_bytes, self.size_bytes)
        regions = [region.facts() for region in image_map.regions]
        self.facts = {"image": str(self.path), "cut": None, "regions": regions}
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def identity(self) -> dict[str, Any]:
        status = self._status
        return {"image": [status.st_dev, status.st_ino, status.st_rdev, status.st_mtime_ns, self.size_bytes]}

    def extents(self) -> list[Extent]:
        holes = None if stat.S_ISBLK(self._status.st_mode) else hole_cells(self._fd, self.size_bytes)
        return plan(self._used, self.block_bytes, self.size_bytes, holes)

    def read_into(self, view: memoryview, offset: int) -> None:
        try:
            _read_whole(self._fd, view, offset)
        except OSError as error:
            raise SnapfsError(
                f"{self.path} cannot be read at {offset}: {error.strerror}; check the disk it is on.", path=self.path
            ) from error
        # What was read once is not needed again, and would push out of memory what others need.
        os.posix_fadvise(self._fd, offset, len(view), os.POSIX_FADV_DONTNEED)
        _clear_free(view, offset, self._used, self.block_bytes)

    def release(self, offset: int, length: int) -> None:
        raise AssertionError("an image that is not mounted owes nothing")

    def check(self) -> None:
        status = os.fstat(self._fd)
        if (status.st_mtime_ns, status.st_size) != (self._status.st_mtime_ns, self._status.st_size):
            raise SnapfsError(
                f"{self.path} was changed while it was read, so the backup is worthless; "
                "mount it with snapfs and back up the snapshot.",
                path=self.path,
            )

    def buffer_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        os.close(self._fd)


class SnapshotSource:
    """The snapshot view of a mounted image."""

    def __init__(self, store: Path) -> None:
        self._store = store
        status = request(store, "status")["status"]
        self._snapshot = status["snapshot"]
        self._image, self._pid = Path(status["image"]), int(status["pid"])
        self.path = Path(status["snap"]) / Path(status["image"]).name
        self.size_bytes, self.block_bytes = status["image_bytes"], status["block_bytes"]
        _check_state(self._snapshot, self.path)
        image_map = self._await_map()
        self._used = _read_used(image_map, -(-self.size_bytes // self.block_bytes))
        self.used_bytes = _used_bytes(self._used, self.block_bytes, self.size_bytes)
        names = ("id", "taken_at", "freeze_ms")
        cut = {name: self._snapshot[name] for name in names if name in self._snapshot}
        self.facts = {"image": status["image"], "cut": cut, "regions": image_map.get("regions", [])}
        self._fd = _open_view(self.path)

    def _await_map(self) -> dict[str, Any]:
        """The answer about the map, once it is known; it is computed within seconds of a cut."""
        until = time.monotonic() + _MAP_TIMEOUT_S
        while True:
            answer = request(self._store, "map")
            if answer["state"] != "computing":
                return answer
            if time.monotonic() > until:
                raise SnapfsError(f"The map of {self.path} does not come to an end; see the log of its store.")
            time.sleep(_MAP_LOOK_S)

    @property
    def identity(self) -> dict[str, Any]:
        return {"cut": self._snapshot["id"], "image_bytes": self.size_bytes}

    def extents(self) -> list[Extent]:
        return plan(self._used, self.block_bytes, self.size_bytes, self._holes())

    def _holes(self) -> bitarray | None:
        """Cells of the image that are holes now: nobody has written there since the cut, for only snapfs writes to
        the image, and it makes no holes. So they were zeros at the cut, and need not be read."""
        try:
            fd = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return hole_cells(fd, self.size_bytes) if _is_open_in(self._pid, fd) else None
        finally:
            os.close(fd)

    def read_into(self, view: memoryview, offset: int) -> None:
        try:
            _read_whole(self._fd, view, offset)
        except OSError as error:
            raise self._why(error) from error
        # What somebody read of the view before the map was known may still be in the page cache.
        _clear_free(view, offset, self._used, self.block_bytes)

    def release(self, offset: int, length: int) -> None:
        request(self._store, "release", _RELEASE_TIMEOUT_S, id=self._snapshot["id"], offset=offset, length=length)

    def check(self) -> None:
        try:
            snapshot = request(self._store, "status")["status"]["snapshot"]
        except NotMountedError as error:
            raise self._killed() from error
        if snapshot["id"] != self._snapshot["id"]:
            raise self._newer_cut()
        _check_state(snapshot, self.path)

    def buffer_bytes(self) -> int | None:
        try:
            stored: int = request(self._store, "status")["status"]["buffer"]["stored_bytes"]
        except SnapfsError:
            return None
        return stored

    def close(self) -> None:
        # A dead server answers a close with an error, and there is nothing to lose.
        with contextlib.suppress(OSError):
            os.close(self._fd)

    # --- what an errno of the view means ---------------------------------------------------------------------

    def _why(self, error: OSError) -> SnapfsError:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV):
            return self._killed()
        try:
            # Says more than an errno where the snapshot as a whole is gone.
            self.check()
        except SnapfsError as reason:
            return reason
        if error.errno == errno.ESTALE:
            return self._newer_cut()
        if error.errno == errno.ENODATA:
            return SnapfsError(
                f"Parts of {self.path} were released already, so it cannot be read as a whole any more; "
                "take a new cut, or go on with --resume where that backup was interrupted.",
                path=self.path,
            )
        return SnapshotLostError(
            f"{self.path} cannot be read: {error.strerror}; see the log in {self._store}, and take a new cut.",
            path=self.path,
        )

    def _killed(self) -> SnapfsError:
        return SnapfsError(
            f"The snapfs of {self.path} was killed; mount the image again and go on with --resume.", path=self.path
        )

    def _newer_cut(self) -> SnapfsError:
        return SnapfsError(
            f"A newer cut has replaced the snapshot that {self.path} showed; begin the backup again.", path=self.path
        )


def _check_state(snapshot: dict[str, Any], path: Path) -> None:
    if snapshot["state"] in _LOST_STATES:
        raise SnapshotLostError(
            f"The snapshot {path} is {snapshot['state']}, so there is nothing whole to read; "
            "take a new cut (snapfs snapshot).",
            path=path,
        )


def _check_kind(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SnapfsError(f"{path}: {error.strerror}; name LIVE, SNAP or an image.", path=path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise SnapfsError(
            f"{path} is neither mounted with snapfs nor an image; name LIVE, SNAP, a file or a device.", path=path
        )


def _is_open_in(pid: int, fd: int) -> bool:
    """Whether the process has the regular file of `fd` open: a name may lead to another file meanwhile."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return False
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), status):
                    return True
    return False


def _open_view(path: Path) -> int:
    """Past the page cache: it would fill with what is read once, and its pages cost more than the request."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        raise SnapfsError(f"{path} cannot be opened: {error.strerror}; ask as the user who mounted it.") from error


def _read_used(image_map: dict[str, Any], block_count: int) -> bitarray:
    if image_map["state"] != "ready":
        return ones(block_count, "little")
    used = bitarray(endian="little")
    used.frombytes(Path(image_map["free_file"]).read_bytes())
    if len(used) < block_count:
        raise SnapfsError(f"The map {image_map['free_file']} is too short; take a new cut.")
    del used[block_count:]
    used.invert()
    return used


def _used_bytes(used: bitarray, block_bytes: int, size_bytes: int) -> int:
    past_the_end = len(used) * block_bytes - size_bytes
    return used.count() * block_bytes - (past_the_end if used[-1] else 0)


def _clear_free(view: memoryview, offset: int, used: bitarray, block_bytes: int) -> None:
    """Make the free blocks in `view`, which is at `offset` of the image, zeros."""
    for start, stop in free_blocks_in(used, block_bytes, offset, len(view)):
        for at in range(start, stop, len(_ZEROS)):
            end = min(at + len(_ZEROS), stop)
            view[at:end] = _ZEROS[: end - at]


def _read_whole(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise OSError(errno.EIO, "it ends too early")
        done += count


def _device_bytes(fd: int) -> int:
    return int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])


def _sector_bytes(fd: int) -> int:
    return int(struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])
