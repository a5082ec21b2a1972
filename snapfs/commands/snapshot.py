"""`snapfs snapshot`: a new cut while everything stays mounted and in use, of one image or of several in one instant.

    find filesystems, sync      users go on
    prepare-cut                 users go on
    hooks: freeze               programs are quieted
    freeze, cut, thaw           writers wait (see freezing.window)
    hooks: thaw
    cut-facts                   the snapshot view shows the new cut; the map of used blocks begins
    delete                      of older ones that are not to be kept; the next cut may be taken meanwhile

Of several images, *cut* is hold each, cut each, resume each: no write that comes after another one is in a snapshot
without that, whatever goes on below the filesystems.

All but the last over one connection to each server: as long as it lasts nobody else takes a cut. Whatever fails
before the cut closes it, which cancels the cut and leaves the snapshot as it was.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import cow
import snapfs
from snapfs.commands.cut_instance import CutInstance
from snapfs.commands.ended import while_they_last
from snapfs.commands.snapshots import thinning_out_until
from snapfs.cut_facts import Group, Member, Writer
from snapfs.errors import SnapfsError, UsageError
from snapfs.freezing.guest_agent import connect_agent
from snapfs.freezing.hooks import Hooks, find_hooks
from snapfs.freezing.plan import NotFrozen, Plan, planned
from snapfs.freezing.window import Frozen, cut_frozen
from snapfs.options import SnapshotOptions, check_name
from snapfs.protocol import CutTaken
from snapfs.retention import Keep
from snapfs.system.discovery import find_store
from snapfs.system.mounts import canonical_path
from snapfs.system.place import files_below
from snapfs.system.signals import Signals


@dataclass(frozen=True, slots=True)
class Taken:
    """The new snapshot of `image`. `problems` are sentences about what went wrong without harming it."""

    image: str
    id: str
    taken_at: str
    freeze_ms: float | None
    cut_ms: float
    frozen: tuple[str, ...]
    not_frozen: tuple[NotFrozen, ...]
    writers: tuple[Writer, ...]
    problems: tuple[str, ...]
    # The names of older ones that went for it.
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenTogether:
    """New snapshots of one instant; `group` is its id, None when there is only one."""

    group: str | None
    cuts: tuple[Taken, ...]


def snapshot(path: Path, options: SnapshotOptions) -> Taken:
    """Take a new cut of the instance behind `path`; the previous snapshot ends. SnapfsError: nothing changed."""
    (taken,) = snapshot_together([path], options).cuts
    return taken


def snapshot_together(paths: Sequence[Path], options: SnapshotOptions) -> TakenTogether:
    """The same of the instances behind `paths`, in one instant; the cuts are in their order. SnapfsError: nothing
    changed, or the sentence says what did."""
    if options.name:
        check_name(options.name)
    with Signals.handled() as signals:
        instances = [CutInstance(find_store(path)) for path in paths]
        _check_apart(instances)
        with while_they_last([instance.store for instance in instances]), ExitStack() as stack:
            # All in the same order: two commands that want some of the same would else wait for each other.
            for instance in sorted(instances, key=lambda instance: instance.key):
                instance.connect(stack)
            together = _Cutting(instances, options, signals).run()
        if options.keep is None:
            return together
        with signals.deferred():
            cuts = _thinned_out(instances, together.cuts, options.keep, options.match or "*")
        return replace(together, cuts=cuts)


def _thinned_out(
    instances: Sequence[CutInstance], cuts: Sequence[Taken], keep: Keep, pattern: str
) -> tuple[Taken, ...]:
    """The older snapshots of each go but those that `keep` has stay. That some are still there harms no new one."""
    problems = [*cuts[-1].problems]
    deleted: list[list[str]] = [[] for _ in cuts]
    for instance, taken, names in zip(instances, cuts, deleted, strict=True):
        try:
            for name in thinning_out_until(instance.store, taken.id, keep, pattern):
                names.append(name)
        except SnapfsError as error:
            problems.append(
                f"The snapshot of {instance.image} was taken, but not all older ones that it was to replace are "
                f"deleted; see snapfs list. {error.sentence}"
            )
    return tuple(
        replace(taken, problems=tuple(problems), deleted=tuple(names))
        for taken, names in zip(cuts, deleted, strict=True)
    )


def _check_apart(instances: Sequence[CutInstance]) -> None:
    """Each once, and none on a filesystem inside another: that is frozen when its own server has to write."""
    for instance, other in permutations(instances, 2):
        if other.key == instance.key:
            raise UsageError(f"{instance.image} is named twice; name each image once.")
        below = [*files_below(canonical_path(instance.image)), *files_below(canonical_path(instance.store))]
        if any(_is_same_file(file, other.live_file) for file in below):
            raise SnapfsError(
                f"{instance.image}, or its store, lies on a filesystem inside {other.image}, which has to be frozen; "
                "take a snapshot of each by itself, the inner one first.",
                path=instance.image,
            )


def _is_same_file(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


class _Cutting:
    def __init__(self, instances: Sequence[CutInstance], options: SnapshotOptions, signals: Signals) -> None:
        self._instances, self._options, self._signals = instances, options, signals
        found = [] if options.hooks is None else find_hooks(canonical_path(options.hooks))
        facts = {
            f"SNAPFS_{name.upper()}": "\n".join(str(instance.status[name]) for instance in instances)
            for name in ("image", "live", "snap", "store")
        }
        self._hooks = Hooks(found, options.hook_timeout_s, facts)
        self._problems: list[str] = []
        self._errors: list[SnapfsError] = []

    def run(self) -> TakenTogether:
        for instance in self._instances:
            instance.check_live()
        with ExitStack() as stack:
            agent = None
            if self._options.quiesce:
                agent = connect_agent(self._options.quiesce)
                stack.callback(agent.close)
                agent.check_thawed()
            live_files = [instance.live_file for instance in self._instances]
            freezes = self._options.freezes
            plans = stack.enter_context(planned(live_files, self._kept(), freezes=freezes, agent=agent))
            for plan, instance in zip(plans, self._instances, strict=True):
                plan.unneeded_fds.append(instance.server.fileno())
                plan.sync()
            frozen = self._cut(plans)
            for plan, one, instance in zip(plans, frozen, self._instances, strict=True):
                with self._alone(instance):
                    one.not_frozen += plan.latecomers()
                    one.writers = plan.writers(one.answer)
        group = self._group(frozen)
        with self._signals.deferred():
            for instance, one in zip(self._instances, frozen, strict=True):
                with self._alone(instance):
                    instance.tell_facts(one, group)
        if self._errors:
            raise self._errors[0]
        lost = dict.fromkeys(name for one in frozen for name in one.lost)
        if lost:
            self._problems.append(
                f"The snapshot was taken, but {' and '.join(lost)} had been thawed before it was, so there it "
                "is as after a power failure; take another one, if need be with a longer --freeze-timeout."
            )
        cuts = map(self._taken, self._instances, frozen)
        return TakenTogether(None if group is None else group.id, tuple(cuts))

    @contextmanager
    def _alone(self, instance: CutInstance) -> Iterator[None]:
        """What becomes of one image when all are cut is told at the end: the others are to know what was frozen."""
        try:
            with while_they_last([instance.store]):
                yield
        except SnapfsError as error:
            self._errors.append(error)

    def _taken(self, instance: CutInstance, frozen: Frozen) -> Taken:
        return Taken(
            image=str(instance.image),
            id=frozen.answer.id,
            taken_at=frozen.answer.taken_at,
            freeze_ms=frozen.freeze_ms,
            cut_ms=frozen.answer.cut_ms,
            frozen=tuple(frozen.frozen),
            not_frozen=tuple(frozen.not_frozen),
            writers=tuple(frozen.writers),
            problems=tuple(self._problems),
        )

    def _kept(self) -> dict[str, list[Path]]:
        packages = [Path(str(module.__file__)) for module in (snapfs, cow)]
        stores = [instance.store for instance in self._instances]
        kept = {"the store": stores, "snapfs itself": [*packages, Path(sys.executable), Path(sys.prefix)]}
        if self._options.hooks is not None:
            kept["the hook scripts"] = [canonical_path(self._options.hooks)]
        return kept

    # --- the cut ---------------------------------------------------------------------------------------------

    def _cut(self, plans: Sequence[Plan]) -> list[Frozen]:
        for instance in sorted(self._instances, key=lambda instance: instance.key):
            instance.prepare(self._options.name)
        names = dict.fromkeys(target.name for plan in plans for target in plan.targets)
        self._hooks.facts["SNAPFS_MOUNT_POINTS"] = "\n".join(names)
        try:
            self._hooks.freeze()
            frozen = cut_frozen(plans, self._take, self._options.freeze_timeout_s, self._signals)
        except BaseException:
            self._end_hooks([])
            raise
        self._end_hooks([one.answer for one in frozen])
        return frozen

    def _take(self, until: float) -> list[CutTaken]:
        """Of all of them before any write goes on."""
        if len(self._instances) == 1:
            return [self._instances[0].take(until)]
        # Who interrupts it gets all of them, or none.
        with self._signals.deferred():
            self._signals.check()
            return self._take_all(until)

    def _take_all(self, until: float) -> list[CutTaken]:
        answers: list[CutTaken] = []
        try:
            for instance in self._instances:
                instance.hold(until)
            for instance in self._instances:
                answers.append(instance.take(until))
        except SnapfsError as error:
            if not answers or self._took_back(answers):
                raise
            images = " and ".join(str(instance.image) for instance in self._instances[: len(answers)])
            raise SnapfsError(
                f"A new cut was taken of {images} alone, and no snapshot is of the same instant as those of the "
                f"others: {error.sentence}"
            ) from error
        finally:
            for instance in self._instances:
                instance.resume()
        return answers

    def _took_back(self, answers: Sequence[CutTaken]) -> bool:
        """Whether there is none of the named ones any more: else the name would be taken, and seem to be of all. One
        without a name has replaced another, and stays."""
        if not self._options.name:
            return False
        try:
            for instance, answer in zip(self._instances, answers, strict=False):
                instance.take_back(answer)
        except SnapfsError:
            return False
        return True

    def _group(self, frozen: Sequence[Frozen]) -> Group | None:
        if len(frozen) == 1:
            return None
        members = (
            Member(str(instance.image), one.answer.id) for instance, one in zip(self._instances, frozen, strict=True)
        )
        return Group(str(uuid.uuid4()), tuple(members))

    def _end_hooks(self, answers: Sequence[CutTaken]) -> None:
        facts = self._hooks.facts
        facts["SNAPFS_RESULT"] = "done" if answers else "failed"
        if answers:
            facts["SNAPFS_SNAPSHOT_ID"] = "\n".join(answer.id for answer in answers)
            facts["SNAPFS_TAKEN_AT"] = "\n".join(answer.taken_at for answer in answers)
        with self._signals.deferred():
            self._problems += self._hooks.thaw()
