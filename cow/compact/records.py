"""Storing runs as compressed records, pointing the index to them, and counting what is stored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cow.compact.runs import Run
from cow.disk.codec import STORE_RAW, RecordHeader, encode, payload_bytes
from cow.disk.cut import Cut
from cow.disk.direct import DirectWriter
from cow.disk.layout import CutCounter, pack_place
from cow.disk.segment_files import Segments, remove_segments_of
from cow.disk.segments import SegmentWriter
from cow.disk.store import Store

_WORKERS = 2


class Encoder:
    """Compresses the records of many runs side by side: lz4 lets go of the interpreter."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, "lz4")

    def encode(self, runs: list[Run], segments: Segments, acceleration: int) -> list[bytes]:
        """The records of `runs`, in order."""
        if acceleration == STORE_RAW or len(runs) < 2 * _WORKERS:
            return _encode(runs, segments, acceleration)
        share = -(-len(runs) // _WORKERS)
        parts = [runs[start : start + share] for start in range(0, len(runs), share)]
        encoded = self._pool.map(lambda part: _encode(part, segments, acceleration), parts)
        return [record for part in encoded for record in part]

    def close(self) -> None:
        self._pool.shutdown()


def _encode(runs: list[Run], segments: Segments, acceleration: int) -> list[bytes]:
    generation, seed = segments.generation, segments.seed
    return [encode(run.block_no, len(run.entries), generation, run.raw, acceleration, seed=seed) for run in runs]


class RecordWriter:
    """The records of one cut, and what they count for; used by the compactor's thread only."""

    def __init__(self, store: Store, cut: Cut, encoder: Encoder, direct: DirectWriter) -> None:
        self._store, self._numbers, self._cut = store, cut.numbers, cut
        self._encoder, self._direct = encoder, direct
        self._writer = self._new_writer()

    def _new_writer(self) -> SegmentWriter:
        return SegmentWriter(self._cut.segments, self._store.control, self._store.files, direct=self._direct)

    def store(self, runs: list[Run], acceleration: int) -> set[int]:
        """Append a record for each run and point the index to it; the numbers of the segments they are in.

        OSError: of the runs whose entries are as before, the records take room for nothing.
        """
        records = self._encoder.encode(runs, self._cut.segments, acceleration)
        places = self._writer.append(records)
        # All that takes room, before any is used: killed in between, the records of one step count twice, and none is
        # missed.
        self._count(sum(len(run.raw) for run in runs), sum(map(payload_bytes, records)))
        for run, place in zip(runs, places, strict=True):
            self._cut.index.replace(run.block_no, run.entries, pack_place(place))
        return {place.segment_no for place in places}

    def discount(self, header: RecordHeader) -> None:
        """A record is stored no more: its blocks have other ones."""
        self._count(-header.raw_bytes, -header.payload_bytes)

    def _count(self, raw_bytes: int, stored_bytes: int) -> None:
        """Before slots are freed: a reader of both numbers may count a block twice, never miss one."""
        self._numbers[CutCounter.STORED_RAW_BYTES] += raw_bytes
        self._numbers[CutCounter.STORED_BYTES] += stored_bytes

    @property
    def segment_no(self) -> int:
        """The segment that is appended to; 0 for none."""
        return self._writer.segment_no

    def begin_segment(self) -> None:
        """Append no more to the present segment."""
        self._writer.begin_segment()

    def remove_all(self) -> None:
        """Give the space of all records of this cut and of those before it back; nobody may be reading them. A later
        one may have some already."""
        self._writer.close()
        last = self._cut.generation
        remove_segments_of(self._cut.segments.directory, lambda generation: generation <= last)
        self._writer = self._new_writer()

    def close(self) -> None:
        self._writer.close()
