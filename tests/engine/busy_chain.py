"""A chain under way: writes and discards, cuts, deletions of any, merges and releases in this process, a compactor in
its own, and a process for each snapshot that reads it all the time (`snapshot_process`), beside one that reads all of
them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

from engine_rig import QuickFiles, Rig
from lots import Author, Retelling, untouched
from snapshot_process import Begin, Done, Fate, ReadWhole, SnapshotProcess, Told

from cow.compact.compactor import Compactor
from cow.disk.cut import Cut
from cow.disk.header import cut_header
from cow.disk.layout import Counter, Durability
from cow.live.cutting import prepare_cut

BLOCK_BYTES: Final = 4096
# Not a multiple of a block, nor of a sector.
IMAGE_BYTES: Final = 192 * BLOCK_BYTES - 1700
_WRITERS: Final = 2
_HANGS_S: Final = 60.0
_NEVER: Final = 1 << 60


class HesitantFiles(QuickFiles):
    """Some calls take their time, so that others come in between; `dice` is each process's own."""

    def __init__(self) -> None:
        self.dice = random.Random(0)

    def _hesitate(self) -> None:
        if self.dice.random() < 0.02:
            time.sleep(self.dice.random() * 0.002)

    def read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        self._hesitate()
        super().read_into(fd, views, offset)
        self._hesitate()

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._hesitate()
        super().pwrite(fd, data, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._hesitate()
        super().punch(fd, offset, length)

    def end_of(self, fd: int) -> int:
        """Between a look for holes and what is made of it."""
        self._hesitate()
        return super().end_of(fd)


@dataclass(frozen=True)
class Plan:
    """What one chain goes through; `seed` decides the rest, but for who is quicker."""

    seed: int
    durability: Durability = Durability.PROCESS
    cuts: int = 30
    snapshots: int = 5
    kills_compactor: bool = False


class _Writer:
    """Writes what its author says, and is asked while no write is under way how many there were."""

    def __init__(self, rig: Rig, author: Author, dice: random.Random) -> None:
        self._rig, self._author, self._dice = rig, author, dice
        self._last: tuple[int, int, bytes] | None = None

    def write(self) -> None:
        offset, data = self._author.next()
        self._last = self._author.told, offset, data
        engine = self._rig.engine
        if not any(data):
            engine.zero(offset, len(data), give_back=self._dice.random() < 0.8)
        elif self._dice.random() < 0.5 or not engine.try_write(offset, data):
            engine.write(offset, data)

    def count(self) -> int:
        """The last one may not have been let in yet."""
        if self._last is None:
            return 0
        number, offset, data = self._last
        return number if self._rig.engine.read(offset, len(data)) == data else number - 1


class _Thread(threading.Thread):
    """Does `work` until it is stopped."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work, self.stopped = work, threading.Event()
        self.failure = ""

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                self._work()
        except BaseException:
            self.failure = traceback.format_exc()


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
        self._dice = random.Random(plan.seed)
        self.rig = Rig(
            directory,
            untouched(IMAGE_BYTES),
            block_bytes=BLOCK_BYTES,
            durability=plan.durability,
            staging_slots=64,
            files=HesitantFiles(),
        )
        self._snapshots: list[_Snapshot] = []
        self._processes: list[SnapshotProcess] = []
        self._threads: list[_Thread] = []
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._compactor_pid = 0

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
            self._read_all()
            self._stop_threads()
        finally:
            sys.setswitchinterval(interval_s)
            self._end()
        self._check_end()

    def _begin(self) -> None:
        """Processes before threads."""
        retelling = Retelling(self.plan.seed, IMAGE_BYTES, _WRITERS)
        for number in range(self.plan.snapshots + 2):
            dice = self._begin_dice(number)
            self._processes.append(SnapshotProcess(self.rig, retelling, dice.randrange(1 << 32), self._processes))
        self._reads_all, *self._idle = self._processes
        self._begin_dice(100)
        self._compactor_pid = _fork_compactors(self.rig, self.plan, self._bell, self._processes)
        self._begin_dice(101)
        authors = [Author(self.plan.seed, IMAGE_BYTES, number, _WRITERS) for number in range(_WRITERS)]
        self._writers = [_Writer(self.rig, author, random.Random(self.plan.seed)) for author in authors]
        self._threads = [_Thread(self._writers[1].write), _Thread(self._merge), _Thread(self._hear_bell)]
        for thread in self._threads:
            thread.start()

    def _begin_dice(self, number: int) -> random.Random:
        assert isinstance(self.rig.files, HesitantFiles)
        self.rig.files.dice = random.Random(self.plan.seed * 128 + number)
        return self.rig.files.dice

    def _stop_threads(self) -> None:
        for thread in self._threads:
            thread.stopped.set()
        os.eventfd_write(self._bell, 1)
        for thread in self._threads:
            thread.join(_HANGS_S)
            assert not thread.is_alive(), "a thread hangs"
        self._look()

    def _end(self) -> None:
        for thread in self._threads:
            thread.stopped.set()
        with contextlib.suppress(ProcessLookupError):
            if self._compactor_pid:
                os.kill(self._compactor_pid, signal.SIGTERM)
                code = os.waitstatus_to_exitcode(os.waitpid(self._compactor_pid, 0)[1])
                assert code == 0 or sys.exc_info()[0], "the compactor failed"
        for process in self._processes:
            process.end()
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
        for process in self._processes:
            while process.pipe.poll():
                self._take(process, process.pipe.recv())

    def _take(self, process: SnapshotProcess, message: object) -> None:
        assert isinstance(message, Done), message
        self.counts["reads"] += message.reads
        if process is not self._reads_all:
            self._idle.append(process)

    def _tell(self, process: SnapshotProcess, message: object) -> None:
        try:
            process.pipe.send(message)
        except BrokenPipeError:
            self._look()
            raise

    def _read_all(self) -> None:
        """Every snapshot whole, once more."""
        self._look()
        asked = [process for process in self._processes if process not in self._idle]
        for process in asked:
            self._tell(process, ReadWhole())
        for process in asked:
            message = None
            while not (isinstance(message, Done) and not message.generation):
                message = self._receive([process.pipe])
                assert isinstance(message, Done), message

    def _receive(self, pipes: list[Connection]) -> object:
        ready = wait(pipes, _HANGS_S)
        assert ready, "a reader hangs"
        assert isinstance(ready[0], Connection)
        return ready[0].recv()

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
        processes = [self._reads_all, self._next_idle()]
        self._snapshots.append(_Snapshot(cut, name, processes))
        for process in processes:
            self._tell(process, Begin(cut.generation, told))
        self.counts["cuts"] += 1

    def _next_idle(self) -> SnapshotProcess:
        deadline_s = time.monotonic() + _HANGS_S
        while not self._idle:
            assert time.monotonic() < deadline_s, "a reader hangs"
            wait([process.pipe for process in self._processes], 1)
            self._look()
        return self._idle.pop()

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
                self._tell(process, Told(snapshot.cut.generation, fate, first, end, is_done))
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


def _fork_compactors(rig: Rig, plan: Plan, bell: int, processes: Sequence[SnapshotProcess]) -> int:
    """A process that has one compactor after the other, until SIGTERM: then its exit code says how that went."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for process in processes:
            process.pipe.close()
        code = _compact_always(rig, plan, bell)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _compact_always(rig: Rig, plan: Plan, bell: int) -> int:
    dice, parent_pid, ended = random.Random(plan.seed), os.getppid(), False

    def end(number: int, frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    while not ended:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _compact(rig, bell, dice.randrange(1 << 32))
        until_s = time.monotonic() + (dice.random() * 0.5 if plan.kills_compactor else _NEVER)
        while not (ended or time.monotonic() > until_s or _has_ended(pid)):
            time.sleep(0.005)
            # Whoever was to say so may have been killed.
            ended |= os.getppid() != parent_pid
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            return 1
    return 0


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _compact(rig: Rig, bell: int, seed: int) -> None:
    """As the compactor's process does it."""
    try:
        assert isinstance(rig.files, HesitantFiles)
        assert rig.store is not None
        dice = rig.files.dice = random.Random(seed)
        store = rig.store.present(writable=True)
        compactor = Compactor(store)
        store.let_go_older()
        store.cut.let_go()
        store.control[Counter.COMPACTOR_IDLE] = 0
        while True:
            is_busy = [work() for work in dice.sample([compactor.step, compactor.give_back, compactor.squeeze], 3)]
            compactor.tidy()
            if any(is_busy):
                os.eventfd_write(bell, 1)
            else:
                time.sleep(0.001)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
