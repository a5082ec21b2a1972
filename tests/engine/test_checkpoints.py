"""Cuts that somebody holds: what was written since stays known when the snapshot is over, and nothing else of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from engine_rig import BOOT, NEXT_BOOT, QuickFiles, Rig, pattern
from test_chain import Chain

from cow.disk.checkpoints import Checkpoint, changed_in, checkpoints_of, why_void
from cow.disk.layout import Counter, CutCounter, Durability, State
from cow.disk.segment_files import present_segments
from cow.disk.served import Preserved, count_preserved, served_before
from cow.errors import SnapshotEnded, SnapshotLost
from cow.live.overflow import OverflowPolicy
from cow.mount.check import verify
from cow.mount.recovery import Outcome

BLOCK_BYTES = 512
BLOCKS = 64
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
HOLDER, OTHER = "a" * 32, "b" * 32
MakeRig = Callable[..., Rig]


class Held(Chain):
    """A chain of which some are held."""

    def generation(self, name: str) -> int:
        assert self.rig.store is not None
        return [one.generation for one in self.rig.store.header.cuts if one.name == name][-1]

    def id_of(self, generation: int) -> bytes:
        assert self.rig.store is not None
        facts = self.rig.store.header.cut_of(generation)
        assert facts is not None
        return facts.snapshot_id

    def hold(self, name: str, holder: str = HOLDER) -> int:
        generation = self.generation(name)
        self.rig.engine.cuts.hold_checkpoint(self.id_of(generation), holder)
        return generation

    def let_go(self, *kept: int, holder: str = HOLDER) -> None:
        for gone in self.rig.engine.cuts.let_go_checkpoints(holder, [self.id_of(one) for one in kept]):
            gone.let_go()

    def delete_held(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.generation(name)):
            gone.let_go()

    def changed(self, generation: int) -> list[int]:
        return self.changed_blocks(generation, BLOCKS)

    def changed_blocks(self, generation: int, block_count: int) -> list[int]:
        assert self.rig.store is not None
        cuts = [cut for cut in self.rig.store.cuts if cut.generation >= generation]
        changed = changed_in(cuts, block_count)
        assert why_void(cuts) is None
        return list(changed.search(1))

    @property
    def listed(self) -> list[int]:
        assert self.rig.store is not None
        return [one.generation for one in self.rig.store.header.cuts]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        store = self.rig.store
        assert store is not None
        return checkpoints_of(store.header, store.cuts, store.geometry)

    def reopen(self, boot: bytes = BOOT, *, sealed: bool = False) -> Outcome:
        if sealed:
            self.rig.seal()
        else:
            self.rig.abandon()
        return self.rig.open(boot).outcome


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Held:
    """Opened; the first cut has no name."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=request.param, staging_slots=32)
    rig.open()
    return Held(rig)


def blocks(*runs: tuple[int, int]) -> list[int]:
    return sorted({block_no for first, count in runs for block_no in range(first, first + count)})


# --- what stays ----------------------------------------------------------------------------------------------


def test_a_held_one_that_is_deleted_stays_for_what_was_written_since(chain: Held) -> None:
    chain.cut("a")
    held = chain.hold("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(4, 8, 3)
    chain.delete("a")
    chain.merge()
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 12))
    chain.check()


def test_a_held_one_is_over_for_its_readers_when_it_is_deleted(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    reader = chain.rig.reader
    chain.delete("a")
    with pytest.raises((SnapshotEnded, SnapshotLost)):
        reader.read(0, 1)


def test_a_held_one_without_a_name_stays_when_it_is_replaced(chain: Held) -> None:
    held = chain.hold("")
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    chain.write(20, 2, 2)
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 8), (20, 2))


def test_it_is_not_merged_into_an_older_one(chain: Held) -> None:
    chain.cut("a")
    chain.cut("b")
    held = chain.hold("b")
    chain.write(0, 8, 2)
    chain.cut("c")
    chain.delete("b")
    assert chain.merge() == 0
    assert held in chain.listed
    chain.check()


def test_what_is_behind_it_is_merged_into_it(chain: Held) -> None:
    chain.cut("a")
    chain.cut("b")
    held = chain.hold("b")
    chain.write(0, 8, 2)
    chain.cut("c")
    chain.write(4, 12, 3)
    chain.cut("d")
    chain.delete("b")
    chain.delete("c")
    assert chain.merge() == 1
    assert chain.changed(held) == blocks((0, 16))
    chain.check()


def test_a_hidden_one_of_which_nobody_reads_gives_a_checkpoint_its_changes_alone(chain: Held) -> None:
    held = chain.hold("")
    chain.rig.make_cut()
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    assert chain.merge() == 1
    assert chain.rig.store is not None
    assert (chain.rig.store.cuts[0].generation, chain.rig.store.cuts[0].index.count()) == (held, 0)
    assert chain.changed(held) == blocks((0, 8))


def test_older_ones_read_through_it(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(4, 12, 3)
    chain.cut("c")
    chain.write(10, 12, 4)
    chain.delete("b")
    chain.merge()
    chain.rig.give_back()
    chain.check()


def test_the_newest_that_is_deleted_notes_what_is_written(chain: Held) -> None:
    held = chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(3, 4, 2)
    assert chain.rig.numbers.state is State.ACTIVE
    assert chain.changed(held) == blocks((3, 4))


def test_the_newest_that_is_deleted_behind_a_checkpoint_notes_what_is_written(chain: Held) -> None:
    held = chain.hold("")
    chain.cut("b")
    chain.delete("b")
    chain.write(3, 4, 2)
    chain.rig.make_cut()
    chain.merge()
    assert chain.listed == [held, held + 2]
    assert chain.changed(held) == blocks((3, 4))


# --- what it holds for readers is nothing ---------------------------------------------------------------------


def test_a_checkpoint_alone_owes_nothing(chain: Held) -> None:
    chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(0, 20, 2)
    assert chain.rig.cut.index.count() == 0


def test_the_newest_that_is_deleted_preserves_only_what_older_ones_need(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    chain.delete("b")
    chain.write(0, 12, 3)
    assert chain.rig.cut.index.count() == 4
    chain.check()


def test_the_room_of_a_held_one_comes_back_when_it_is_deleted(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.write(0, 20, 2)
    chain.cut("b")
    chain.rig.compactor.drain()
    chain.delete("a")
    chain.rig.compactor.step()
    chain.rig.give_back()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    assert chain.rig.engine.size.shown().stored_bytes == 0


def test_the_room_of_the_newest_comes_back_when_it_is_deleted(chain: Held) -> None:
    chain.hold("")
    chain.write(0, 20, 2)
    chain.rig.compactor.drain()
    chain.expected[""] = OLD
    chain.delete("")
    chain.rig.give_back()
    assert chain.rig.engine.size.shown().stored_bytes == 0


def test_what_older_ones_need_of_it_stays(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    for first in (4, 8):
        chain.write(first, 4, 3)
        chain.rig.compactor.drain()
    chain.cut("c")
    chain.delete("b")
    chain.rig.compactor.step()
    chain.rig.give_back()
    chain.check()
    assert chain.rig.store is not None
    numbers = chain.rig.store.cuts[1].numbers
    assert 0 < numbers[CutCounter.RETURNED_BYTES] < numbers[CutCounter.STORED_BYTES]


def test_behind_a_checkpoint_that_nobody_reads_through_a_release_gives_room_back(chain: Held) -> None:
    chain.hold("")
    chain.cut("b")
    chain.rig.engine.cuts.release(0, 16)
    chain.write(0, 20, 2)
    assert chain.rig.cut.index.count() == 4


def test_what_a_snapshot_behind_a_checkpoint_holds_it_holds_alone(chain: Held) -> None:
    chain.hold("")
    chain.cut("b")
    chain.write(0, 8, 2)
    store = chain.rig.store
    assert store is not None
    assert count_preserved(store.cut, served_before(store.header, store.older)) == Preserved(8, 8)


def test_behind_a_checkpoint_a_release_leaves_what_older_ones_need(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(8, 4, 3)
    chain.cut("c")
    chain.delete("b")
    chain.rig.engine.cuts.release(0, 16)
    del chain.expected["c"]
    chain.write(0, 20, 4)
    assert chain.rig.cut.index.count() == 12
    chain.check()


# --- letting go -----------------------------------------------------------------------------------------------


def test_the_oldest_goes_when_its_last_holder_lets_go(chain: Held) -> None:
    held = chain.hold("")
    chain.hold("", OTHER)
    chain.cut("b")
    chain.let_go()
    assert held in chain.listed
    chain.let_go(holder=OTHER)
    assert chain.listed == [held + 1]


def test_one_behind_a_snapshot_is_merged_when_its_last_holder_lets_go(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    held = chain.hold("b")
    chain.write(2, 4, 3)
    chain.cut("c")
    chain.delete("b")
    chain.merge()
    chain.let_go()
    assert chain.merge() == 1
    assert held not in chain.listed
    assert chain.changed(chain.generation("a")) == blocks((0, 6))
    chain.check()


def test_all_but_those_that_are_named_are_let_go(chain: Held) -> None:
    held = []
    for name in "abc":
        chain.cut(name)
        held.append(chain.hold(name))
    for name in "abc":
        chain.delete(name)
    chain.let_go(held[1])
    chain.merge()
    assert [one.facts.generation for one in chain.checkpoints] == [held[1]]


def test_a_snapshot_that_is_there_stays_one_when_it_is_let_go(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.let_go()
    assert chain.checkpoints == []
    chain.check()


def test_a_checkpoint_alone_that_is_let_go_leaves_none(chain: Held) -> None:
    chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.let_go()
    assert chain.rig.numbers.state is State.NONE


def test_what_is_gone_cannot_be_held(chain: Held) -> None:
    chain.cut("a")
    gone = chain.id_of(chain.generation("a"))
    chain.cut("b")
    chain.delete("a")
    with pytest.raises(SnapshotEnded):
        chain.rig.engine.cuts.hold_checkpoint(gone, HOLDER)


def test_a_checkpoint_can_be_held_by_another(chain: Held) -> None:
    held = chain.hold("")
    snapshot_id = chain.id_of(held)
    chain.cut("b")
    chain.rig.engine.cuts.hold_checkpoint(snapshot_id, OTHER)
    assert [one.facts.holders for one in chain.checkpoints] == [(HOLDER, OTHER)]


def test_holding_it_again_changes_nothing(chain: Held) -> None:
    chain.hold("")
    headers = chain.rig.control[Counter.HEADERS]
    chain.hold("")
    assert chain.rig.control[Counter.HEADERS] == headers


# --- what is told ---------------------------------------------------------------------------------------------


def test_bytes_since_each_are_told(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(2, 4, 3)
    assert [one.changed_bytes for one in chain.checkpoints] == [6 * BLOCK_BYTES, 4 * BLOCK_BYTES]


def test_of_a_short_last_block_only_what_there_is_counts(chain: Held) -> None:
    chain.hold("")
    chain.write(BLOCKS - 2, 2, 2)
    assert [one.changed_bytes for one in chain.checkpoints] == [2 * BLOCK_BYTES - 50]


def test_after_an_overflow_it_is_void(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.make_cut()
    rig.engine.room.set_limit(1)
    chain.write(0, 4, 2)
    rig.engine.room.set_limit(0)
    rig.make_cut()
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]
    chain.reopen()
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]


def test_a_void_one_does_not_make_a_later_one_void(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.engine.room.set_limit(1)
    chain.write(0, 4, 2)
    rig.engine.room.set_limit(0)
    rig.make_cut()
    chain.hold("")
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED, None]


def test_it_is_void_when_the_file_was_cut_short(chain: Held) -> None:
    chain.hold("")
    chain.write(0, 4, 2)
    os.truncate(chain.rig.cut.path / "changed", 0)
    chain.rig.rules.are_kept = False
    assert [one.void for one in chain.checkpoints] == [State.DAMAGED]


def test_it_is_void_when_the_image_was_cut_short(chain: Held) -> None:
    chain.hold("")
    os.truncate(chain.rig.image_path, 1)
    chain.rig.image.look()
    assert [one.void for one in chain.checkpoints] == [State.DAMAGED]


def test_when_the_oldest_gives_way_a_later_checkpoint_stays(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32, policy=OverflowPolicy.BREAK_OLDEST)
    rig.open()
    rig.control[Counter.SHOWN_HEADERS] = 1 << 60
    chain = Held(rig)
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    held = chain.hold("b")
    chain.cut("c")
    chain.delete("b")
    rig.compactor.drain()
    rig.engine.room.set_limit(4 * BLOCK_BYTES)
    chain.write(20, 4, 3)
    states = {cut.generation: cut.numbers.state for cut in rig.store.cuts} if rig.store else {}
    assert states == {held - 1: State.OVERFLOWED, held: State.ACTIVE, held + 1: State.ACTIVE}
    assert chain.changed(held) == blocks((20, 4))


def test_what_nobody_reads_before_it_is_merged_into_a_checkpoint_is_no_damage(chain: Held) -> None:
    """Its records go first."""
    chain.hold("")
    chain.cut("")
    chain.write(0, 4, 2)
    chain.rig.compactor.drain()
    chain.cut("b")
    chain.rig.compactor.tidy()
    assert present_segments(chain.rig.store_path / "segments") == []
    assert verify(chain.rig.store_path, chain.rig.files).problems == []
    chain.rig.abandon()
    assert chain.rig.open().notes == []


def test_what_nobody_reads_and_a_power_loss_took_is_no_damage(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    chain.cut("")
    chain.write(0, 4, 2)
    index = rig.cut.index.file.path
    chain.cut("b")
    rig.compactor.tidy()
    rig.abandon()
    # It was not flushed; what is settled was.
    index.write_bytes(bytes(index.stat().st_size))
    assert rig.open(NEXT_BOOT).notes == []
    assert verify(rig.store_path, rig.files).problems == []


# --- what survives --------------------------------------------------------------------------------------------


def hold_and_go_on(chain: Held, *, is_alone: bool) -> int:
    """The generation of a held one that is over, with writes before and after that; alone it has no newer one."""
    held = chain.hold("")
    chain.write(0, 4, 2)
    if is_alone:
        chain.expected[""] = OLD
        chain.delete("")
    else:
        chain.cut("b")
    chain.write(10, 4, 3)
    return held


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("is_alone", [True, False])
def test_it_survives_the_end_of_the_processes(chain: Held, is_sealed: bool, is_alone: bool) -> None:
    held = hold_and_go_on(chain, is_alone=is_alone)
    assert chain.reopen(sealed=is_sealed) is Outcome.CARRIED_ON
    assert chain.changed(held) == blocks((0, 4), (10, 4))
    chain.write(20, 1, 4)
    assert chain.changed(held) == blocks((0, 4), (10, 4), (20, 1))
    chain.check()


@pytest.mark.parametrize("is_alone", [True, False])
def test_after_a_power_loss_nothing_that_was_written_is_missing(make_rig: MakeRig, is_alone: bool) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Held(rig)
    held = hold_and_go_on(chain, is_alone=is_alone)
    assert chain.reopen(NEXT_BOOT) is Outcome.CARRIED_ON
    assert set(chain.changed(held)) >= set(blocks((0, 4), (10, 4)))
    chain.check()


@pytest.mark.parametrize("is_lost", [True, False])
def test_after_a_power_loss_what_was_written_is_known_to_a_mebibyte(make_rig: MakeRig, is_lost: bool) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    held = chain.hold("")
    chain.delete_held("")
    rig.write(1 << 20, b"x")
    rig.write((3 << 20) - 1, b"xx")
    changed = rig.cut.path / "changed"
    rig.abandon()
    if is_lost:
        changed.write_bytes(bytes(changed.stat().st_size))
    rig.open(NEXT_BOOT)
    assert rig.store is not None
    found = changed_in(rig.store.cuts, rig.geometry.block_count)
    assert list(found.search(1)) == list(range(256, 1024))
    assert [one.facts.generation for one in chain.checkpoints] == [held]


def test_without_the_regions_everything_counts_as_written_after_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    chain.delete_held("")
    rig.write(1 << 20, b"x")
    path = rig.cut.path
    rig.abandon()
    (path / "touched").unlink()
    rig.open(NEXT_BOOT)
    assert rig.cut.changed.count() == rig.geometry.block_count


def test_what_was_merged_into_a_checkpoint_is_known_after_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    held = chain.hold("")
    rig.make_cut()
    rig.write(2 << 20, b"x")
    rig.make_cut()
    assert chain.merge() == 1
    changed = rig.store_path / f"cut-{held:08d}" / "changed"
    rig.abandon()
    changed.unlink()
    rig.open(NEXT_BOOT)
    assert chain.changed_blocks(held, 1024) == list(range(512, 768))


def test_a_region_is_on_the_disk_before_the_write(make_rig: MakeRig) -> None:
    """Each is waited for once."""
    synced: list[bytes] = []

    class Watched(QuickFiles):
        def sync_data(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/touched"):
                synced.append(os.pread(rig.image_fd, 1, 1 << 20))

    rig = make_rig(bytes(4 << 20), durability=Durability.POWER, files=Watched())
    rig.open()
    rig.write(1 << 20, b"x")
    assert synced == [b"\0"]
    rig.write((1 << 20) + 4096, b"x")
    assert synced == [b"\0"]


def test_a_write_whose_region_cannot_be_noted_ends_the_snapshot_first(make_rig: MakeRig) -> None:
    class Failing(QuickFiles):
        def sync_data(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/touched"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    rig = make_rig(bytes(4 << 20), durability=Durability.POWER, files=Failing())
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.write(1 << 20, b"x")
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]
    assert rig.live()[1 << 20 : (1 << 20) + 1] == b"x"


def test_a_cut_after_a_checkpoint_alone_is_of_its_own_instant(chain: Held) -> None:
    held = chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(0, 4, 2)
    chain.reopen()
    chain.cut("b")
    chain.write(2, 4, 3)
    chain.merge()
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 6))
    chain.check()
