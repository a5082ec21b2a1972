"""`snapfs snapshot`: a new cut while everything stays mounted and in use.

    find filesystems, sync      users go on
    prepare-cut                 users go on
    hooks: freeze               programs are quieted
    freeze, cut, thaw           writers wait (see freezing.window)
    hooks: thaw
    cut-facts                   the snapshot view shows the new cut; the map of used blocks begins

All of it over one connection: as long as it lasts nobody else takes a cut. Whatever fails before the cut closes it,
which cancels the cut and leaves the snapshot as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cow
import snapfs
from snapfs.client import Connection, connected
from snapfs.commands.status import read_status
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.freezing.guest_agent import connect_agent
from snapfs.freezing.hooks import Hooks, find_hooks
from snapfs.freezing.plan import NotFrozen, Plan, planned
from snapfs.freezing.window import Frozen, cut_frozen
from snapfs.options import SnapshotOptions
from snapfs.protocol import CutTaken, Facts, NoteFacts, PrepareCut, TakeCut, Unfrozen, Writer, deadline_in
from snapfs.system.discovery import find_store
from snapfs.system.mounts import DEAD_VIEW_ERRORS, canonical_path
from snapfs.system.signals import Signals
from snapfs.system.stores import check_answers, name_of, owner_of_store
from snapfs.system.view_mounts import mounts_of, view_on

# Also for the turn, while somebody else takes a cut.
_PREPARE_TIMEOUT_S = 60.0
_FACTS_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Taken:
    """The new snapshot. `problems` are sentences about what went wrong without harming it."""

    id: str
    taken_at: str
    freeze_ms: float | None
    cut_ms: float
    frozen: tuple[str, ...]
    not_frozen: tuple[NotFrozen, ...]
    writers: tuple[Writer, ...]
    problems: tuple[str, ...]


def snapshot(path: Path, options: SnapshotOptions) -> Taken:
    """Take a new cut of the instance behind `path`; the previous snapshot ends. SnapfsError: nothing changed."""
    with Signals.handled() as signals:
        store = find_store(path)
        status = read_status(store)
        with connected(store) as server, _while_it_lasts(store):
            return _Cutting(store, status, server, options, signals).run()


@contextmanager
def _while_it_lasts(store: Path) -> Iterator[None]:
    """A view whose server has died refuses everything, even to be closed, whatever was wrong before that."""
    try:
        yield
    except OSError as error:
        if error.errno not in DEAD_VIEW_ERRORS:
            raise
        name = name_of(store)
        raise NotMountedError(
            f"The snapfs on {name} ended while a cut was taken; mount the image again, and snapfs status says which "
            "snapshot it has.",
            path=name,
        ) from error


class _Cutting:
    def __init__(
        self,
        store: Path,
        status: dict[str, Any],
        server: Connection,
        options: SnapshotOptions,
        signals: Signals,
    ) -> None:
        self._store, self._server, self._options, self._signals = store, server, options, signals
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
            plan.unneeded_fds.append(self._server.fileno())
            plan.sync()
            generation, frozen = self._cut(plan)
            frozen.not_frozen += plan.latecomers()
            frozen.writers = plan.writers(frozen.answer)
        self._tell_facts(generation, frozen)
        if frozen.lost:
            self._problems.append(
                f"The snapshot was taken, but {' and '.join(frozen.lost)} had been thawed before it was, so there it "
                "is as after a power failure; take another one, if need be with a longer --freeze-timeout."
            )
        return Taken(
            id=frozen.answer.id,
            taken_at=frozen.answer.taken_at,
            freeze_ms=frozen.freeze_ms,
            cut_ms=frozen.answer.cut_ms,
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

    def _cut(self, plan: Plan) -> tuple[int, Frozen]:
        generation = self._server.ask(PrepareCut(deadline_s=deadline_in(_PREPARE_TIMEOUT_S))).generation

        def take(until: float) -> CutTaken:
            return self._server.ask(TakeCut(generation=generation, deadline_s=until))

        self._hooks.facts["SNAPFS_MOUNT_POINTS"] = "\n".join(target.name for target in plan.targets)
        try:
            self._hooks.freeze()
            frozen = cut_frozen(plan, take, self._options.freeze_timeout_s, self._signals)
        except BaseException:
            self._end_hooks(None)
            raise
        self._end_hooks(frozen.answer)
        return generation, frozen

    def _end_hooks(self, answer: CutTaken | None) -> None:
        facts = self._hooks.facts
        facts["SNAPFS_RESULT"] = "failed" if answer is None else "done"
        if answer is not None:
            facts["SNAPFS_SNAPSHOT_ID"], facts["SNAPFS_TAKEN_AT"] = answer.id, answer.taken_at
        with self._signals.deferred():
            self._problems += self._hooks.thaw()

    def _tell_facts(self, generation: int, frozen: Frozen) -> None:
        """Only what lies in the image at one place concerns its map: a filesystem in a file of another is data."""
        not_frozen = [
            Unfrozen(one.mount_point, one.reason, one.offset) for one in frozen.not_frozen if not one.is_nested
        ]
        facts = Facts(
            freeze_ms=frozen.freeze_ms,
            frozen=tuple(frozen.frozen),
            frozen_offsets=tuple(frozen.frozen_offsets),
            not_frozen=tuple(not_frozen),
            writers=tuple(frozen.writers),
        )
        with self._signals.deferred():
            answer = self._server.ask(
                NoteFacts(generation=generation, facts=facts, deadline_s=deadline_in(_FACTS_TIMEOUT_S))
            )
        if not answer.shown:
            raise SnapfsError(
                f"A new cut was taken ({frozen.answer.taken_at}) and the snapshot before it has ended, but "
                f"{self._snap} does not show it, because its server does not answer; look into "
                f"{name_of(self._store) / 'log'} and at snapfs status.",
                path=self._snap,
            )
