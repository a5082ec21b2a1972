"""Several snapshots at once: kept by a name, read through the later ones, deleted and merged in any order."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_rig import BOOT, NEXT_BOOT, QuickFiles, Rig, SpoiltImage, pattern

from cow.disk.codec import RecordHeader
from cow.disk.cut import Cut
from cow.disk.layout import LOST_ENTRY, Durability, State
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.served import Preserved, count_preserved, served_before
from cow.errors import Damaged, SnapshotEnded, SnapshotLost
from cow.live.size import stored_in
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 512
BLOCKS = 64
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


class Chain:
    """A rig, and what each of its snapshots held, by name."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.expected: dict[str, bytes] = {}

    def write(self, first: int, count: int, seed: int) -> None:
        offset = first * BLOCK_BYTES
        self.rig.write(offset, pattern(count * BLOCK_BYTES, seed)[: len(OLD) - offset])

    def cut(self, name: str) -> None:
        self.rig.make_cut(name)
        self.expected[name] = self.rig.live()

    def generation(self, name: str) -> int:
        assert self.rig.store is not None
        return next(one.generation for one in self.rig.store.header.cuts if one.name == name)

    def delete(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.generation(name)):
            gone.let_go()
        del self.expected[name]

    def merge(self) -> int:
        """How many could be merged."""
        self.rig.compactor.drain()
        count = 0
        while (gone := self.rig.engine.cuts.merge()) is not None:
            gone.let_go()
            count += 1
        self.rig.rules.look()
        return count

    def read_at(self, name: str, block_no: int) -> bytes:
        return self.read(name, 1, block_no)

    def read(self, name: str, blocks: int = BLOCKS, first: int = 0) -> bytes:
        store = self.rig.store
        assert store is not None
        cut = store.open_cut(self.generation(name), writable=False)
        reader = SnapshotReader(replace(store, cut=cut), self.rig.image)
        try:
            return reader.read(first * BLOCK_BYTES, blocks * BLOCK_BYTES)
        finally:
            reader.close()
            cut.let_go()

    def check(self) -> None:
        self.rig.rules.look()
        for name, content in self.expected.items():
            assert self.read(name) == content, name


def segments_open(chain: Chain) -> list[str]:
    """One for each descriptor."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in paths if path.startswith(str(chain.rig.store_path / "segments"))]


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    """Opened; the first cut has no name."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=request.param, staging_slots=32)
    rig.open()
    return Chain(rig)


def test_each_snapshot_is_of_its_own_instant(chain: Chain) -> None:
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
        chain.check()
    chain.merge()
    chain.check()


def test_a_block_is_copied_once_however_many_there_are(chain: Chain) -> None:
    for name in "abc":
        chain.cut(name)
    chain.write(0, 8, 2)
    assert chain.rig.store is not None
    assert [cut.index.count() for cut in chain.rig.store.cuts] == [0, 0, 8]
    chain.check()


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac", "cbda"])
def test_deleted_in_any_order_the_others_stay_right(chain: Chain, order: str) -> None:
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.cut("last")
    for name in order:
        chain.delete(name)
        chain.check()
        chain.merge()
        chain.check()
    assert chain.rig.store is not None
    assert len(chain.rig.store.cuts) == 1
    assert sorted(path.name for path in chain.rig.store_path.glob("cut-*")) == ["cut-00000006"]


def test_a_deleted_one_ends_for_its_readers_alone(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    reader = chain.rig.reader
    chain.write(4, 8, 3)
    chain.cut("c")
    chain.delete("b")
    with pytest.raises(SnapshotEnded):
        reader.read(0, 1)
    chain.check()


def test_a_reader_goes_on_through_cuts_that_come_and_go(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    for number in range(6):
        chain.write(number * 5, 12, number + 2)
        assert reader.read(0, len(OLD)) == expected
        chain.cut(f"later{number}")
        assert reader.read(0, len(OLD)) == expected
    for number in (3, 1, 5, 0):
        chain.delete(f"later{number}")
        chain.merge()
        assert reader.read(0, len(OLD)) == expected


def test_an_unnamed_one_that_gets_a_name_is_not_replaced(chain: Chain) -> None:
    chain.cut("")
    assert chain.rig.store is not None
    chain.rig.engine.cuts.name(chain.rig.cut.generation, "late")
    chain.expected = {"late": chain.expected[""]}
    chain.write(0, 8, 2)
    chain.cut("next")
    chain.write(4, 8, 3)
    chain.check()
    chain.rig.abandon()
    chain.rig.open()
    chain.check()


def test_a_reader_lets_go_of_cuts_that_were_merged(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    generations = []
    for number in range(4):
        chain.write(number * 5, 12, number + 2)
        chain.cut(f"later{number}")
        generations.append(chain.generation(f"later{number}"))
        assert reader.read(0, len(OLD)) == expected
        chain.delete(f"later{number}")
        chain.merge()
    assert reader.read(0, len(OLD)) == expected
    assert chain.rig.store is not None
    assert [chain.rig.store.looked_through.try_hold(one) for one in generations[:-2]] == [None, None]


def test_what_was_merged_and_then_moved_is_found_where_it_is_now(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    chain.cut("b")
    chain.write(8, 8, 2)
    chain.cut("c")
    assert reader.read(0, len(OLD)) == expected
    store = chain.rig.store
    assert store is not None
    b = store.open_cut(chain.generation("b"), writable=True)
    chain.delete("b")
    assert chain.merge() == 1
    # Nobody keeps that up to date any more.
    b.index.set_entries(8, [LOST_ENTRY] * 8)
    b.let_go()
    assert reader.read(0, len(OLD)) == expected


def test_a_list_of_cuts_that_cannot_be_opened_now_stays_as_it_was(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    for number, name in enumerate("bcd"):
        chain.write(number * 8, 12, number + 2)
        chain.cut(name)
    chain.write(8, 40, 9)
    store = chain.rig.store
    assert store is not None
    opened = store.looked_through.hold

    def hold(generation: int, open_it: Callable[[], Cut]) -> Cut:
        if generation == chain.generation("c"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(generation, open_it)

    with monkeypatch.context() as context:
        context.setattr(store.looked_through, "hold", hold)
        with pytest.raises(OSError, match="open files"):
            reader.read(0, len(OLD))
    assert reader.read(0, len(OLD)) == expected


def test_readers_of_many_have_each_segment_open_once(chain: Chain) -> None:
    for number in range(12):
        chain.cut(f"cut{number}")
        chain.write(number * 5, 5, number + 2)
        chain.rig.compactor.drain()
    readers = [chain.rig.new_reader(chain.generation(f"cut{number}")) for number in range(12)]
    for number, reader in enumerate(readers):
        assert reader.read(0, len(OLD)) == chain.expected[f"cut{number}"]
    names = segments_open(chain)
    assert 12 <= len(names) <= len(set(names)) + 1  # and that which is appended to
    readers[3].forget()
    assert len(segments_open(chain)) <= 1


def test_an_unnamed_one_is_replaced_by_the_next(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    chain.write(4, 8, 3)
    chain.rig.make_cut()
    chain.write(8, 8, 4)
    chain.check()
    assert chain.merge() == 1
    chain.check()
    assert chain.rig.store is not None
    assert [one.name for one in chain.rig.store.header.cuts] == ["a", ""]


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


def test_all_of_them_are_carried_on(chain: Chain) -> None:
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.rig.seal()
    chain.rig.open()
    chain.check()
    chain.rig.abandon()
    chain.rig.open()
    chain.check()
    chain.write(40, 10, 9)
    chain.rig.abandon()
    chain.rig.open()
    chain.check()


def test_all_of_them_survive_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.delete("b")
    rig.abandon()
    rig.open(NEXT_BOOT)
    chain.check()
    chain.merge()
    chain.check()
    rig.abandon()
    rig.open()
    chain.check()


def test_an_overflow_ends_all_of_them(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.rig.compactor.drain()
    chain.rig.engine.room.set_limit(1)
    chain.rig.engine.write(0, pattern(BLOCK_BYTES, 5))
    assert chain.rig.store is not None
    assert not any(cut.numbers.is_kept for cut in chain.rig.store.cuts)


def read_blocks(chain: Chain, name: str) -> dict[int, bytes]:
    """Those that can be read."""
    content = {}
    for block_no in range(BLOCKS):
        with contextlib.suppress(Damaged):
            content[block_no] = chain.read_at(name, block_no)
    return content


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("boot_id", [BOOT, NEXT_BOOT])
def test_a_damaged_copy_is_never_replaced_by_a_later_one(chain: Chain, is_merged: bool, boot_id: bytes) -> None:
    if chain.rig.durability is Durability.PROCESS and boot_id is NEXT_BOOT:
        pytest.skip("nothing survives that")
    for name in ("a", "b", "last"):
        chain.cut(name)
        chain.write(0, 16, len(chain.expected) + 1)
    chain.write(16, 8, 9)
    chain.rig.compactor.drain()
    (segment,) = (chain.rig.store_path / "segments").glob(f"*-{chain.generation('a'):08d}")
    chain.delete("b")
    if is_merged:
        assert chain.merge() == 1
    chain.rig.rules.are_kept = False
    chain.rig.abandon()
    segment.unlink()
    chain.rig.open(boot_id)
    expected = chain.expected["a"]
    found = read_blocks(chain, "a")
    assert sorted(found) == list(range(16, BLOCKS))
    for block_no, content in found.items():
        assert content == expected[block_no * BLOCK_BYTES :][:BLOCK_BYTES], block_no
    assert chain.read("last") == chain.expected["last"]


def test_a_released_copy_is_never_replaced_by_a_later_one(make_rig: MakeRig) -> None:
    """It is damaged, and the snapshot before needs it; then the power is lost."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER)
    rig.open()
    chain = Chain(rig)
    for name in ("a", "b", "c", "last"):
        chain.cut(name)
        chain.write(0 if name in "bc" else 32, 8, len(chain.expected) + 1)
        if name == "b":
            rig.engine.cuts.release(0, 8)
    (segment,) = (rig.store_path / "segments").glob(f"*-{chain.generation('b'):08d}")
    chain.delete("c")
    assert chain.merge() == 1
    rig.rules.are_kept = False
    rig.abandon()
    segment.unlink()
    rig.open(NEXT_BOOT)
    with pytest.raises(Damaged):
        chain.read("a", 1)


def test_a_block_that_was_lost_stays_so_whatever_is_merged(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.spoil(3)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    chain.write(3, 1, 2)
    chain.cut("b")
    chain.write(3, 1, 3)
    chain.cut("last")
    chain.delete("b")
    assert chain.merge() == 1
    rig.abandon()
    rig.open()
    chain.expected["a"] = OLD
    assert sorted(set(range(BLOCKS)) - set(read_blocks(chain, "a"))) == [3]


def test_one_whose_end_the_disk_could_not_be_told_does_not_come_back(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    assert chain.rig.store is not None
    lost = [one.snapshot_id for one in chain.rig.store.header.cuts if one.name == "a"]
    chain.rig.abandon()
    request = replace(chain.rig.request(), is_lost=lost.__contains__)
    chain.rig.request = lambda boot_id=BOOT: request  # type: ignore[method-assign]
    assert chain.rig.open().notes == ["the store's disk failed in use, and the snapshot a was lost"]
    with pytest.raises(SnapshotLost):
        chain.read("a")
    assert chain.read("b") == chain.expected["b"]


def overflow(chain: Chain) -> None:
    """Two with a name, and what they held is lost."""
    for name in "ab":
        chain.cut(name)
        chain.write(0, 8, 2)
    chain.rig.compactor.drain()
    chain.rig.engine.room.set_limit(1)
    chain.rig.engine.write(8 * BLOCK_BYTES, pattern(BLOCK_BYTES, 5))
    chain.expected.clear()


def test_what_was_lost_takes_no_room_from_the_next(chain: Chain) -> None:
    overflow(chain)
    chain.rig.compactor.tidy()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    chain.rig.engine.room.set_limit(8 * BLOCK_BYTES)
    chain.cut("c")
    assert chain.rig.engine.size.shown().stored_bytes == 0
    chain.write(0, 4, 6)
    chain.check()


def test_what_was_lost_is_removed_also_when_the_next_comes_first(chain: Chain) -> None:
    overflow(chain)
    chain.rig.engine.room.set_limit(0)
    chain.cut("c")
    chain.rig.compactor.drain()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    chain.write(0, 4, 6)
    chain.check()


def test_what_is_free_costs_nothing_whatever_was_lost_before(chain: Chain) -> None:
    overflow(chain)
    chain.rig.engine.room.set_limit(0)
    chain.cut("c")
    assert chain.rig.settle_free([(16, 32)]) == 16
    chain.write(16, 16, 6)
    assert chain.rig.cut.index.count() == 0
    chain.rig.abandon()
    chain.rig.open()
    assert chain.rig.cut.index.count() == 0


def test_what_an_image_lost_is_missing_in_all_before_whatever_a_later_one_preserves(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    os.truncate(chain.rig.image_path, 20 * BLOCK_BYTES)
    with pytest.raises(OSError, match="cut short"):
        chain.rig.engine.write(40 * BLOCK_BYTES, b"x")
    os.truncate(chain.rig.image_path, len(OLD))
    chain.cut("c")
    chain.write(0, BLOCKS, 2)
    assert chain.read("c") == chain.expected["c"]
    for name in "ab":
        assert chain.read(name, 20) == chain.expected[name][: 20 * BLOCK_BYTES]
        with pytest.raises(Damaged, match="cut short"):
            chain.read(name)


def test_what_an_image_lost_is_missing_also_after_a_merge(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    image = chain.rig.image
    os.truncate(chain.rig.image_path, 32 * BLOCK_BYTES)
    with contextlib.suppress(OSError):
        image.check_whole()
    with contextlib.suppress(OSError):
        chain.rig.engine.read(40 * BLOCK_BYTES, BLOCK_BYTES)
    os.truncate(chain.rig.image_path, len(OLD))
    chain.rig.make_cut("c")
    chain.write(32, 16, 3)
    chain.rig.make_cut("d")
    chain.expected.clear()
    for gone in chain.rig.engine.cuts.forget(chain.generation("b")):
        gone.let_go()
    assert chain.merge() == 1
    assert sorted(read_blocks(chain, "a")) == list(range(32))


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


def test_one_whose_files_are_gone_is_called_damaged(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(4, 8, 3)
    generation = chain.generation("a")
    chain.rig.seal()
    shutil.rmtree(chain.rig.store_path / f"cut-{generation:08d}")
    chain.rig.rules.are_kept = False
    chain.rig.open()
    assert chain.rig.store is not None
    assert chain.rig.store.cuts[0].numbers.state is State.DAMAGED
    with pytest.raises(SnapshotLost):
        chain.read("a")
    assert chain.read("b") == chain.expected["b"]


def cut_image_short(chain: Chain, blocks: int) -> None:
    """What lies behind is lost, and zeros from the next cut on."""
    os.truncate(chain.rig.image_path, blocks * BLOCK_BYTES)
    chain.rig.image.look()
    os.truncate(chain.rig.image_path, len(OLD))


def test_what_an_image_lost_stays_missing_when_the_cut_that_noted_it_is_merged(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    cut_image_short(chain, 20)
    chain.delete("b")
    chain.cut("c")
    assert chain.merge() == 1
    assert chain.read("a", 20) == chain.expected["a"][: 20 * BLOCK_BYTES]
    with pytest.raises(Damaged, match="cut short"):
        chain.read_at("a", 20)


@pytest.mark.parametrize("is_hidden_again", [False, True])
@pytest.mark.parametrize("end", ["none", "kill", "power"])
def test_what_an_image_lost_is_not_replaced_by_what_a_later_one_preserved(
    chain: Chain, end: str, is_hidden_again: bool
) -> None:
    if end == "power" and chain.rig.durability is Durability.PROCESS:
        return
    chain.cut("a")
    if is_hidden_again:
        chain.cut("b")
    cut_image_short(chain, 20)
    chain.cut("c")
    chain.write(10, 20, 2)
    chain.cut("d")
    for name in ("b", "c") if is_hidden_again else ("c",):
        chain.delete(name)
    if end == "none":
        assert chain.merge()
    else:
        chain.rig.abandon()
        chain.rig.open(NEXT_BOOT if end == "power" else BOOT)
    for _ in range(2):
        assert chain.read("a", 20) == chain.expected["a"][: 20 * BLOCK_BYTES]
        for block_no in range(20, BLOCKS):
            with pytest.raises(Damaged):
                chain.read_at("a", block_no)
        chain.merge()
    assert chain.read("d") == chain.expected["d"]


def test_what_a_later_one_preserved_is_not_asked_of_the_image(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.spoil()
    rig.open()
    chain = Chain(rig)
    chain.cut("a")
    chain.cut("b")
    chain.write(3, 1, 2)
    assert isinstance(rig.image, SpoiltImage)
    rig.image.bad.add(3)
    assert chain.read("a") == chain.expected["a"]


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
