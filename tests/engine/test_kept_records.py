"""What a reader keeps of what it has decompressed: bounded for all cuts that it looks through together."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable

from engine_rig import Rig

from cow.preserved import Records

KIB, MIB = 1 << 10, 1 << 20


def records_of(count: int, length: int) -> Records:
    records = Records()
    for entry in range(count):
        records.put(entry, (1, 0, 1, memoryview(bytes(length))))
    return records


def kept(records: Records, count: int) -> list[int]:
    return [entry for entry in range(count) if records.get(entry) is not None]


def test_as_many_are_kept_as_fit() -> None:
    assert kept(records_of(10, 256 * KIB), 10) == [6, 7, 8, 9]
    assert kept(records_of(3000, KIB), 3000) == list(range(3000 - 1024, 3000))


def test_one_that_is_larger_than_all_is_kept_alone() -> None:
    assert kept(records_of(3, 2 * MIB), 3) == [2]


def test_whoever_reads_the_oldest_of_many_keeps_no_more_than_one_of_few(make_rig: Callable[..., Rig]) -> None:
    old = os.urandom(8 * MIB)
    rig = make_rig(old, block_bytes=4096)
    rig.open()
    rig.make_cut("oldest")
    oldest = rig.cut.generation
    for offset in range(0, len(old), 256 * KIB):
        rig.make_cut(f"at-{offset}")
        rig.write(offset, bytes(256 * KIB))
        rig.compactor.drain()
    reader = rig.new_reader(oldest)
    tracemalloc.start()
    try:
        for offset in range(0, len(old), 64 * KIB):
            assert reader.read(offset, 64 * KIB) == old[offset : offset + 64 * KIB]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * MIB
