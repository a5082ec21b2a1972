"""A cut of its own: nothing of the one before reaches the new one, and nothing of the new one harms who is late."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from cuts_rig import BLOCK_BYTES, NEW, OLD, MakeRig, as_on_btrfs, new_cut
from engine_rig import pattern

import cow.disk.files
import cow.live.relief
from cow.compact.giveback import GiveBack
from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.header import Header, cut_header
from cow.disk.layout import CutCounter, Durability, State
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live.cutting import discard_cut, prepare_cut


def test_a_map_that_is_taken_over_at_a_cut_stays_with_its_own(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()
    ended = rig.cut
    left: list[Cut] = []
    seal_free = cow.live.relief.seal_free

    def cut_behind(cut: Cut, files: Files) -> None:
        seal_free(cut, files)
        left.append(new_cut(rig))

    monkeypatch.setattr(cow.live.relief, "seal_free", cut_behind)
    with pytest.raises(SnapshotEnded):
        rig.settle_free([(10, 12), (20, 22)])
    assert not rig.cut.free.any_set(0, 256)
    assert not rig.cut.settled.any_set(0, 256)
    assert rig.snapshot() == OLD
    rig.compactor.step()
    assert ended.path.exists()
    left.pop().let_go()
    assert not ended.path.exists()


def test_a_record_at_the_border_of_two_pieces_is_given_back_once(make_rig: MakeRig) -> None:
    small = 512
    rig = make_rig(bytes(65_600 * small), block_bytes=small)
    rig.open()
    rig.write(65_530 * small, pattern(12 * small, 3))
    rig.compactor.drain()
    rig.write(65_590 * small, pattern(small, 4))
    rig.compactor.drain()
    rig.engine.cuts.release(0, 65_590)
    rig.give_back()
    rig.engine.cuts.release(65_590, 65_600)
    rig.give_back()
    assert rig.numbers[CutCounter.RETURNED_BYTES] == rig.numbers[CutCounter.STORED_BYTES]


def test_what_is_given_back_may_be_of_a_cut_that_ends_meanwhile(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, NEW)
    rig.compactor.drain()
    rig.engine.cuts.release(0, 64)
    left: list[Cut] = []
    real = GiveBack.give_back

    def cut_first(give_back: GiveBack, first: int, end: int) -> None:
        left.append(new_cut(rig))
        left[0].let_go()
        real(give_back, first, end)

    monkeypatch.setattr(GiveBack, "give_back", cut_first)
    rig.give_back()
    assert left
    assert rig.snapshot() == NEW + OLD[len(NEW) :]


def test_a_new_cut_begins_with_numbers_of_its_own(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, NEW)
    rig.compactor.drain()
    rig.numbers[CutCounter.STORE_ERRNO] = errno.EIO
    rig.engine.room.set_limit(rig.numbers[CutCounter.STORED_BYTES])
    rig.make_cut()
    rig.engine.write(0, OLD[:BLOCK_BYTES])
    assert rig.numbers.state is State.ACTIVE
    assert rig.snapshot() == NEW + OLD[len(NEW) :]


def test_a_late_compactor_counts_nothing_for_the_new_cut(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, NEW)
    rig.compactor.drain()
    before = new_cut(rig)
    rig.compactor._records._count(4096, 4096)
    assert rig.numbers[CutCounter.STORED_BYTES] == 0
    before.let_go()


def test_a_segment_of_nothing_but_released_records_goes_whatever_lies_between_them(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, NEW[: 8 * BLOCK_BYTES])
    rig.compactor.drain()
    # As many records at once as are written past the page cache: each beginning at a page.
    with rig.cut.segments.path(1).open("ab") as segment:
        segment.truncate(segment.tell() + 3000)
    rig.compactor._records.begin_segment()
    rig.write(8 * BLOCK_BYTES, NEW[: 8 * BLOCK_BYTES])
    rig.compactor.drain()
    assert rig.cut.segments.numbers() == [1, 2]
    rig.engine.cuts.release(0, 8)
    rig.give_back()
    assert rig.cut.segments.numbers() == [2]


def test_the_files_of_a_cut_stay_as_long_as_somebody_holds_it(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    ended = rig.cut.hold()
    rig.make_cut()
    rig.compactor.step()
    assert ended.path.exists()
    assert not ended.settled.any_set(0, 256)
    ended.let_go()
    assert not ended.path.exists()
    with pytest.raises(SnapshotEnded):
        ended.hold()


def test_no_prepared_cut_has_the_page_of_the_present_one(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_btrfs(monkeypatch)
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    rig.write(0, NEW)
    before = rig.numbers.by_name()
    for _ in range(256):
        discard_cut(prepare_cut(rig.store))
    assert rig.numbers.by_name() == before


def test_damage_found_in_the_cut_before_is_none_of_the_new_one(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    before = rig.cut.generation
    rig.make_cut()
    rig.engine.ending.note_damage(before)
    assert (rig.numbers.state, rig.numbers[CutCounter.DAMAGED_READS]) == (State.ACTIVE, 0)


def test_a_lost_block_that_is_free_is_counted_off_once(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(3, 5)
    rig.open()
    for block_no in (3, 5):
        rig.write(block_no * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    rig.settle_free([(3, 4)])
    rig.engine.cuts.release(3, 4)
    assert (rig.numbers.lost_blocks, rig.numbers.state) == (1, State.DAMAGED)


def test_what_the_disk_does_not_take_back_is_not_counted_as_returned(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, NEW)
    rig.compactor.drain()
    pwrite = rig.files.pwrite

    def refused(fd: int, data: bytes, offset: int) -> None:
        if "/segments/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        pwrite(fd, data, offset)

    monkeypatch.setattr(rig.files, "pwrite", refused)
    for _ in range(2):
        rig.engine.cuts.release(0, 64)
        rig.give_back()
    assert rig.numbers[CutCounter.RETURNED_BYTES] == 0


def test_who_finds_a_cut_gone_opens_the_next_one(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    rig.make_cut()
    open_cut = Store.open_cut
    late = [True]

    def cut_between(store: Store, generation: int, *, writable: bool, header: Header | None = None) -> Cut:
        if late and late.pop():
            # The one that was asked for is over, and its directory gone, before it is open.
            new_cut(rig).let_go()
            raise FileNotFoundError
        return open_cut(store, generation, writable=writable, header=header)

    monkeypatch.setattr(Store, "open_cut", cut_between)
    rig.compactor.step()
    assert rig.compactor._cut.generation == rig.cut.generation == 3


def test_nobody_waits_for_the_lock_while_a_cut_waits_for_the_disk(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    seen: list[bool] = []

    def looking(call: Callable[..., object]) -> Callable[..., object]:
        def look(*args: object, **named: object) -> object:
            seen.append(rig.engine._lock.locked())
            return call(*args, **named)

        return look

    for name in ("sync", "write_whole"):
        monkeypatch.setattr(rig.files, name, looking(getattr(rig.files, name)))
    cut = prepare_cut(rig.store)
    rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))[0].let_go()
    assert seen
    assert not any(seen)
