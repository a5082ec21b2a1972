"""What is wrong in a store, found without changing it.

Everything is opened for reading only and no lock is taken, so a store in use can be looked at as well; what
changes meanwhile is looked at again before it is called wrong. Sentences name the file and the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cow.disk.blocks import Kind, Run, classify
from cow.disk.codec import RecordHeader, slot_checksums, slot_seed
from cow.disk.directory import COMMON_NAMES, SEGMENTS_NAME, header_of
from cow.disk.files import Files
from cow.disk.header import CutHeader, Header
from cow.disk.layout import SEQ_MASK, CutCounter, Place, State
from cow.disk.plain import check_directory
from cow.disk.rules import check_store
from cow.disk.seal import broken_maps, free_is_noted, free_is_proven, read_seal
from cow.disk.segments import ScanProblem, SegmentReader, scan_segment
from cow.disk.served import is_read
from cow.disk.store import Store, expected_files, open_reader
from cow.errors import CowError, Damaged

# A damaged store may have millions of wrong blocks; the first of them tell enough.
MAX_PROBLEMS = 100
# Of a store in which cuts are made meanwhile.
_LOOKS = 5
_WITHOUT_A_COPY = frozenset({Kind.OWED, Kind.RELEASED, Kind.FREE})


@dataclass(slots=True)
class Report:
    """What `verify` found: sentences, and how much was looked at."""

    problems: list[str] = field(default_factory=list)
    records: int = 0
    blocks: int = 0
    damaged: int = 0
    # What the sentences to come are about, where there is more than one snapshot.
    about: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.problems

    def add(self, sentence: str, *, damaged_blocks: int = 0) -> None:
        sentence = self.about + sentence
        self.damaged += damaged_blocks
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append("there are more problems, not listed here")


def verify(path: Path, files: Files) -> Report:
    """Check every map, record and preserved block of the store. StoreError: there is no store that could be."""
    header = header_of(path)
    for _ in range(_LOOKS):
        report = Report()
        _verify(report, path, header, files)
        before, header = header, header_of(path)
        if report.is_whole or header.cuts == before.cuts:
            return report
    report = Report()
    report.add("snapshots were taken or deleted all the while the store was looked at: look again")
    return report


def _verify(report: Report, path: Path, header: Header, files: Files) -> None:
    for cut in header.cuts:
        for name, (file, size_bytes) in expected_files(path, header, cut.generation).items():
            is_common = name in COMMON_NAMES
            report.about = "" if is_common else _about(header, cut)
            if not is_common or cut is header.cut:
                _check_size(report, name, file, size_bytes)
    report.about = ""
    if report.problems:
        return
    try:
        check_directory(path / SEGMENTS_NAME)
    except OSError as error:
        report.add(f"{SEGMENTS_NAME}: {error.strerror}")
        return
    try:
        store = open_reader(path, files)
    except (CowError, ValueError, OSError) as error:
        report.add(f"the store cannot be opened: {error}")
        return
    try:
        _verify_open(report, store)
    finally:
        store.close()


def _about(header: Header, cut: CutHeader) -> str:
    """Which of several snapshots; those of a deleted one, others still read."""
    if len(header.cuts) == 1:
        return ""
    name = f" ({cut.name})" if cut.name else ""
    return f"cut {cut.generation}{name}: "


def _check_size(report: Report, name: str, file: Path, size_bytes: int) -> None:
    try:
        found = file.lstat().st_size
    except OSError as error:
        report.add(f"{name}: {error.strerror}")
        return
    if found != size_bytes:
        report.add(f"{name}: {found} bytes long instead of {size_bytes}")


def _verify_open(report: Report, store: Store) -> None:
    for facts, one in zip(store.header.cuts, store.of_each_cut(), strict=True):
        report.about = _about(store.header, facts)
        _verify_cut(report, one)
    report.about = ""
    _verify_rules(report, store, at_rest=read_seal(store.path, store.cut.generation) is not None)


def _verify_cut(report: Report, store: Store) -> None:
    """The newest cut of `store`."""
    cut, numbers = store.cut, store.cut.numbers
    if numbers[CutCounter.STATE] not in State.__members__.values():
        report.add(f"numbers: {numbers[CutCounter.STATE]} is no state")
    if numbers.state is State.NONE:
        return  # the last one was deleted: nobody needs anything of it
    if numbers.state is State.OVERFLOWED:
        report.add("the snapshot has overflowed: nothing of it can be read")
        return
    if numbers[CutCounter.UNREADABLE] or cut.is_unreadable:
        report.add("nothing of the snapshot can be proven right")
    if free_is_noted(cut) and not free_is_proven(cut):
        report.add("free: not what was noted when the map became known")
    seal = read_seal(store.path, cut.generation)
    if seal:
        for name in broken_maps(store, seal):
            report.add(f"{name}: not what was sealed")
    report.records += sum(1 for _ in _records(store))
    if is_read(store.header, store.cuts):
        _verify_blocks(report, store)


def _verify_rules(report: Report, store: Store, *, at_rest: bool) -> None:
    """All of them hold after a clean end only: who works on the store, or was killed, may be between two steps."""
    broken = list(check_store(store, at_rest=at_rest))
    still_broken = set(check_store(store, at_rest=at_rest)) if broken else set()
    for sentence in broken:
        if sentence in still_broken:
            report.add(sentence)


def _records(store: Store) -> Iterator[tuple[Place, RecordHeader]]:
    """All records; bytes that are none are of importance only if a block needs them: a kill cuts records short."""
    for number in store.cut.segments.numbers():
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            for found in scan_segment(store.cut.segments, number, store.files):
                if not isinstance(found, ScanProblem):
                    yield found


def _verify_blocks(report: Report, store: Store) -> None:
    """Every settled block has a copy that is whole, or needs none."""
    reader = SegmentReader(store.cut.segments, store.files)
    try:
        for run in classify(store.cut, 0, store.geometry.block_count):
            kind, first, end, _ = run
            if kind in _WITHOUT_A_COPY:
                continue
            report.blocks += end - first
            if kind is Kind.UNEXPLAINED:
                report.damaged += end - first  # the rules have said so
                continue
            if _fault(store, reader, run):
                # Once more, one by one: the compactor may have moved them meanwhile.
                for block_no in range(first, end):
                    _verify_block(report, store, reader, block_no)
    finally:
        reader.close()


def _verify_block(report: Report, store: Store, reader: SegmentReader, block_no: int) -> None:
    for run in classify(store.cut, block_no, block_no + 1):
        what = None if run[0] in _WITHOUT_A_COPY else _fault(store, reader, run)
        if what and not store.cut.released.get(block_no):
            report.add(what, damaged_blocks=1)


def _fault(store: Store, reader: SegmentReader, run: Run) -> str | None:
    """What is wrong with the copies of the run's blocks."""
    kind, first, end, entry = run
    if kind is Kind.STAGED:
        return _slot_fault(store, first, end, entry & SEQ_MASK)
    try:
        header, _ = reader.read(entry, first)
    except Damaged as error:
        return str(error)
    if end > header.block_no + header.block_count:
        return f"block {end - 1}: its record holds other blocks"
    return None


def _slot_fault(store: Store, first: int, end: int, seq: int) -> str | None:
    staging, size = store.staging, store.header.block_bytes
    raw = memoryview(bytearray(size))
    for block_no in range(first, end):
        at = seq + block_no - first
        staging.read_into(raw, at)
        if slot_checksums(raw, size, slot_seed(store.cut.generation, at)) != staging.checksums(at, 1):
            return f"block {block_no}: the staged block's checksum does not fit"
    return None
