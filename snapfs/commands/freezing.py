"""The instant of a cut: everything frozen, the cut, everything thawed.

    before   find the filesystems, open them, write back what they hold while their users go on
    window   watchdog, FIFREEZE each, fsync of the live file, the cut, FITHAW each in reverse
    after    who was frozen from before the cut until after it, and who was not

Rules of the window:
- Nothing in it opens a file, imports, prints or logs: each could wait for a frozen filesystem.
- Signals wait until it is over; before the cut they cancel it.
- A cut counts as frozen only where the thaw after it found the filesystem still frozen.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from snapfs.commands.signals import Signals
from snapfs.errors import SnapfsError
from snapfs.protocol import CutTaken, Writer, deadline_in
from snapfs.system import libc
from snapfs.system.freeze import freeze, never_frozen, thaw, why_not_frozen
from snapfs.system.grace_period import GracePeriods
from snapfs.system.guest_agent import GuestAgent
from snapfs.system.live_filesystems import LiveFilesystem, Number, find_live_filesystems, open_filesystem
from snapfs.system.live_parts import Part
from snapfs.system.live_writers import WriterSight, look_for_writers, writers_at_cut
from snapfs.system.watchdog import Watchdog, lock_memory, unlock_memory

# Each round leaves less to the next; a freeze writes what is left while its users wait.
_SYNC_ROUNDS, _SYNC_ENOUGH_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class NotFrozen:
    """A filesystem that is mounted and was not frozen at the cut. `offset` as in LiveFilesystem."""

    mount_point: str
    reason: str
    offset: int | None
    is_nested: bool = False


@dataclass(slots=True)
class Frozen:
    """What the window did: the server's answer to ``cut``, and who was frozen around it. ``lost`` are those that
    were frozen, but not for long enough."""

    answer: CutTaken
    freeze_ms: float | None
    frozen: list[str]
    frozen_offsets: list[int]
    not_frozen: list[NotFrozen]
    lost: list[str] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)


class Target(Protocol):
    """Something to freeze."""

    name: str
    fstype: str
    offset: int | None
    is_nested: bool

    def freeze(self, timeout_s: float) -> None:
        """OSError: it is not frozen."""
        ...

    def thaw(self) -> bool:
        """False when it was not frozen any more; OSError when it may still be."""
        ...


@dataclass(slots=True)
class _MountedTarget:
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
class _GuestTarget:
    """Its filesystems are somewhere in the image; where is known to the guest alone."""

    agent: GuestAgent
    name: str
    fstype: str = "the guest"
    offset: int | None = None
    is_nested: bool = True

    def freeze(self, timeout_s: float) -> None:
        self.agent.freeze(timeout_s)

    def thaw(self) -> bool:
        return self.agent.thaw()


@dataclass(slots=True)
class Plan:
    """What is to be frozen, in order, and what is not, with the reasons; everything is open."""

    live_file: Path
    live_fd: int
    known: set[Number] = field(default_factory=set)
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
        """Have the live server get all writes that the kernel still holds back."""
        try:
            os.fsync(self.live_fd)
        except OSError as error:
            raise SnapfsError(
                f"What was written to {self.live_file} cannot be stored ({error.strerror}), so there was no cut; "
                "look after the image's disk.",
                path=self.live_file,
            ) from error

    def latecomers(self) -> list[NotFrozen]:
        """What has been mounted since the plan was made."""
        return [
            NotFrozen(one.name, "it was mounted while the cut was taken", one.offset, one.depth > 0)
            for one in find_live_filesystems(self.live_file)
            if one.device not in self.known and not one.read_only
        ]

    def writers(self, answer: CutTaken) -> list[Writer]:
        """Who was writing at the cut that the server gave `answer` to, other than filesystems of the kernel."""
        after = look_for_writers(self.live_fd)
        return writers_at_cut(self.writers_before, after, answer.open_for_writing)


@contextmanager
def planned(
    live_file: Path, kept: Mapping[str, Sequence[Path]], *, freezes: bool, agent: GuestAgent | None
) -> Iterator[Plan]:
    """A plan for `live_file`; ``kept`` is what must stay writable (see `never_frozen`)."""
    with ExitStack() as stack:
        live_fd = _open_live(live_file)
        stack.callback(os.close, live_fd)
        plan = Plan(live_file, live_fd, unneeded_fds=[live_fd])
        if agent is not None:
            # First: what it writes while it freezes may lie on filesystems that are to be frozen here.
            plan.targets.append(_GuestTarget(agent, f"qga:{agent.path}"))
        filesystems = find_live_filesystems(live_file)
        plan.known = {filesystem.device for filesystem in filesystems}
        reasons = never_frozen(filesystems, kept)
        quiet = {one.device for one in filesystems if freezes and one.device not in reasons and one.part is None}
        for filesystem in filesystems:
            if filesystem.read_only or (filesystem.part is not None and filesystem.part.owner in quiet):
                continue
            reason = reasons.get(filesystem.device) if freezes else "no freeze was asked for"
            _add(plan, filesystem, _why_part(filesystem.part) or reason, stack)
        plan.writers_before = look_for_writers(live_fd)
        yield plan


def _why_part(part: Part | None) -> str | None:
    if part is None:
        return None
    return f"it is the {part.what} of the {part.fstype} on {part.owner_name}, which is not frozen"


def _open_live(live_file: Path) -> int:
    try:
        return os.open(live_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SnapfsError(
            f"{live_file} cannot be opened: {error.strerror}; cut as the user who mounted it, or mount it again.",
            path=live_file,
        ) from error


def _add(plan: Plan, filesystem: LiveFilesystem, reason: str | None, stack: ExitStack) -> None:
    fd = open_filesystem(filesystem)
    name, offset, is_nested = filesystem.name, filesystem.offset, filesystem.depth > 0
    if fd is not None:
        stack.callback(os.close, fd)
        plan.sync_fds.append(fd)
    if reason is None and fd is None:
        reason = "no mount of it can be reached from here"
    if reason is None and fd is not None:
        plan.targets.append(_MountedTarget(name, filesystem.fstype, offset, is_nested, fd))
    else:
        plan.not_frozen.append(NotFrozen(name, str(reason), offset, is_nested))


def cut_frozen(plan: Plan, cut: Callable[[float], CutTaken], timeout_s: float, signals: Signals) -> Frozen:
    """Freeze, call ``cut`` with the time of CLOCK_MONOTONIC until which it makes sense, thaw.

    SnapfsError, OSError, KeyboardInterrupt: there was no cut (a failure of ``cut`` itself is the caller's to
    judge), and everything is thawed, if need be by the watchdog.
    """
    window = _Window(plan, timeout_s, signals)
    if not plan.targets:
        plan.sync()
        return Frozen(cut(deadline_in(timeout_s)), None, [], [], plan.not_frozen)
    with (
        signals.deferred(),
        _undisturbed(),
        closing(GracePeriods()) as grace_periods,
        Watchdog([*plan.targets, grace_periods], timeout_s, plan.unneeded_fds) as watchdog,
    ):
        plan.sync()
        with _shortened(grace_periods, watchdog, len(plan.targets)):
            return window.run(watchdog, cut)


@contextmanager
def _shortened(grace_periods: GracePeriods, watchdog: Watchdog, target_no: int) -> Iterator[None]:
    watchdog.note_touched(target_no)
    grace_periods.shorten()
    try:
        yield
    finally:
        grace_periods.thaw()
        watchdog.note_thawed(target_no)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No page faults and no garbage collection, for as long as it lasts."""
    collects = gc.isenabled()
    gc.disable()
    lock_memory()
    try:
        yield
    finally:
        unlock_memory()
        if collects:
            gc.enable()


class _Window:
    def __init__(self, plan: Plan, timeout_s: float, signals: Signals) -> None:
        self._plan, self._timeout_s, self._signals = plan, timeout_s, signals
        self._touched: list[int] = []
        self._refusals: dict[int, OSError] = {}
        self._held: set[int] = set()

    def run(self, watchdog: Watchdog, cut: Callable[[float], CutTaken]) -> Frozen:
        watchdog.start()
        started = time.monotonic()
        until = started + self._timeout_s
        try:
            self._freeze(watchdog, until)
            self._plan.sync_live()
            self._check(watchdog)
            answer = cut(until)
        finally:
            self._thaw(watchdog)
            freeze_ms = round((time.monotonic() - started) * 1000, 3)
        return self._result(answer, freeze_ms if self._touched else None)

    def _freeze(self, watchdog: Watchdog, until: float) -> None:
        for target_no, target in enumerate(self._plan.targets):
            self._check(watchdog)
            watchdog.note_touched(target_no)
            self._touched.append(target_no)
            try:
                target.freeze(max(0.001, until - time.monotonic()))
            except OSError as error:
                if isinstance(target, _GuestTarget):
                    raise SnapfsError(
                        f"The guest behind {target.agent.path} was not frozen ({error.strerror or 'no answer'}), so "
                        "there was no cut; look into the guest, or leave out --quiesce."
                    ) from error
                self._touched.pop()
                watchdog.note_refused(target_no)
                self._refusals[target_no] = error

    def _check(self, watchdog: Watchdog) -> None:
        self._signals.check()
        if watchdog.expired:
            raise SnapfsError(
                f"Freezing took longer than {self._timeout_s:g} s, so everything was thawed and there was no cut; "
                "try again when less is written, or give a longer --freeze-timeout."
            )

    def _thaw(self, watchdog: Watchdog) -> None:
        for target_no in reversed(self._touched):
            with suppress(OSError):  # the watchdog goes on trying
                if self._plan.targets[target_no].thaw():
                    self._held.add(target_no)
                watchdog.note_thawed(target_no)

    def _result(self, answer: CutTaken, freeze_ms: float | None) -> Frozen:
        held = [target for target_no, target in enumerate(self._plan.targets) if target_no in self._held]
        not_held = [
            NotFrozen(target.name, self._why_lost(target_no, target), target.offset, target.is_nested)
            for target_no, target in enumerate(self._plan.targets)
            if target_no not in self._held
        ]
        return Frozen(
            answer,
            freeze_ms,
            [target.name for target in held],
            [target.offset for target in held if target.offset is not None],
            [*self._plan.not_frozen, *not_held],
            [self._plan.targets[target_no].name for target_no in self._touched if target_no not in self._held],
        )

    def _why_lost(self, target_no: int, target: Target) -> str:
        error = self._refusals.get(target_no)
        if error is not None:
            return why_not_frozen(error, target.fstype)
        return "it was thawed by somebody else before the cut was done"
