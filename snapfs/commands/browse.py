"""`snapfs browse`: the files of a snapshot, or of a backup, on a directory, read-only.

    the file of the snapshot  ->  its regions  ->  a loop device and a mount for each filesystem

Rules:
- All or nothing: whatever goes wrong or interrupts it takes the mounts back that were made, and the loop devices go
  with them. A filesystem that cannot be mounted is told of, and is an error only when there is no other.
- Nothing is written down anywhere: what ends it is found by what is mounted (see `system.browses`).
- All of it shows one cut, that of the file which was opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from snapfs.chosen import file_of, read_chosen
from snapfs.commands.browse_filesystem import (
    FLAGS,
    NotShownError,
    Shown,
    cannot_mount,
    show_filesystem,
    why_not_shown,
)
from snapfs.errors import PermissionDeniedError, SnapfsError, SnapshotLostError
from snapfs.system import libc
from snapfs.system.block_ioctl import size_bytes_of
from snapfs.system.browses import BROWSE_SOURCE
from snapfs.system.discovery import find_store
from snapfs.system.file_kinds import check_readable
from snapfs.system.flock import lock_in_time
from snapfs.system.mounts import canonical_path
from snapfs.system.place import check_empty_directory
from snapfs.system.shown_files import ShownFile
from snapfs.system.signals import Signals
from snapfs.usedmap.regions import find_regions
from snapfs.usedmap.result import Region, partition_name

_READABLE_STATES = ("active", "damaged")
_TABLE_KINDS = ("dos", "gpt")
# One that has ended leaves the directory to the next one in no time.
_TURN_S = 1.0
_MAX_NAMED = 3  # more would make a sentence that nobody reads


@dataclass(frozen=True)
class BrowsedSnapshot:
    """Which snapshot of which image, in which file; `look` is how to look at what is in that. Of a backup `name` is
    its own, and `id` None when the image was not mounted."""

    file: Path
    look: str
    image: str
    id: str | None
    taken_at: str
    name: str
    is_backup: bool = False


@dataclass(frozen=True)
class ShownFiles:
    """A filesystem, and where its files are now."""

    region: Region
    mount_point: Path
    mounted: Shown


@dataclass(frozen=True)
class NotShown:
    """What has no files to be seen, with the reason as a clause; `is_refused` when it is of a kind that has them."""

    region: Region
    reason: str
    is_refused: bool


@dataclass(frozen=True)
class Browsed:
    """What is on `directory` now, of which snapshot."""

    directory: Path
    snapshot: BrowsedSnapshot
    shown: list[ShownFiles]
    not_shown: list[NotShown]


def check_root(what: str) -> None:
    """PermissionDeniedError for who may not mount."""
    if os.geteuid() != 0:
        raise PermissionDeniedError(f"Only root may {what} what is in a snapshot; run it as root (sudo).")


def browse(path: Path, name: str | None, directory: Path) -> Browsed:
    """Show the files of that snapshot of the instance, the newest without a `name`, on `directory`, an empty one.
    SnapfsError: nothing is mounted."""
    check_root("mount")
    store = find_store(path)
    snapshot, shown = _chosen_snapshot(store, name)
    check_empty_directory("DIR", directory)
    fd = _open_file(shown, store)
    try:
        with Signals.handled() as signals, taken(directory):
            return show_files(fd, snapshot, directory, signals)
    finally:
        # Of a server that has died meanwhile there is nothing to lose.
        with suppress(OSError):
            os.close(fd)


def show_files(fd: int, snapshot: BrowsedSnapshot, directory: Path, signals: Signals) -> Browsed:
    """Those in the file `fd` of the snapshot, on a directory that is `taken`. SnapfsError: nothing is mounted."""
    # Somebody else may have shown something there just before.
    check_empty_directory("DIR", directory)
    return _Browsing(fd, snapshot, canonical_path(directory), signals).run()


@contextmanager
def taken(directory: Path) -> Iterator[None]:
    """Within this, and as long as a process that was forked in it lasts, no other `browse` shows anything there.
    SnapfsError: one is just about to."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not await_turn(fd, _TURN_S):
            raise SnapfsError(
                f"DIR {directory} is being used by another snapfs browse; give another directory.", path=directory
            )
        yield
    finally:
        os.close(fd)


def await_turn(fd: int, timeout_s: float) -> bool:
    """Whether nobody else has taken the directory that is open as `fd`, in time; then it is ours."""
    return lock_in_time(fd, fcntl.LOCK_EX, timeout_s)


def _chosen_snapshot(store: Path, name: str | None) -> tuple[BrowsedSnapshot, ShownFile]:
    """Which one is shown, of those that the instance has, and its file."""
    status = read_chosen(store, name)
    facts, shown = status["snapshot"], file_of(status)
    file = shown.path
    if facts["state"] not in _READABLE_STATES:
        raise SnapshotLostError(
            f"The snapshot {file} is {facts['state']}, so there is nothing whole to see; take a new cut "
            "(snapfs snapshot).",
            path=file,
        )
    name = str(facts["name"])
    look = f"snapfs map {shown.view}" + (f" --snapshot {name}" if name else "")
    snapshot = BrowsedSnapshot(file, look, str(status["image"]), str(facts["id"]), str(facts["taken_at"]), name)
    return snapshot, shown


def _open_file(shown: ShownFile, store: Path) -> int:
    shown.check(store)
    file = shown.path
    try:
        fd = shown.open(os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise SnapfsError(
                f"{file} does not show that snapshot any more, or not yet; see snapfs list, and try again.", path=file
            ) from error
        raise SnapfsError(
            f"{file} cannot be opened by root: {error.strerror}; mount the image as root, or with -o allow_other.",
            path=file,
        ) from error
    try:
        check_readable(file, os.fstat(fd).st_mode, "name LIVE or SNAP of another instance")
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Browsing:
    def __init__(self, fd: int, snapshot: BrowsedSnapshot, directory: Path, signals: Signals) -> None:
        self._fd, self._snapshot, self._directory, self._signals = fd, snapshot, directory, signals
        self._size_bytes = size_bytes_of(fd)
        self._shown: list[ShownFiles] = []
        self._not_shown: list[NotShown] = []
        self._has_top = False

    def run(self) -> Browsed:
        regions = find_regions(self._fd, self._size_bytes)
        partitions = [region for region in regions if region.partition_number is not None]
        if regions[0].kind in _TABLE_KINDS:
            self._show_partitions(partitions)
        else:
            with self._all_or_nothing():
                self._show(regions[0], self._directory)
        if not self._shown:
            raise self._nothing()
        return Browsed(self._directory, self._snapshot, self._shown, self._not_shown)

    def _show_partitions(self, partitions: list[Region]) -> None:
        """Each in a directory of its own, all of them in a small filesystem that goes with them."""
        with self._all_or_nothing():
            self._mount_top(FLAGS & ~libc.MS_RDONLY)
            for region in partitions:
                self._signals.check()
                point = self._directory / partition_name(region)
                point.mkdir()
                if not self._show(region, point):
                    point.rmdir()
            self._mount_top(FLAGS | libc.MS_REMOUNT)

    def _mount_top(self, flags: int) -> None:
        try:
            libc.mount(BROWSE_SOURCE, self._directory, "tmpfs", flags, "mode=755")
        except OSError as error:
            raise cannot_mount(self._directory, error) from error
        self._has_top = True

    def _show(self, region: Region, point: Path) -> bool:
        reason = why_not_shown(region)
        if reason:
            self._not_shown.append(NotShown(region, reason, is_refused=False))
            return False
        try:
            shown = show_filesystem(self._fd, self._size_bytes, region, point)
        except NotShownError as error:
            self._not_shown.append(NotShown(region, error.reason, is_refused=True))
            return False
        self._shown.append(ShownFiles(region, point, shown))
        return True

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What is mounted inside on the directory goes again, with all in it, unless something is to be seen."""
        with self._signals.deferred():
            try:
                yield
                self._signals.check()
            except BaseException:
                self._undo()
                raise
            if not self._shown:
                self._undo()

    def _undo(self) -> None:
        if not self._has_top and not self._shown:
            return
        with suppress(OSError):  # somebody else was faster
            libc.umount2(self._directory, libc.UMOUNT_NOFOLLOW | libc.MNT_DETACH)

    def _nothing(self) -> SnapfsError:
        reasons = [f"{_in_sentence(one.region)}: {one.reason}" for one in self._not_shown[:_MAX_NAMED]]
        more = len(self._not_shown) - len(reasons)
        why = ", ".join(reasons) + (f" and {more} more" if more else "") or "its partition table is empty"
        snapshot = self._snapshot
        return SnapfsError(
            f"No files of {snapshot.file} can be shown ({why}); look at what is in it with {snapshot.look}.",
            path=snapshot.file,
        )


def _in_sentence(region: Region) -> str:
    return "the image" if region.partition_number is None else partition_name(region)
