"""Blocks of a snapshot that is not the newest any more are released: it alone loses them, and their space comes back
as soon as no other has them in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_rig import NEXT_BOOT, Rig, SpoiltImage, pattern

from cow.compact import released
from cow.compact.compactor import Compactor
from cow.compact.giveback import GiveBack
from cow.compact.needs import Needs
from cow.disk.cut import Cut
from cow.disk.layout import CutCounter, Durability, State
from cow.disk.store import Store
from cow.errors import BlockReleased, SnapshotEnded
from cow.live import merging
from cow.live.relief import Relief
from cow.mount.check import verify
from cow.snapshot import SnapshotReader

BLOCK_BYTES, BLOCKS = 4096, 64
OLD = pattern(BLOCKS * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


class Chain:
    """A rig, and what each of its snapshots held and does not have any more, by name."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.expected: dict[str, bytes] = {}
        self.released: dict[str, set[int]] = {}

    def write(self, first: int, end: int, seed: int) -> None:
        self.rig.write(first * BLOCK_BYTES, pattern((end - first) * BLOCK_BYTES, seed))
        self.rig.compactor.drain()

    def cut(self, name: str) -> None:
        self.rig.make_cut(name)
        self.expected[name], self.released[name] = self.rig.live(), set()

    def of(self, name: str) -> Cut:
        store = self.rig.store
        assert store is not None
        generation = next(one.generation for one in store.header.cuts if one.name == name)
        return next(cut for cut in store.cuts if cut.generation == generation)

    def release(self, name: str, first: int, end: int) -> int:
        count = self.rig.engine.cuts.release(first, end, self.of(name))
        self.released[name] |= set(range(first, end))
        self.rig.give_back()
        return count

    def delete(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.of(name).generation):
            gone.let_go()
        del self.expected[name]

    def merge(self) -> int:
        """How many are merged at once."""
        count = 0
        while (gone := self.rig.engine.cuts.merge()) is not None:
            gone.let_go()
            count += 1
        self.rig.rules.look()
        return count

    def kept_bytes(self, name: str) -> int:
        numbers = self.of(name).numbers
        return numbers[CutCounter.STORED_BYTES] - numbers[CutCounter.RETURNED_BYTES]

    def check(self) -> None:
        """Each reads as it should, block by block."""
        self.rig.rules.look()
        store = self.rig.store
        assert store is not None
        for name, content in self.expected.items():
            cut = store.open_cut(self.of(name).generation, writable=False)
            reader = SnapshotReader(replace(store, cut=cut), self.rig.image)
            for block_no in range(BLOCKS):
                offset = block_no * BLOCK_BYTES
                if block_no in self.released[name]:
                    with pytest.raises(BlockReleased):
                        reader.read(offset, BLOCK_BYTES)
                else:
                    assert reader.read(offset, BLOCK_BYTES) == content[offset : offset + BLOCK_BYTES], name
            reader.close()
            cut.let_go()


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    """Snapshots a, b and c; each has the blocks that were written behind it: 0 to 31, 16 to 47, 32 to 63."""
    rig = make_rig(OLD, durability=request.param, staging_slots=4 * BLOCKS)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(16 * number, 16 * number + 32, number + 2)
    return chain


def test_it_alone_loses_them(chain: Chain) -> None:
    assert chain.release("b", 8, 24) == 16
    assert chain.release("b", 20, 28) == 4
    chain.check()


def test_what_the_oldest_had_comes_back(chain: Chain) -> None:
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == 0
    chain.check()


def test_the_disk_has_its_space_again(chain: Chain) -> None:
    segments = chain.rig.store_path / "segments"
    before = sum(path.stat().st_blocks for path in segments.iterdir())
    chain.release("a", 0, BLOCKS)
    assert sum(path.stat().st_blocks for path in segments.iterdir()) <= before * 3 // 4


def test_what_the_one_before_has_itself_comes_back(chain: Chain) -> None:
    before = chain.kept_bytes("b")
    chain.release("b", 0, BLOCKS)
    assert 0 < chain.kept_bytes("b") < before
    chain.check()


def test_the_rest_comes_back_when_the_one_before_is_deleted(chain: Chain) -> None:
    chain.release("b", 0, BLOCKS)
    chain.delete("a")
    chain.rig.give_back()
    assert chain.kept_bytes("b") == 0
    chain.check()


def test_the_rest_comes_back_when_the_one_before_overflows(chain: Chain) -> None:
    chain.release("b", 0, BLOCKS)
    assert chain.rig.store is not None
    chain.rig.engine.ending._end_oldest(chain.rig.store.cuts, 0)
    del chain.expected["a"]
    chain.rig.give_back()
    assert chain.kept_bytes("b") == 0
    chain.check()


def test_what_later_ones_have_stays(chain: Chain) -> None:
    before = chain.kept_bytes("b"), chain.kept_bytes("c")
    chain.release("a", 0, BLOCKS)
    assert (chain.kept_bytes("b"), chain.kept_bytes("c")) == before
    chain.check()


def test_what_is_merged_into_it_comes_back(chain: Chain) -> None:
    merged_bytes = chain.kept_bytes("b")
    chain.delete("b")
    chain.release("a", 0, BLOCKS)
    chain.rig.compactor.drain()
    assert chain.merge() == 1
    chain.rig.give_back()
    # But for the records that it had no use for: no entry of it names them.
    assert chain.kept_bytes("a") <= merged_bytes * 3 // 5
    chain.check()


def test_more_comes_back_when_the_one_before_has_more(chain: Chain) -> None:
    chain.write(0, 16, 9)
    chain.cut("d")
    chain.release("c", 0, BLOCKS)
    before = chain.kept_bytes("c")
    # Blocks 0 to 15, which a has too, and b has in c.
    chain.delete("b")
    chain.rig.compactor.drain()
    assert chain.merge() == 1
    chain.rig.give_back()
    assert chain.kept_bytes("c") < before
    chain.check()


@pytest.mark.parametrize("name", ["a", "b"])
def test_nothing_is_wrong_after_a_kill(chain: Chain, name: str) -> None:
    chain.release(name, 0, 40)
    chain.rig.abandon()
    assert chain.rig.open().notes == []
    chain.check()


@pytest.mark.parametrize("name", ["a", "b"])
def test_nothing_is_wrong_after_a_clean_end(chain: Chain, name: str) -> None:
    chain.release(name, 0, 40)
    chain.rig.seal()
    assert verify(chain.rig.store_path, chain.rig.files).problems == []
    assert chain.rig.open().notes == []
    chain.check()


def test_it_survives_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(16 * number, 16 * number + 32, number + 2)
    chain.release("b", 0, 40)
    rig.abandon()
    assert rig.open(NEXT_BOOT).notes == []
    chain.check()


# --- the compactor -------------------------------------------------------------------------------------------


def test_a_compactor_finds_what_was_told_to_the_one_before(chain: Chain) -> None:
    rig = chain.rig
    rig.engine.cuts.release(0, BLOCKS, chain.of("a"))
    assert rig.store is not None
    rig.store.releases.take()  # by one who was killed
    rig.compactor.close()
    rig.compactor = Compactor(rig.store)
    rig.give_back()
    assert chain.kept_bytes("a") == 0


def test_more_ranges_than_are_remembered_all_come_back(chain: Chain) -> None:
    for _ in range(10):
        for block_no in range(BLOCKS):
            chain.rig.engine.cuts.release(block_no, block_no + 1, chain.of("a"))
    chain.rig.give_back()
    assert chain.kept_bytes("a") == 0
    assert chain.rig.compactor.is_done


def test_one_that_is_gone_meanwhile_is_let_go(chain: Chain) -> None:
    rig, cut = chain.rig, chain.of("a")
    rig.engine.cuts.release(0, BLOCKS, cut)
    rig.compactor.give_back()
    chain.delete("a")
    rig.give_back()
    assert not cut.is_open
    assert not cut.path.exists()


def test_nothing_comes_back_while_entries_are_being_copied(chain: Chain) -> None:
    """The next one is hidden and not merged yet."""
    chain.delete("b")
    chain.rig.compactor.drain()
    before = chain.kept_bytes("a")
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == before


def test_beside_the_newest_that_is_hidden_it_comes_back(chain: Chain) -> None:
    """That one is merged after the next cut only."""
    chain.delete("c")
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == 0
    chain.check()


# --- the live server -----------------------------------------------------------------------------------------


def test_one_that_is_deleted_releases_nothing_more(chain: Chain) -> None:
    cuts = [chain.of(name) for name in "ab"]
    for name in "ba":
        chain.delete(name)
    for cut in cuts:
        with pytest.raises(SnapshotEnded):
            chain.rig.engine.cuts.release(0, 1, cut)


@pytest.fixture
def cut_meanwhile(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that has the snapshot of that name come while the first of two pieces is being released."""

    def come(name: str) -> None:
        real = Relief._note_released

        def noted(relief: Relief, *arguments: object) -> int:
            monkeypatch.setattr(Relief, "_note_released", real)
            count = real(relief, *arguments)  # type: ignore[arg-type]
            chain.cut(name)
            return count

        monkeypatch.setattr("cow.live.relief._PIECE_BLOCKS", BLOCKS // 2)
        monkeypatch.setattr(Relief, "_note_released", noted)

    return come


def test_the_newest_that_gets_older_meanwhile_is_released(chain: Chain, cut_meanwhile: Callable[[str], None]) -> None:
    cut_meanwhile("d")
    assert chain.release("c", 0, BLOCKS) == BLOCKS
    chain.check()


def test_one_without_a_name_that_is_replaced_meanwhile_has_ended(
    chain: Chain, cut_meanwhile: Callable[[str], None]
) -> None:
    chain.cut("")
    cut = chain.of("")
    cut_meanwhile("d")
    with pytest.raises(SnapshotEnded):
        chain.rig.engine.cuts.release(0, BLOCKS, cut)
    del chain.expected[""]
    chain.check()


def test_a_lost_block_that_is_released_is_missed_by_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(1)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    chain.released["a"] = set()
    chain.write(0, 4, 2)
    assert isinstance(rig.image, SpoiltImage)
    rig.make_cut("b")
    assert chain.of("a").numbers.state is State.DAMAGED
    chain.release("a", 1, 2)
    assert chain.of("a").numbers.state is State.ACTIVE


def test_a_lost_block_that_is_merged_into_a_released_one_is_missed_by_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(1)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    rig.make_cut("b")
    chain.released["a"] = set()
    chain.expected["b"] = b""
    chain.write(0, 4, 2)
    rig.make_cut("c")
    chain.release("a", 0, 4)
    chain.delete("b")
    rig.compactor.drain()
    assert chain.merge() == 1
    assert chain.of("a").numbers.state is State.ACTIVE


def test_what_is_counted_while_one_is_merged_is_right(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.delete("b")
    chain.rig.compactor.drain()

    real = merging.merge_maps

    def copied(store: Store, generation: int) -> None:
        real(store, generation)
        chain.release("a", 0, 24)

    monkeypatch.setattr("cow.live.chain.merge_maps", copied)
    with chain.rig.rules.changing():
        assert chain.merge() == 1
    chain.check()


def test_what_is_released_while_the_compactor_looks_stays_for_the_one_before(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.rig.give_back()
    chain.rig.engine.cuts.name(chain.of("b").generation, "other")

    class ReleasedMeanwhile(GiveBack):
        def __init__(self, store: Store, cut: Cut, needs: Needs) -> None:
            super().__init__(store, cut, needs)
            monkeypatch.undo()
            chain.rig.engine.cuts.release(0, BLOCKS, cut)
            chain.released["c"] |= set(range(BLOCKS))

    monkeypatch.setattr(released, "GiveBack", ReleasedMeanwhile)
    chain.rig.give_back()
    chain.expected["other"], chain.released["other"] = chain.expected.pop("b"), chain.released.pop("b")
    chain.check()
