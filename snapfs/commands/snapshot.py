"""``snapfs snapshot``: a new cut while everything stays mounted and in use.

    find filesystems, sync      users go on
    prepare-cut                 users go on
    hooks: freeze               programs are quieted
    freeze, cut, thaw           writers wait (see freezing)
    hooks: thaw
    cut-facts                   the snapshot view shows the new cut; the map of used blocks begins

Whatever fails before the cut cancels it and leaves the snapshot as it was.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cow
import snapfs
from snapfs.commands.freezing import Frozen, NotFrozen, Plan, cut_frozen, planned
from snapfs.commands.hooks import Hooks, find_hooks
from snapfs.commands.signals import Signals
from snapfs.commands.status import read_status
from snapfs.control import request
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.system.discovery import find_store
from snapfs.system.guest_agent import connect_agent
from snapfs.system.live_writers import Writer
from snapfs.system.mounts import canonical_path
from snapfs.system.stores import check_answers, name_of, owner_of_store
from snapfs.system.view_mounts import mounts_of, view_on

_PREPARE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """How to cut; times in seconds."""

    freezes: bool = True
    hooks: Path | None = None
    hook_timeout_s: float = 30.0
    freeze_timeout_s: float = 10.0
    quiesce: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """The new snapshot. ``problems`` are sentences about what went wrong without harming it."""

    id: str
    taken_at: str
    freeze_ms: float | None
    cut_ms: float
    frozen: tuple[str, ...]
    not_frozen: tuple[NotFrozen, ...]
    writers: tuple[Writer, ...]
    problems: tuple[str, ...]


def snapshot(path: Path, options: SnapshotOptions) -> Taken:
    """Take a new cut of the instance behind ``path``; the previous snapshot ends. SnapfsError: nothing changed."""
    with Signals.handled() as signals:
        store = find_store(path)
        return _Cutting(store, read_status(store), options, signals).run()


class _Cutting:
    def __init__(self, store: Path, status: dict[str, Any], options: SnapshotOptions, signals: Signals) -> None:
        self._store, self._options, self._signals = store, options, signals
        self._snap = Path(status["snap"])
        self._live, self._view = Path(status["live"]), view_on(status["live_device"])
        self._live_file = self._live / str(status["view_name"])
        found = [] if options.hooks is None else find_hooks(canonical_path(options.hooks))
        facts = {f"SNAPFS_{name.upper()}": str(status[name]) for name in ("image", "live", "snap", "store")}
        self._hooks = Hooks(found, options.hook_timeout_s, facts)
        self._problems: list[str] = []

    def run(self) -> Taken:
        self._check_live()
        with ExitStack() as stack:
            agent = None
            if self._options.quiesce:
                agent = connect_agent(self._options.quiesce)
                stack.callback(agent.close)
                agent.check_thawed()
            freezes = self._options.freezes
            plan = stack.enter_context(planned(self._live_file, self._kept(), freezes=freezes, agent=agent))
            plan.sync()
            frozen = self._cut(plan)
            frozen.not_frozen += plan.latecomers()
            frozen.writers = plan.writers(frozen.answer)
        self._tell_facts(frozen)
        if frozen.lost:
            self._problems.append(
                f"The snapshot was taken, but {' and '.join(frozen.lost)} had been thawed before it was, so there it "
                "is as after a power failure; take another one, if need be with a longer --freeze-timeout."
            )
        return Taken(
            id=frozen.answer["id"],
            taken_at=frozen.answer["taken_at"],
            freeze_ms=frozen.freeze_ms,
            cut_ms=frozen.answer["cut_ms"],
            frozen=tuple(frozen.frozen),
            not_frozen=tuple(frozen.not_frozen),
            writers=tuple(frozen.writers),
            problems=tuple(self._problems),
        )

    def _check_live(self) -> None:
        views = mounts_of(self._view)
        if not views or any(view.user_id != owner_of_store(self._store) for view in views):
            raise NotMountedError(
                f"The live view {self._live} is not mounted any more; mount the image again for a new snapshot.",
                path=self._live,
            )
        check_answers(self._live_file)

    def _kept(self) -> dict[str, list[Path]]:
        packages = [Path(str(module.__file__)) for module in (snapfs, cow)]
        kept = {"the store": [self._store], "snapfs itself": [*packages, Path(sys.executable), Path(sys.prefix)]}
        if self._options.hooks is not None:
            kept["the hook scripts"] = [canonical_path(self._options.hooks)]
        return kept

    # --- the cut ---------------------------------------------------------------------------------------------

    def _cut(self, plan: Plan) -> Frozen:
        generation = request(self._store, "prepare-cut", _PREPARE_TIMEOUT_S)["generation"]
        self._hooks.facts["SNAPFS_MOUNT_POINTS"] = "\n".join(target.name for target in plan.targets)
        try:
            self._hooks.freeze()
            frozen = cut_frozen(plan, lambda left_s: self._ask_cut(generation, left_s), self._freeze_s, self._signals)
        except BaseException:
            self._end_hooks(None)
            with suppress(SnapfsError):
                request(self._store, "cancel-cut")
            raise
        self._end_hooks(frozen.answer)
        return frozen

    @property
    def _freeze_s(self) -> float:
        return self._options.freeze_timeout_s

    def _ask_cut(self, generation: int, left_s: float) -> dict[str, Any]:
        return request(self._store, "cut", left_s, generation=generation)

    def _end_hooks(self, answer: dict[str, Any] | None) -> None:
        facts = self._hooks.facts
        facts["SNAPFS_RESULT"] = "failed" if answer is None else "done"
        if answer is not None:
            facts["SNAPFS_SNAPSHOT_ID"], facts["SNAPFS_TAKEN_AT"] = answer["id"], answer["taken_at"]
        with self._signals.deferred():
            self._problems += self._hooks.thaw()

    def _tell_facts(self, frozen: Frozen) -> None:
        """Only what lies in the image at one place concerns its map: a filesystem in a file of another is data."""
        not_frozen = [
            {"mount_point": one.mount_point, "reason": one.reason, "offset": one.offset}
            for one in frozen.not_frozen
            if not one.is_nested
        ]
        with self._signals.deferred():
            answer = request(
                self._store,
                "cut-facts",
                freeze_ms=frozen.freeze_ms,
                frozen=frozen.frozen,
                frozen_offsets=frozen.frozen_offsets,
                not_frozen=not_frozen,
                writers=[asdict(writer) for writer in frozen.writers],
            )
        if not answer["shown"]:
            raise SnapfsError(
                f"A new cut was taken ({frozen.answer['taken_at']}) and the snapshot before it has ended, but "
                f"{self._snap} does not show it, because its server does not answer; look into "
                f"{name_of(self._store) / 'log'} and at snapfs status.",
                path=self._snap,
            )
