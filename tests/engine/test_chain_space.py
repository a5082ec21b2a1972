"""Several snapshots at once, and their space: what is free costs nothing, what nobody reads is room again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain_rig import BLOCK_BYTES, BLOCKS, OLD, Chain, MakeRig, new_chain
from engine_rig import QuickFiles

from cow.disk.codec import RecordHeader
from cow.disk.layout import Durability
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.served import Preserved, count_preserved, served_before
from cow.live.size import stored_in


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    return new_chain(make_rig, request.param)


def test_a_block_is_copied_once_however_many_there_are(chain: Chain) -> None:
    for name in "abc":
        chain.cut(name)
    chain.write(0, 8, 2)
    assert chain.rig.store is not None
    assert [cut.index.count() for cut in chain.rig.store.cuts] == [0, 0, 8]
    chain.check()


def test_what_is_free_in_a_later_one_stays_whole_in_an_older_one(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    chain.rig.settle_free([(8, 24)])
    chain.write(4, 16, 5)
    b = chain.expected["b"]
    chain.expected["b"] = b[: 8 * BLOCK_BYTES] + bytes(16 * BLOCK_BYTES) + b[24 * BLOCK_BYTES :]
    chain.check()
    chain.merge()
    chain.check()
    chain.delete("a")
    chain.check()


def test_what_is_free_in_all_of_them_costs_nothing(chain: Chain) -> None:
    chain.rig.settle_free([(8, 24)])
    chain.write(8, 16, 2)
    assert chain.rig.cut.index.count() == 0
    chain.cut("a")
    chain.rig.settle_free([(8, 24)])
    chain.write(8, 16, 3)
    assert chain.rig.cut.index.count() == 0


def test_what_is_released_is_kept_for_an_older_one(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(0, 16, 3)
    chain.rig.engine.cuts.release(0, BLOCKS)
    del chain.expected["b"]
    chain.write(0, 32, 4)
    chain.rig.compactor.drain()
    chain.rig.give_back()
    chain.check()


def test_a_snapshot_can_be_deleted_on_a_full_disk(make_rig: MakeRig) -> None:
    files = FullDisk()
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32, files=files)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    files.is_full = True
    chain.delete("a")
    files.is_full = False
    chain.check()
    assert (rig.store_path / "header.spare").exists() is False
    chain.delete("b")
    assert (rig.store_path / "header.spare").stat().st_blocks > 0


class FullDisk(QuickFiles):
    """One that has no room for another file, as long as there is the one that is kept for that."""

    is_full = False

    def write_whole(self, path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
        if self.is_full and path.with_name("header.spare").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_whole(path, data, mode=mode, durable=durable)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, offset, length)


def test_nothing_is_left_of_what_was_deleted(chain: Chain, tmp_path: Path) -> None:
    for number, name in enumerate("abcde"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    for name in "acbd":
        chain.delete(name)
        chain.merge()
    chain.cut("last")
    chain.delete("e")
    chain.rig.compactor.drain()
    chain.rig.compactor.give_back()
    assert chain.rig.cut.segments.numbers() == []
    assert list((chain.rig.store_path / "segments").iterdir()) == []


def test_what_a_snapshot_alone_holds_is_what_no_older_one_reads_in_it(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(0, 24, 3)
    assert chain.rig.store is not None
    a, b = chain.rig.store.cuts
    header = chain.rig.store.header
    assert count_preserved(a, served_before(header, [])) == Preserved(8, 8)
    assert count_preserved(b, served_before(header, [a])) == Preserved(24, 8)
    assert count_preserved(b, served_before(header, [])) == Preserved(24, 24)


def test_what_a_merged_one_alone_held_is_room_again(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 32, 2)
    chain.rig.compactor.drain()
    chain.cut("b")
    chain.write(0, 40, 3)
    chain.rig.compactor.drain()
    chain.cut("c")
    assert chain.rig.store is not None
    b = chain.generation("b")
    chain.rig.give_back()  # what is looked at once, at the start
    chain.delete("b")
    assert chain.merge() == 1
    chain.rig.give_back()
    chain.check()
    a = chain.rig.store.cuts[0]
    records = list(scan_segments(chain))
    assert sum(record.payload_bytes for record in records) == stored_in(a)
    # The first 32 blocks a had itself.
    assert all(record.block_no + record.block_count > 32 for record in records if record.generation == b)
    chain.rig.abandon()
    chain.rig.open()
    chain.check()


def scan_segments(chain: Chain) -> Iterator[RecordHeader]:
    assert chain.rig.store is not None
    segments = chain.rig.store.cuts[0].segments
    for number in segments.numbers():
        for found in scan_segment(segments, number, chain.rig.files):
            if not isinstance(found, ScanProblem):
                yield found[1]
