"""Damage to every file of a store: reads give the right old bytes or an error, the image is never touched."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_rig import QuickFiles, Rig, pattern

from cow.disk.layout import Counter, CutCounter, State
from cow.disk.store import open_reader
from cow.errors import CowError, Damaged, StoreError
from cow.mount.recovery import Outcome

BLOCK_BYTES = 4096
IMAGE_BYTES = 40 * BLOCK_BYTES + 5
OLD = pattern(IMAGE_BYTES)
FILES = [
    "header",
    "control",
    "staging",
    "lock",
    "cut-00000001/settled",
    "cut-00000001/changed",
    "cut-00000001/released",
    "cut-00000001/free",
    "cut-00000001/index",
    "cut-00000001/numbers",
    "cut-00000001/intact",
    "cut-00000001/seal",
    "segments/00000001-00000001",
    "segments/00000002-00000001",
]
MakeRig = Callable[..., Rig]


@dataclass
class LeftBehind:
    """A rig that was used and left, with a copy of its store to damage again and again."""

    rig: Rig
    template: Path
    live: bytes
    times_ns: tuple[int, int]

    def restore(self) -> None:
        self.rig.abandon()
        os.pwrite(self.rig.image_fd, self.live, 0)
        os.utime(self.rig.image_fd, ns=self.times_ns)
        shutil.rmtree(self.rig.store_path, ignore_errors=True)
        shutil.copytree(self.template, self.rig.store_path)


def leave(rig: Rig, tmp_path: Path, end: str) -> LeftBehind:
    """A store with two segments and, after a kill, blocks that only the ring holds."""
    rig.open()
    live = bytearray(OLD)
    for number, block_no in enumerate((0, 3, 4, 5, 20, 21, 30)):
        data = pattern(BLOCK_BYTES + 9, 50 + number)
        rig.write(block_no * BLOCK_BYTES, data)
        live[block_no * BLOCK_BYTES : block_no * BLOCK_BYTES + len(data)] = data
        if number == 3:
            rig.compactor.drain()
            rig.abandon()
            rig.open()
    rig.compactor.drain()
    rig.write(IMAGE_BYTES - 10, b"the end is")
    live[-10:] = b"the end is"
    if end == "seal":
        rig.seal()
    else:
        rig.abandon()
    info = os.fstat(rig.image_fd)
    template = tmp_path / "template"
    shutil.copytree(rig.store_path, template)
    return LeftBehind(rig, template, bytes(live), (info.st_atime_ns, info.st_mtime_ns))


def damages(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "deleted", lambda file: file.unlink()
    size_bytes = path.stat().st_size
    if not size_bytes:
        return
    for length in (0, size_bytes // 2, size_bytes - 1):
        yield f"truncated to {length}", lambda file, length=length: os.truncate(file, length)
    rng = random.Random(size_bytes)
    places = {0, size_bytes - 1, *(rng.randrange(size_bytes) for _ in range(12))}
    for number in {"control": Counter, "numbers": CutCounter}.get(path.name, ()):
        places |= {number * 8, number * 8 + 6}
    for place in sorted(places):
        yield f"flipped at {place}", lambda file, place=place: flip(file, place, 1 << place % 8)


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def readable_blocks(rig: Rig, when: str) -> int:
    """Read every block; those that can be read are right."""
    right = 0
    for block_no in range(rig.geometry.block_count):
        offset, length = rig.geometry.extent(block_no, block_no + 1)
        try:
            found = rig.reader.read(offset, length)
        except CowError:
            continue
        assert found == OLD[offset : offset + length], f"{when}: block {block_no}"
        right += 1
    return right


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", ["seal", "kill"])
def test_damage_never_gives_wrong_bytes(make_rig: MakeRig, tmp_path: Path, end: str, name: str) -> None:
    left = leave(make_rig(OLD, staging_slots=16), tmp_path, end)
    if name.endswith("/seal") and end == "kill":
        assert not (left.template / name).exists()
        return
    rig = left.rig
    # Bits that are flipped stay so; what a block then reads as is looked at here.
    rig.rules.are_kept = False
    for kind, damage in damages(left.template / name):
        when = f"{name} {kind} after {end}"
        left.restore()
        damage(rig.store_path / name)
        try:
            opened = rig.open()
        except StoreError:
            assert rig.image_path.read_bytes() == left.live, when
            continue
        assert opened.outcome is Outcome.CARRIED_ON, when
        readable_blocks(rig, when)
        assert rig.live() == left.live, when
        rig.write(0, pattern(IMAGE_BYTES, 99))
        rig.compactor.drain()
        readable_blocks(rig, when)
        assert rig.live() == pattern(IMAGE_BYTES, 99), when


@pytest.mark.parametrize("name", ["settled", "changed", "index", "numbers", "staging", "control"])
def test_what_else_proves_is_made_whole_after_a_clean_end(make_rig: MakeRig, tmp_path: Path, name: str) -> None:
    left = leave(make_rig(OLD), tmp_path, "seal")
    path = left.rig.store_path / "cut-00000001" / name
    (path if path.exists() else left.rig.store_path / name).unlink()
    left.rig.open()
    assert left.rig.snapshot() == OLD
    assert left.rig.numbers.state is State.ACTIVE


@pytest.mark.parametrize("name", ["settled", "changed", "index"])
def test_one_map_lost_after_a_kill_is_made_whole(make_rig: MakeRig, tmp_path: Path, name: str) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    (left.rig.store_path / "cut-00000001" / name).unlink()
    opened = left.rig.open()
    assert opened.notes == [f"the store was damaged ({name}) and has been made whole again"]
    assert left.rig.snapshot() == OLD


def test_changed_map_that_was_lost_calls_every_written_block_changed(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "seal")
    left.rig.open()
    before = list(left.rig.cut.changed.set_runs())
    left.restore()
    (left.rig.store_path / "cut-00000001/changed").unlink()
    left.rig.open()
    assert list(left.rig.cut.changed.set_runs()) == before


def test_lost_ring_after_a_kill_loses_only_what_it_held(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    (left.rig.store_path / "staging").unlink()
    opened = left.rig.open()
    assert opened.notes == ["blocks of the snapshot that are lost and read as errors: 2"]
    assert readable_blocks(left.rig, "") == left.rig.geometry.block_count - 2
    assert left.rig.numbers.state is State.DAMAGED


@pytest.mark.parametrize("name", ["control", "cut-00000001/numbers"])
def test_lost_numbers_after_a_kill_make_the_snapshot_unreadable_for_good(
    make_rig: MakeRig, tmp_path: Path, name: str
) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    (left.rig.store_path / name).unlink()
    for _ in range(2):
        left.rig.open()
        assert readable_blocks(left.rig, "") == 0
        assert left.rig.numbers.state is State.DAMAGED
        left.rig.abandon()


@pytest.mark.parametrize("names", [("settled", "index"), ("settled", "released"), ("settled", "free")])
def test_what_might_pass_for_owed_is_not_read(make_rig: MakeRig, tmp_path: Path, names: tuple[str, str]) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    for name in names:
        (left.rig.store_path / "cut-00000001" / name).unlink()
    left.rig.open()
    assert readable_blocks(left.rig, "") == 0


def test_settled_and_index_lost_after_a_clean_end_come_back_from_the_records(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    left = leave(make_rig(OLD), tmp_path, "seal")
    for name in ("settled", "index"):
        (left.rig.store_path / "cut-00000001" / name).unlink()
    left.rig.open()
    assert left.rig.snapshot() == OLD


def test_a_record_lost_with_settled_and_index_makes_all_unreadable(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "seal")
    for name in ("cut-00000001/settled", "cut-00000001/index", "segments/00000002-00000001"):
        (left.rig.store_path / name).unlink()
    left.rig.open()
    assert readable_blocks(left.rig, "") == 0


def test_store_without_its_header_is_not_taken_for_a_new_one(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "seal")
    (left.rig.store_path / "header").unlink()
    with pytest.raises(StoreError, match="has lost its header"):
        left.rig.open()
    assert (left.rig.store_path / "cut-00000001/seal").exists()


def test_overflow_is_known_even_if_the_numbers_forget_it(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    rig = left.rig
    rig.open()
    rig.compactor.drain()
    rig.engine.room.set_limit(1)
    rig.engine.write(10 * BLOCK_BYTES, b"no room")
    rig.numbers[CutCounter.STATE] = State.ACTIVE
    rig.abandon()
    rig.open()
    assert rig.numbers.state is State.OVERFLOWED


def test_a_reader_of_a_damaged_store_says_so(make_rig: MakeRig, tmp_path: Path) -> None:
    left = leave(make_rig(OLD), tmp_path, "kill")
    flip(left.rig.store_path / "control", 0, 1)
    with pytest.raises(StoreError, match="control page"):
        open_reader(left.rig.store_path, QuickFiles())


def test_a_segment_that_has_another_name_elsewhere_is_damage(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(0, OLD[::-1])
    rig.compactor.drain()
    os.link(rig.cut.segments.path(1), tmp_path / "elsewhere")
    with pytest.raises(Damaged, match="segment 1 is no plain file"):
        rig.reader.read(0, BLOCK_BYTES)


@pytest.mark.parametrize("how", ["seal", "kill"])
def test_a_store_without_its_segments_says_so_when_it_is_opened(make_rig: MakeRig, tmp_path: Path, how: str) -> None:
    left = leave(make_rig(OLD), tmp_path, how)
    shutil.rmtree(left.rig.store_path / "segments")
    opened = left.rig.open()
    assert any("lost and read as errors" in note for note in opened.notes)
    assert left.rig.numbers.state is State.DAMAGED
