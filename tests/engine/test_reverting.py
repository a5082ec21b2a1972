"""The image becomes what a snapshot shows; whatever happens meanwhile, no snapshot changes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_rig import BOOT, NEXT_BOOT, Rig, pattern
from stops import recording

from cow.disk.layout import CutCounter, Durability
from cow.disk.revert_note import UNKNOWN_TARGET, decode_note, encode_note, read_revert_note
from cow.errors import BlockReleased, BufferFull, Damaged, SnapshotEnded
from cow.live import reverting
from cow.live.overflow import OverflowPolicy
from cow.live.reverting import Revert

BLOCK_BYTES = 4096
BLOCKS = 24
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


class Stopped(Exception):
    """A test wants no more of it."""


def generation(rig: Rig, name: str) -> int:
    assert rig.store is not None
    return next(one.generation for one in rig.store.header.cuts if one.name == name)


def revert_to(rig: Rig, name: str) -> Revert:
    assert rig.store is not None
    number = generation(rig, name)
    return Revert(rig.store, rig.engine, number, rig.new_reader(number).read_into)


def revert(rig: Rig, name: str) -> Revert:
    done = revert_to(rig, name)
    # Nobody makes room in the ring meanwhile.
    rig.compactor.drain()
    with rig.rules.changing():
        done.run()
    return done


def write(rig: Rig, first: int, count: int, seed: int) -> None:
    offset = first * BLOCK_BYTES
    rig.write(offset, pattern(count * BLOCK_BYTES, seed)[: len(OLD) - offset])


def delete(rig: Rig, name: str) -> None:
    for gone in rig.engine.cuts.forget(generation(rig, name)):
        gone.let_go()


def merge(rig: Rig) -> None:
    rig.compactor.drain()
    while (gone := rig.engine.cuts.merge()) is not None:
        gone.let_go()


def read(rig: Rig, name: str) -> bytes:
    return rig.new_reader(generation(rig, name)).read(0, len(OLD))


@pytest.fixture(params=list(Durability))
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    """Three snapshots, each followed by writes."""
    rig = make_rig(OLD, durability=request.param)
    rig.open()
    chain(rig)
    return rig


def chain(rig: Rig) -> dict[str, bytes]:
    """Writes after each of them, the last block too; what each holds."""
    contents = {}
    for name, first in (("a", 0), ("b", 6), ("c", 14)):
        rig.make_cut(name)
        contents[name] = rig.live()
        write(rig, first, 10, first + 2)
    return contents


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_image_is_the_snapshot_and_the_snapshots_are_what_they_were(rig: Rig, name: str) -> None:
    contents = {one: read(rig, one) for one in "abc"}
    rig.make_cut("since")
    contents["since"] = rig.live()
    revert(rig, name)
    assert rig.live() == contents[name]
    assert {one: read(rig, one) for one in contents} == contents


def test_it_can_be_taken_back(rig: Rig) -> None:
    since = rig.live()
    rig.make_cut("since")
    revert(rig, "a")
    revert(rig, "since")
    assert rig.live() == since


def test_what_is_equal_is_not_written(rig: Rig) -> None:
    target = read(rig, "c")
    rig.engine.write(14 * BLOCK_BYTES, target[14 * BLOCK_BYTES : 20 * BLOCK_BYTES])
    assert revert(rig, "c").written_bytes == len(OLD) - 20 * BLOCK_BYTES
    assert revert(rig, "c").written_bytes == 0


def test_to_the_newest_nothing_has_to_be_preserved(rig: Rig) -> None:
    before = rig.numbers[CutCounter.PRESERVED_BLOCKS]
    revert(rig, "c")
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == before


def test_cuts_that_are_hidden_or_merged_between_are_read_through(rig: Rig) -> None:
    target = read(rig, "a")
    delete(rig, "b")
    revert(rig, "a")
    assert rig.live() == target
    write(rig, 3, 9, 40)
    rig.make_cut("d")
    merge(rig)
    revert(rig, "a")
    assert rig.live() == target == read(rig, "a")


def test_a_note_is_there_from_the_first_write_until_the_end(rig: Rig) -> None:
    assert rig.store is not None
    work, path = revert_to(rig, "a"), rig.store_path
    target_id = rig.store.header.cuts[-3].snapshot_id
    noted = []
    work.run(lambda: noted.append(read_revert_note(path)))
    assert noted == [target_id]
    assert read_revert_note(path) is None


def test_one_that_is_stopped_goes_on(rig: Rig) -> None:
    target, work = read(rig, "a"), revert_to(rig, "a")

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        work.run(stop)
    rig.abandon()
    rig.open()
    assert read_revert_note(rig.store_path) is not None
    revert(rig, "a")
    assert rig.live() == target
    assert read_revert_note(rig.store_path) is None


def test_a_free_block_of_the_target_is_left(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.make_cut("a")
    rig.settle_free([(2, 5)])
    write(rig, 0, 8, 2)
    written = rig.live()
    revert(rig, "a")
    low, high = 2 * BLOCK_BYTES, 5 * BLOCK_BYTES
    assert rig.live() == OLD[:low] + written[low:high] + OLD[high:]


def test_a_released_block_refuses_it_before_anything_is_written(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.make_cut("a")
    write(rig, 0, 8, 2)
    rig.engine.cuts.release(4, 5)
    before = rig.live()
    with pytest.raises(BlockReleased):
        revert(rig, "a")
    assert rig.live() == before
    assert read_revert_note(rig.store_path) is None


def test_one_that_was_deleted_meanwhile_refuses_it_before_anything_is_noted(rig: Rig) -> None:
    work = revert_to(rig, "b")
    delete(rig, "b")
    before = rig.live()
    with pytest.raises(SnapshotEnded):
        work.run()
    assert rig.live() == before
    assert read_revert_note(rig.store_path) is None


def test_a_lost_block_refuses_it_before_anything_is_written(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(4)
    rig.open()
    rig.make_cut("a")
    write(rig, 0, 8, 2)
    before = rig.live()
    with pytest.raises(Damaged):
        revert(rig, "a")
    assert rig.live() == before


def test_a_block_that_the_image_cannot_give_is_written(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.make_cut("a")
    write(rig, 0, 8, 2)
    rig.compactor.drain()
    rig.make_cut("since")
    rig.abandon()
    rig.spoil(4)
    rig.open()
    revert(rig, "a")
    assert rig.live() == OLD


@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_without_room_it_stops_and_no_snapshot_ends(make_rig: MakeRig, policy: OverflowPolicy) -> None:
    rig = make_rig(OLD, policy=policy)
    rig.open()
    contents = chain(rig)
    rig.make_cut("since")
    contents["since"] = rig.live()
    rig.compactor.drain()
    rig.engine.room.set_limit(1)
    rig.rules.at_rest = False
    with pytest.raises(BufferFull) as error:
        revert(rig, "a")
    assert error.value.errno == errno.ENOSPC
    assert {one: read(rig, one) for one in contents} == contents
    rig.engine.room.set_limit(0)
    revert(rig, "a")
    assert rig.live() == contents["a"]
    assert {one: read(rig, one) for one in contents} == contents


def test_without_room_the_way_back_is_open(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    chain(rig)
    rig.make_cut("since")
    since = rig.live()
    rig.engine.room.set_limit(3 * BLOCK_BYTES)
    with pytest.raises(BufferFull):
        revert(rig, "a")
    revert(rig, "since")
    assert rig.live() == since
    assert read_revert_note(rig.store_path) is None


def test_afterwards_the_policy_is_what_it_was(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, policy=OverflowPolicy.BREAK_SNAPSHOT)
    rig.open()
    rig.make_cut("a")
    revert(rig, "a")
    rig.engine.room.set_limit(1)
    write(rig, 0, 1, 2)
    assert [event.kind.value for event in rig.events][-1] == "overflow"


# --- the note ------------------------------------------------------------------------------------------------


def test_a_note_says_which_snapshot() -> None:
    assert decode_note(encode_note(b"an id of 16 byte")) == b"an id of 16 byte"


@pytest.mark.parametrize("at", range(32))
def test_a_note_that_was_damaged_is_one_of_a_target_that_nobody_knows(at: int) -> None:
    data = bytearray(encode_note(b"an id of 16 byte"))
    data[at] ^= 1
    assert decode_note(bytes(data)) == UNKNOWN_TARGET
    assert decode_note(bytes(data[:at])) == UNKNOWN_TARGET


def test_when_no_snapshot_survives_it_is_said(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    chain(rig)

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        revert_to(rig, "a").run(stop)
    rig.abandon()
    assert "partly of one instant" in rig.open(NEXT_BOOT).notes[-1]
    assert read_revert_note(rig.store_path) is None


# --- stopped at every change ---------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four blocks, so that there are many."""
    monkeypatch.setattr(reverting, "_PIECE_BYTES", 4 * BLOCK_BYTES)


def stop_everywhere(make_rig: MakeRig, tmp_path: Path, durability: Durability, *, power: bool) -> None:
    rig = make_rig(OLD, durability=durability)
    rig.open()
    contents = chain(rig)
    rig.make_cut("since")
    contents["since"] = rig.live()
    rig.engine.sync()
    with recording(rig, tmp_path, power=power) as recorder:
        # What the recorder takes for flushed begins here.
        rig.seal()
        rig.open()
        work = revert_to(rig, "a")
        recorder.arm()
        work.run()
        recorder.progress.written = 1
    assert len(recorder.moments) > 80
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else BOOT
        left = Rig(moment.directory, OLD, durability=durability)
        try:
            check_after(left, contents, boot, f"at change {moment.number}", is_done=moment.progress.written == 1)
        finally:
            left.remove()


def check_after(rig: Rig, contents: dict[str, bytes], boot: bytes, when: str, *, is_done: bool) -> None:
    assert rig.open(boot).notes == [], when
    if read_revert_note(rig.store_path) is None:
        assert rig.live() == contents["a"] or (not is_done and rig.live() == contents["since"]), when
    assert {name: read(rig, name) for name in contents} == contents, when
    revert(rig, "a")
    assert rig.live() == contents["a"], when
    assert {name: read(rig, name) for name in contents} == contents, when


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("durability", list(Durability))
def test_killed_at_every_change_it_is_noted_or_whole(
    make_rig: MakeRig, tmp_path: Path, durability: Durability
) -> None:
    stop_everywhere(make_rig, tmp_path, durability, power=False)


@pytest.mark.usefixtures("small_pieces")
def test_power_lost_at_every_change_it_is_noted_or_whole(make_rig: MakeRig, tmp_path: Path) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, power=True)
