"""What a cut freezes, in order, and what it does not, with the reasons; everything is open before the window.

There is a plan for each image that is cut in the same instant. A filesystem on several of them is in the plan of
each, and frozen once.

Opening may wait for a filesystem, so nothing is left to open once one of them is frozen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from snapfs.cut_facts import Writer
from snapfs.errors import SnapfsError
from snapfs.freezing.fsfreeze import freeze, never_frozen, thaw
from snapfs.freezing.guest_agent import GuestAgent
from snapfs.freezing.live_filesystems import LiveFilesystem, find_live_filesystems, open_filesystem
from snapfs.freezing.live_parts import Part
from snapfs.freezing.live_writers import WriterSight, look_for_writers, writers_at_cut
from snapfs.protocol import CutTaken
from snapfs.system import libc
from snapfs.system.mounts import DEAD_VIEW_ERRORS

# Each round leaves less to the next; a freeze writes what is left while its users wait.
_SYNC_ROUNDS, _SYNC_ENOUGH_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class NotFrozen:
    """A filesystem that is mounted and was not frozen at the cut. `offset` as in LiveFilesystem."""

    mount_point: str
    reason: str
    offset: int | None
    is_nested: bool = False


class Target(Protocol):
    """Something to freeze. `key` is the same in the plans of all images that it has to do with."""

    name: str
    fstype: str
    offset: int | None
    is_nested: bool

    @property
    def key(self) -> Hashable: ...

    def freeze(self, timeout_s: float) -> None:
        """OSError: it is not frozen."""
        ...

    def thaw(self) -> bool:
        """False when it was not frozen any more; OSError when it may still be."""
        ...


@dataclass(slots=True)
class _MountedTarget:
    key: Hashable
    name: str
    fstype: str
    offset: int | None
    is_nested: bool
    fd: int

    def freeze(self, timeout_s: float) -> None:
        freeze(self.fd)

    def thaw(self) -> bool:
        return thaw(self.fd)


@dataclass(slots=True)
class GuestTarget:
    """Its filesystems are somewhere in the image; where is known to the guest alone."""

    agent: GuestAgent
    name: str
    fstype: str = "the guest"
    offset: int | None = None
    is_nested: bool = True

    @property
    def key(self) -> Hashable:
        return self.agent.path

    def freeze(self, timeout_s: float) -> None:
        self.agent.freeze(timeout_s)

    def thaw(self) -> bool:
        return self.agent.thaw()


@dataclass(slots=True)
class Plan:
    """What is to be frozen, in order, and what is not, with the reasons; everything is open.

    `live_fd` is of the name of the live file alone (O_PATH), `written_fd` of what is written to it.
    """

    live_file: Path
    live_fd: int
    written_fd: int
    filesystems: list[LiveFilesystem] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    not_frozen: list[NotFrozen] = field(default_factory=list)
    sync_fds: list[int] = field(default_factory=list)
    writers_before: WriterSight = field(default_factory=WriterSight)
    # What the watchdog must not hold open: others wait for their end.
    unneeded_fds: list[int] = field(default_factory=list)

    def sync(self) -> None:
        """Write back what the filesystems and the live view hold."""
        for _ in range(_SYNC_ROUNDS):
            started = time.monotonic()
            for fd in self.sync_fds:
                with suppress(OSError):  # what a broken filesystem has lost is no matter of the cut
                    libc.syncfs(fd)
            self.sync_live()
            if time.monotonic() - started < _SYNC_ENOUGH_S:
                return

    def sync_live(self) -> None:
        """Have the live server get all writes that the kernel still holds back. OSError: it has died."""
        try:
            os.fsync(self.written_fd)
        except OSError as error:
            if error.errno in DEAD_VIEW_ERRORS:
                raise
            raise SnapfsError(
                f"What was written to {self.live_file} cannot be stored ({error.strerror}), so there was no cut; "
                "look after the image's disk.",
                path=self.live_file,
            ) from error

    def let_go_of_live(self) -> None:
        """After the last `sync_live`. To close the live file is to wait for what others have written to it; who is
        killed while he has writes held, and the file open, would end only when they go on by themselves."""
        fd, self.written_fd = self.written_fd, -1
        if fd >= 0:
            _close(fd)

    def latecomers(self) -> list[NotFrozen]:
        """What has been mounted since the plan was made; nothing of a view whose servers have died."""
        known = {filesystem.device for filesystem in self.filesystems}
        with suppress(OSError):
            return [
                NotFrozen(one.name, "it was mounted while the cut was taken", one.offset, one.depth > 0)
                for one in find_live_filesystems(self.live_file)
                if one.device not in known and not one.read_only
            ]
        return []

    def writers(self, answer: CutTaken) -> list[Writer]:
        """Who was writing at the cut that the server gave `answer` to, other than filesystems of the kernel."""
        after = look_for_writers(self.live_fd)
        return writers_at_cut(self.writers_before, after, answer.open_for_writing)


def _close(fd: int) -> None:
    """A view whose servers have died refuses even that, which must not hide what is said about it."""
    with suppress(OSError):
        os.close(fd)


@contextmanager
def planned(
    live_files: Sequence[Path], kept: Mapping[str, Sequence[Path]], *, freezes: bool, agent: GuestAgent | None
) -> Iterator[list[Plan]]:
    """A plan for each of `live_files`; `kept` is what must stay writable (see `never_frozen`)."""
    with ExitStack() as stack:
        plans = []
        for live_file in live_files:
            live_fd = _open_live(live_file, os.O_PATH)
            stack.callback(_close, live_fd)
            written_fd = _open_live(live_file, os.O_RDONLY)
            plan = Plan(live_file, live_fd, written_fd, unneeded_fds=[live_fd, written_fd])
            stack.callback(plan.let_go_of_live)
            plan.filesystems += find_live_filesystems(live_file)
            plans.append(plan)
        everywhere = [filesystem for plan in plans for filesystem in plan.filesystems]
        reasons = never_frozen(everywhere, kept)
        quiet = {one.device for one in everywhere if freezes and one.device not in reasons and one.part is None}
        for plan in plans:
            if agent is not None:
                # First: what it writes while it freezes may lie on filesystems that are to be frozen here.
                plan.targets.append(GuestTarget(agent, f"qga:{agent.path}"))
            for filesystem in plan.filesystems:
                if filesystem.read_only or (filesystem.part is not None and filesystem.part.owner in quiet):
                    continue
                reason = reasons.get(filesystem.device) if freezes else "no freeze was asked for"
                _add(plan, filesystem, _why_part(filesystem.part) or reason, stack)
            plan.writers_before = look_for_writers(plan.live_fd)
        yield plans


def _why_part(part: Part | None) -> str | None:
    if part is None:
        return None
    return f"it is the {part.what} of the {part.fstype} on {part.owner_name}, which is not frozen"


def _open_live(live_file: Path, flags: int) -> int:
    try:
        return os.open(live_file, flags | os.O_CLOEXEC)
    except OSError as error:
        raise SnapfsError(
            f"{live_file} cannot be opened: {error.strerror}; cut as the user who mounted it, or mount it again.",
            path=live_file,
        ) from error


def _add(plan: Plan, filesystem: LiveFilesystem, reason: str | None, stack: ExitStack) -> None:
    fd = open_filesystem(filesystem)
    name, offset, is_nested = filesystem.name, filesystem.offset, filesystem.depth > 0
    if fd is not None:
        stack.callback(_close, fd)
        plan.sync_fds.append(fd)
    if reason is None and fd is None:
        reason = "no mount of it can be reached from here"
    if reason is None and fd is not None:
        plan.targets.append(_MountedTarget(filesystem.device, name, filesystem.fstype, offset, is_nested, fd))
    else:
        plan.not_frozen.append(NotFrozen(name, str(reason), offset, is_nested))
