"""A cut of its own: nothing of the one before reaches the new one, and nothing of the new one harms who is late."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_rig import Rig, pattern

import cow.disk.mapped_file
import cow.live.durable
import cow.live.relief
from cow.compact.giveback import GiveBack
from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.filesystems import Storing
from cow.disk.header import Header, cut_header
from cow.disk.layout import CutCounter, Durability, State
from cow.disk.store import Store
from cow.errors import SnapshotEnded, SnapshotLost
from cow.live.cutting import discard_cut, prepare_cut

BLOCK_BYTES = 4096
OLD = pattern(256 * BLOCK_BYTES)
NEW = pattern(64 * BLOCK_BYTES, 2)
MakeRig = Callable[..., Rig]


def new_cut(rig: Rig) -> Cut:
    """The next cut, taken; whoever works on the one before goes on. The one before, to be let go."""
    assert rig.store is not None
    cut = prepare_cut(rig.store)
    (before,) = rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    rig.cut, rig.numbers = cut, cut.numbers
    rig.reader = rig.new_reader()
    return before


def test_a_cut_that_fails_leaves_the_present_one_as_it_was(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    for _ in range(2):
        cut = prepare_cut(rig.store)
        with monkeypatch.context() as patched:
            patched.setattr(rig.files, "write_whole", failing(errno.ENOSPC, times=2))
            with pytest.raises(OSError, match="No space"):
                rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
        discard_cut(cut)
        assert not cut.path.exists()
    rig.write(0, NEW)
    assert rig.snapshot() == OLD
    assert rig.live() == NEW + OLD[len(NEW) :]


def failing(code: int, times: int) -> Callable[..., None]:
    left = [times]

    def fail(*words: object, **more: object) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))

    return fail


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


def test_a_failed_sync_of_a_cut_is_told_to_the_next_who_syncs(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    cut = prepare_cut(rig.store)
    with monkeypatch.context() as patched:
        patched.setattr(rig.image, "sync", failing(errno.EIO, times=1))
        with pytest.raises(OSError, match="Input/output"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    discard_cut(cut)
    with pytest.raises(OSError, match="Input/output"):
        rig.engine.sync()
    rig.engine.sync()


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


def as_on_btrfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are stored into by system calls, and numbers are shared in memory."""
    monkeypatch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: Storing.WRITTEN)


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


def test_what_fails_beside_the_commit_leaves_the_present_cut(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    cut, present = prepare_cut(rig.store), rig.store.cut
    with monkeypatch.context() as patched:
        patched.setattr(cow.live.durable, "SegmentWriter", failing(errno.EMFILE, times=1))
        with pytest.raises(OSError, match="Too many open files"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    discard_cut(cut)
    assert rig.store.cut is present
    rig.write(0, NEW)
    assert rig.snapshot() == OLD


def test_a_header_that_cannot_be_put_back_names_no_snapshot(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    rig.write(0, NEW)
    cut = prepare_cut(rig.store)
    with monkeypatch.context() as patched:
        # The new one is in its place, and nothing more can be done.
        patched.setattr(rig.files, "sync_directory", failing(errno.EIO, times=1))
        open_new = rig.files._open_new
        refusals = [0, errno.EIO]

        def second_fails(path: Path, mode: int) -> int:
            if code := refusals.pop(0):
                raise OSError(code, os.strerror(code))
            return open_new(path, mode)

        patched.setattr(rig.files, "_open_new", second_fails)
        with pytest.raises(OSError, match="Input/output"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    rig.write(0, OLD)
    rig.abandon()
    rig.open()
    with pytest.raises(SnapshotLost):
        rig.reader.read(0, BLOCK_BYTES)


def test_damage_found_in_the_cut_before_is_none_of_the_new_one(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    before = rig.cut.generation
    rig.make_cut()
    rig.engine.ending.note_damage(before)
    assert (rig.numbers.state, rig.numbers[CutCounter.DAMAGED_READS]) == (State.ACTIVE, 0)


def test_a_cut_that_cannot_be_prepared_leaves_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    with monkeypatch.context() as patched:
        patched.setattr(rig.files, "sync_directory", failing(errno.ENOSPC, times=2))
        with pytest.raises(OSError, match="No space"):
            prepare_cut(rig.store)
    assert [path.name for path in rig.store_path.glob("cut-*")] == ["cut-00000001"]


def test_a_cut_whose_numbers_are_refused_is_not_taken(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_btrfs(monkeypatch)
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    pwrite = rig.files.pwrite

    def refused(fd: int, data: bytes, offset: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("cut-00000002/numbers") and any(bytes(data)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        pwrite(fd, data, offset)

    monkeypatch.setattr(rig.files, "pwrite", refused)
    with pytest.raises(OSError, match="No space"):
        prepare_cut(rig.store)


def test_a_lost_block_that_is_free_is_counted_off_once(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(3, 5)
    rig.open()
    for block_no in (3, 5):
        rig.write(block_no * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    rig.settle_free([(3, 4)])
    rig.engine.cuts.release(3, 4)
    assert (rig.numbers.lost_blocks, rig.numbers.state) == (1, State.DAMAGED)


def test_a_map_that_met_a_full_disk_is_gone_on_with(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    with monkeypatch.context() as patched:
        patched.setattr(rig.cut.settled, "set_range", failing(errno.ENOSPC, times=2))
        with pytest.raises(OSError, match="No space"):
            rig.settle_free([(8, 40)])
    assert rig.settle_free([(8, 40)]) == 32
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == rig.numbers[CutCounter.FREE_BLOCKS] == 32


def test_a_map_that_could_not_be_noted_counts_for_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(8 * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    with monkeypatch.context() as patched:
        patched.setattr(cow.live.relief, "seal_free", failing(errno.EIO, times=1))
        with pytest.raises(OSError, match="Input/output"):
            rig.settle_free([(8, 40)])
    assert rig.snapshot() == OLD


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
