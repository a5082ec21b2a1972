"""A chain under way: writes and discards, cuts, deletions of any, merges and releases in this process, a compactor in
its own, and a process for each snapshot that reads it all the time (`snapshot_process`), beside one that reads all of
them.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chain_readers import HANGS_S, Readers
from chain_threads import Thread, Writer
from compactor_process import Compactors
from engine_rig import Rig
from hesitant_files import HesitantFiles
from lots import Author, Retelling, untouched
from snapshot_process import Begin, Fate, SnapshotProcess, Told

from cow.compact.compactor import Compactor
from cow.disk.cut import Cut
from cow.disk.header import cut_header
from cow.disk.layout import Counter, Durability
from cow.live.cutting import prepare_cut

BLOCK_BYTES: Final = 4096
# Not a multiple of a block, nor of a sector.
IMAGE_BYTES: Final = 192 * BLOCK_BYTES - 1700
_WRITERS: Final = 2
_NEVER: Final = 1 << 60


@dataclass(frozen=True)
class Plan:
    """What one chain goes through; `seed` decides the rest, but for who is quicker."""

    seed: int
    durability: Durability = Durability.PROCESS
    cuts: int = 30
    snapshots: int = 5
    kills_compactor: bool = False


@dataclass
class _Snapshot:
    """What there is for users."""

    cut: Cut
    name: str
    processes: list[SnapshotProcess]
    has_map: bool = False
    released: set[int] = field(default_factory=set)


class BusyChain:
    """`run` raises AssertionError with what any of them found wrong. `counts`: what was done."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.plan, self.counts = plan, Counts[str]()
        self._dice, self._files = random.Random(plan.seed), HesitantFiles()
        self.rig = Rig(
            directory,
            untouched(IMAGE_BYTES),
            block_bytes=BLOCK_BYTES,
            durability=plan.durability,
            staging_slots=64,
            files=self._files,
        )
        self._snapshots: list[_Snapshot] = []
        self._readers = Readers()
        self._threads: list[Thread] = []
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._compactors: Compactors | None = None

    # --- beginning and end -----------------------------------------------------------------------------------

    def run(self) -> None:
        rig = self.rig
        rig.takes_snapshot = False
        rig.open()
        rig.compactor.close()
        rig.control[Counter.SHOWN_HEADERS] = _NEVER
        # Somebody always is between two steps.
        rig.rules.are_kept = False
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)
        try:
            self._begin()
            for _ in range(self.plan.cuts):
                self._go_on()
            self._look()
            self._readers.read_all()
            self._stop_threads()
        finally:
            sys.setswitchinterval(interval_s)
            self._end()
        self._check_end()

    def _begin(self) -> None:
        """Processes before threads."""
        retelling = Retelling(self.plan.seed, IMAGE_BYTES, _WRITERS)
        self._readers.begin(self.rig, retelling, self.plan.snapshots, self._begin_dice)
        self._begin_dice(100)
        plan, readers = self.plan, self._readers.processes
        self._compactors = Compactors(self.rig, plan.seed, self._bell, readers, are_killed=plan.kills_compactor)
        self._begin_dice(101)
        authors = [Author(self.plan.seed, IMAGE_BYTES, number, _WRITERS) for number in range(_WRITERS)]
        self._writers = [Writer(self.rig, author, random.Random(self.plan.seed)) for author in authors]
        self._threads = [Thread(self._writers[1].write), Thread(self._merge), Thread(self._hear_bell)]
        for thread in self._threads:
            thread.start()

    def _begin_dice(self, number: int) -> random.Random:
        return self._files.begin_dice(self.plan.seed * 128 + number)

    def _stop_threads(self) -> None:
        for thread in self._threads:
            thread.stopped.set()
        os.eventfd_write(self._bell, 1)
        for thread in self._threads:
            thread.join(HANGS_S)
            assert not thread.is_alive(), "a thread hangs"
        self._look()

    def _end(self) -> None:
        for thread in self._threads:
            thread.stopped.set()
        with contextlib.suppress(ProcessLookupError):
            if self._compactors is not None:
                self._compactors.end()
        self._readers.end()
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._bell)

    def _check_end(self) -> None:
        """At rest: the rules of the maps, and what is left, once more."""
        rig = self.rig
        retelling = Retelling(self.plan.seed, IMAGE_BYTES, _WRITERS)
        assert rig.store is not None
        rig.compactor = Compactor(rig.store)
        rig.compactor.drain()
        while (gone := rig.engine.cuts.merge()) is not None:
            gone.let_go()
        assert rig.engine.size.staged_bytes() == 0
        assert rig.live() == retelling.after([writer.count() for writer in self._writers])
        rig.rules.are_kept = True
        rig.rules.look()
        assert [one.cut.generation for one in self._snapshots] == [one.generation for one in rig.store.header.shown]

    # --- in threads and processes of their own ---------------------------------------------------------------

    def _merge(self) -> None:
        gone = self.rig.engine.cuts.merge()
        if gone is None:
            time.sleep(0.002)
            return
        gone.let_go()
        self.counts["merged"] += 1

    def _hear_bell(self) -> None:
        os.eventfd_read(self._bell)
        self.rig.engine.room.look_again()

    def _look(self) -> None:
        """AssertionError: what anybody else found wrong."""
        for thread in self._threads:
            assert not thread.failure, thread.failure
        self._readers.look()
        if self._readers.reads:
            self.counts["reads"] = self._readers.reads

    # --- what is done ----------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Until the next cut is taken."""
        while True:
            for _ in range(self._dice.randrange(40)):
                self._writers[0].write()
            self._look()
            step = self._dice.choice(
                [self._cut] * 4 + [self._delete] * 3 + [self._release] * 3 + [self._free, self._name, self._rest]
            )
            step()
            if step == self._cut:
                return

    def _cut(self) -> None:
        while len(self._snapshots) >= self.plan.snapshots:
            self._delete()
        store, told = self.rig.store, list[int]()
        assert store is not None
        cut = prepare_cut(store)
        name = f"n{cut.generation}" if self._dice.random() < 0.7 else ""
        replaced = self._snapshots[-1] if self._snapshots and not self._snapshots[-1].name else None

        def begin() -> None:
            told.extend(writer.count() for writer in self._writers)

        with self._ending(replaced):
            gone = self.rig.engine.begin_cut(cut, cut_header(self.rig.image, cut.generation, name), begin)
        for one in gone:
            one.let_go()
        processes = self._readers.of_the_next(self._look)
        self._snapshots.append(_Snapshot(cut, name, processes))
        for process in processes:
            self._readers.tell(process, Begin(cut.generation, told))
        self.counts["cuts"] += 1

    @contextlib.contextmanager
    def _ending(self, snapshot: _Snapshot | None) -> Iterator[None]:
        """It may end within this, and is over afterwards."""
        if snapshot is None:
            yield
            return
        with self._telling(snapshot, Fate.ENDED, 0, 0):
            yield
        self._snapshots.remove(snapshot)

    @contextlib.contextmanager
    def _telling(
        self, snapshot: _Snapshot, fate: Fate, first: int, end: int, *, is_sure: bool = True
    ) -> Iterator[None]:
        for is_done in (False, True) if is_sure else (False,):
            for process in snapshot.processes:
                self._readers.tell(process, Told(snapshot.cut.generation, fate, first, end, is_done))
            if not is_done:
                yield

    def _delete(self) -> None:
        if not self._snapshots:
            return
        dice = self._dice
        snapshot = dice.choice([self._snapshots[0], self._snapshots[-1], dice.choice(self._snapshots)])
        with self._ending(snapshot):
            gone = self.rig.engine.cuts.forget(snapshot.cut.generation)
        for one in gone:
            one.let_go()
        self.counts["deleted"] += 1

    def _run(self) -> tuple[int, int]:
        count = self.rig.geometry.block_count
        first = self._dice.randrange(count)
        return first, min(count, first + self._dice.choice([1, 5, 30, count]))

    def _release(self) -> None:
        if self._snapshots:
            snapshot, (first, end) = self._dice.choice(self._snapshots), self._run()
            # Of the newest one that is just being preserved is left out.
            is_sure = snapshot.cut is not self.rig.store.cut
            with self._telling(snapshot, Fate.RELEASED, first, end, is_sure=is_sure):
                self.rig.engine.cuts.release(first, end, snapshot.cut)
            self.counts["released"] += 1

    def _free(self) -> None:
        """The map of the newest is known."""
        if self._snapshots and not self._snapshots[-1].has_map:
            snapshot, (first, end) = self._snapshots[-1], self._run()
            if snapshot.cut is not self.rig.store.cut:
                return  # it was not the newest any more when that one was deleted
            snapshot.has_map = True
            with self._telling(snapshot, Fate.FREE, first, end):
                self.rig.engine.cuts.settle_free([(first, end)], snapshot.cut)
            self.counts["maps"] += 1

    def _name(self) -> None:
        if self._snapshots and not self._snapshots[-1].name:
            snapshot = self._snapshots[-1]
            snapshot.name = f"n{snapshot.cut.generation}"
            self.rig.engine.cuts.name(snapshot.cut.generation, snapshot.name)

    def _rest(self) -> None:
        self.rig.engine.rest()
        self.rig.engine.trim()
        self.rig.engine.cuts.settle_again()
