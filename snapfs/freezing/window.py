"""The instant of a cut: everything frozen, the cut, everything thawed.

    before   find the filesystems, open them, write back what they hold while their users go on
    window   watchdog, FIFREEZE each, fsync and closing of the live files, the cuts, FITHAW each in reverse
    after    who was frozen from before the cut until after it, and who was not

Rules of the window:
- Nothing in it opens a file, imports, prints or logs: each could wait for a frozen filesystem.
- Signals wait until it is over; before the cut they cancel it.
- A cut counts as frozen only where the thaw after it found the filesystem still frozen.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from snapfs.cut_facts import Writer
from snapfs.errors import SnapfsError
from snapfs.freezing.fsfreeze import why_not_frozen
from snapfs.freezing.grace_period import GracePeriods
from snapfs.freezing.plan import GuestTarget, NotFrozen, Plan, Target
from snapfs.freezing.watchdog import Watchdog, lock_memory, unlock_memory
from snapfs.protocol import CutTaken, deadline_in
from snapfs.system.signals import Signals


@dataclass(slots=True)
class Frozen:
    """What the window did for one image: the server's answer to `cut`, and who was frozen around it. `lost` are those
    that were frozen, but not for long enough."""

    answer: CutTaken
    freeze_ms: float | None
    frozen: list[str]
    frozen_offsets: list[int]
    not_frozen: list[NotFrozen]
    lost: list[str] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)


def cut_frozen(
    plans: Sequence[Plan], cut: Callable[[float], Sequence[CutTaken]], timeout_s: float, signals: Signals
) -> list[Frozen]:
    """Freeze, call `cut` with the time of CLOCK_MONOTONIC until which it makes sense, thaw.

    `cut` answers for each of `plans`, and so does this. SnapfsError, OSError, KeyboardInterrupt: there was no cut (a
    failure of `cut` itself is the caller's to judge), and everything is thawed, if need be by the watchdog.
    """
    window = _Window(plans, timeout_s, signals)
    if not window.targets:
        _sync(plans)
        for plan in plans:
            plan.let_go_of_live()
        answers = cut(deadline_in(timeout_s))
        return [Frozen(answer, None, [], [], plan.not_frozen) for plan, answer in zip(plans, answers, strict=True)]
    unneeded_fds = [fd for plan in plans for fd in plan.unneeded_fds]
    with (
        signals.deferred(),
        _undisturbed(),
        closing(GracePeriods()) as grace_periods,
        Watchdog([*window.targets, grace_periods], timeout_s, unneeded_fds) as watchdog,
    ):
        _sync(plans)
        with _shortened(grace_periods, watchdog, len(window.targets)):
            return window.run(watchdog, cut)


def _in_order(plans: Sequence[Plan]) -> list[Target]:
    """What is in several plans once, where it comes last: what lies on it, in any of them, is frozen before it. But
    guests come first."""
    targets: dict[Hashable, Target] = {}
    for target in (target for plan in plans for target in plan.targets):
        targets.pop(target.key, None)
        targets[target.key] = target
    return sorted(targets.values(), key=lambda target: not isinstance(target, GuestTarget))


def _sync(plans: Sequence[Plan]) -> None:
    for plan in plans:
        plan.sync()


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
    def __init__(self, plans: Sequence[Plan], timeout_s: float, signals: Signals) -> None:
        self._plans, self._timeout_s, self._signals = plans, timeout_s, signals
        self.targets = _in_order(plans)
        self._touched: list[int] = []
        self._refusals: dict[Hashable, OSError] = {}
        self._held: set[Hashable] = set()

    def run(self, watchdog: Watchdog, cut: Callable[[float], Sequence[CutTaken]]) -> list[Frozen]:
        watchdog.start()
        started = time.monotonic()
        until = started + self._timeout_s
        try:
            self._freeze(watchdog, until)
            for plan in self._plans:
                plan.sync_live()
                plan.let_go_of_live()
            self._check(watchdog)
            answers = cut(until)
        finally:
            self._thaw(watchdog)
            freeze_ms = round((time.monotonic() - started) * 1000, 3)
        return [
            self._result(plan, answer, freeze_ms if self._touched else None)
            for plan, answer in zip(self._plans, answers, strict=True)
        ]

    def _freeze(self, watchdog: Watchdog, until: float) -> None:
        for target_no, target in enumerate(self.targets):
            self._check(watchdog)
            watchdog.note_touched(target_no)
            self._touched.append(target_no)
            try:
                target.freeze(max(0.001, until - time.monotonic()))
            except OSError as error:
                if isinstance(target, GuestTarget):
                    raise SnapfsError(
                        f"The guest behind {target.agent.path} was not frozen ({error.strerror or 'no answer'}), so "
                        "there was no cut; look into the guest, or leave out --quiesce."
                    ) from error
                self._touched.pop()
                watchdog.note_refused(target_no)
                self._refusals[target.key] = error

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
                if self.targets[target_no].thaw():
                    self._held.add(self.targets[target_no].key)
                watchdog.note_thawed(target_no)

    def _result(self, plan: Plan, answer: CutTaken, freeze_ms: float | None) -> Frozen:
        held = [target for target in plan.targets if target.key in self._held]
        not_held = [
            NotFrozen(target.name, self._why_lost(target), target.offset, target.is_nested)
            for target in plan.targets
            if target.key not in self._held
        ]
        touched = {self.targets[target_no].key for target_no in self._touched}
        return Frozen(
            answer,
            freeze_ms,
            [target.name for target in held],
            [target.offset for target in held if target.offset is not None],
            [*plan.not_frozen, *not_held],
            [target.name for target in plan.targets if target.key in touched - self._held],
        )

    def _why_lost(self, target: Target) -> str:
        error = self._refusals.get(target.key)
        if error is not None:
            return why_not_frozen(error, target.fstype)
        return "it was thawed by somebody else before the cut was done"
