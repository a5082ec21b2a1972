"""What a snapshot calls a hole: free, or never written and preserved as that; it reads as zeros from then on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from changes import watching
from engine_rig import Rig, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from cow.disk import filesystems
from cow.disk.image import Image
from cow.disk.layout import CutCounter, pack_missing
from cow.errors import SnapshotEnded
from cow.holes import clipped, next_data, next_hole
from cow.seeking import SeekingReader

BLOCK_BYTES = 4096
BLOCKS = 40
IMAGE_BYTES = BLOCKS * BLOCK_BYTES - 1000
HOLE = range(10, 30)
OLD = pattern(IMAGE_BYTES)
MakeRig = Callable[..., Rig]


def extent(first: int, end: int) -> tuple[int, int]:
    return first * BLOCK_BYTES, min(end * BLOCK_BYTES, IMAGE_BYTES)


def with_hole(rig: Rig) -> Rig:
    """Before it is opened: these blocks of the image are on no disk."""
    start, stop = extent(HOLE.start, HOLE.stop)
    rig.files.punch(rig.image_fd, start, stop - start)
    rig.old = OLD[:start] + bytes(stop - start) + OLD[stop:]
    return rig


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    rig = with_hole(make_rig(OLD))
    rig.open()
    return rig


def holes_of(reader: SeekingReader) -> list[tuple[int, int]]:
    """As whoever copies the file looks for them."""
    found, at = [], 0
    while at < IMAGE_BYTES:
        data = reader.seek(at, IMAGE_BYTES, for_hole=False)
        if data is None:
            data = IMAGE_BYTES
        if at < data:
            found.append((at, data))
        at = IMAGE_BYTES if data == IMAGE_BYTES else reader.seek(data, IMAGE_BYTES, for_hole=True) or 0
    return found


def test_a_hole_of_the_image_is_one_of_the_snapshot(rig: Rig) -> None:
    assert holes_of(rig.reader) == [extent(10, 30)]


def test_it_stays_one_for_the_snapshot_when_it_is_written_to(rig: Rig) -> None:
    rig.write(12 * BLOCK_BYTES, pattern(2 * BLOCK_BYTES, 2))
    assert holes_of(rig.reader) == [extent(10, 30)]
    rig.compactor.drain()
    assert holes_of(rig.reader) == [extent(10, 30)]


def test_a_hole_that_comes_later_is_none(rig: Rig) -> None:
    rig.engine.zero(2 * BLOCK_BYTES, 2 * BLOCK_BYTES, give_back=True)
    assert holes_of(rig.reader) == [extent(10, 30)]
    rig.compactor.drain()
    assert holes_of(rig.reader) == [extent(10, 30)]
    rig.make_cut()
    assert holes_of(rig.reader) == [extent(2, 4), extent(10, 30)]


@pytest.mark.parametrize("after_a_cut", [False, True])
def test_a_hole_that_comes_as_it_is_looked_for_is_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, after_a_cut: bool
) -> None:
    """The image has it when it is asked, and all the same there was data at the cut: that is known only then."""
    rig.engine.cuts.name(rig.cut.generation, "first")
    reader, real, came = rig.reader, rig.image.holes, []

    def holes(offset: int, stop: int) -> Iterator[tuple[int, int]]:
        if not came:
            came.append(offset)
            if after_a_cut:
                rig.make_cut()
            rig.engine.zero(0, 2 * BLOCK_BYTES, give_back=True)
        return real(offset, stop)

    monkeypatch.setattr(rig.image, "holes", holes)
    assert holes_of(reader) == [extent(10, 30)]
    assert came
    assert reader.read(0, IMAGE_BYTES) == rig.old


def test_free_blocks_are_holes_once_the_map_is_known(rig: Rig) -> None:
    rig.settle_free([(5, 12), (38, BLOCKS)])
    assert holes_of(rig.reader) == [extent(5, 30), extent(38, BLOCKS)]


def test_an_older_snapshot_has_its_holes_in_later_ones(rig: Rig) -> None:
    rig.make_cut("first")
    first = rig.reader
    for number in range(3):
        rig.write((10 + 2 * number) * BLOCK_BYTES, pattern(BLOCK_BYTES, number))
        rig.compactor.drain()
        rig.make_cut(f"cut{number}")
    rig.write(20 * BLOCK_BYTES, pattern(BLOCK_BYTES, 9))
    assert holes_of(first) == [extent(10, 30)]
    rig.compactor.drain()
    assert holes_of(first) == [extent(10, 30)]
    assert holes_of(rig.reader)[0] == extent(11, 12)


def test_the_event_loop_is_not_kept_waiting_for_the_image(rig: Rig) -> None:
    rig.settle_free([(0, 5)])
    assert rig.reader.try_seek(0, extent(0, 3)[1], for_hole=False) == (True, None)
    assert rig.reader.try_seek(0, IMAGE_BYTES, for_hole=True) == (True, 0)
    assert rig.reader.try_seek(0, IMAGE_BYTES, for_hole=False) == (False, None)
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    rig.write(10 * BLOCK_BYTES, pattern(2 * BLOCK_BYTES, 2))
    rig.compactor.drain()
    assert rig.reader.try_seek(5 * BLOCK_BYTES, extent(0, 8)[1], for_hole=True) == (True, extent(0, 8)[1])
    # There may be many, and each is read.
    assert rig.reader.try_seek(10 * BLOCK_BYTES, extent(0, 12)[1], for_hole=True) == (False, None)


def test_of_a_fragmented_image_no_more_is_looked_at_than_is_asked_for(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a copy, which asks for each of its holes, takes far longer than to read them all."""
    rig = make_rig(pattern(1 << 20))
    for offset in range(0, 1 << 20, 2 * BLOCK_BYTES):
        rig.files.punch(rig.image_fd, offset, BLOCK_BYTES)
    rig.open()
    looked, real = [], rig.image._seek
    monkeypatch.setattr(rig.image, "_seek", lambda offset, whence: looked.append(offset) or real(offset, whence))
    assert rig.reader.seek(0, 1 << 20, for_hole=False) == BLOCK_BYTES
    assert max(looked) <= 1 << 17


def test_whether_it_is_a_hole_is_known_without_a_look_for_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes long where there is much data, and is asked for each chunk that a folder lists."""
    asked, real = [], rig.image._seek
    monkeypatch.setattr(rig.image, "_seek", lambda offset, whence: asked.append(whence) or real(offset, whence))
    assert not rig.image.is_hole(0, BLOCK_BYTES)
    assert asked == [os.SEEK_DATA]


def test_what_the_image_lost_is_no_hole(rig: Rig) -> None:
    os.truncate(rig.image_path, 15 * BLOCK_BYTES)
    rig.image.look()
    os.truncate(rig.image_path, IMAGE_BYTES)
    assert holes_of(rig.reader) == [extent(10, 15)]


@pytest.mark.parametrize("before_the_cut", [True, False])
def test_what_the_image_lost_is_no_hole_of_an_older_snapshot(rig: Rig, before_the_cut: bool) -> None:
    rig.engine.cuts.name(rig.cut.generation, "first")
    first = rig.reader
    if not before_the_cut:
        rig.make_cut()
    os.truncate(rig.image_path, 15 * BLOCK_BYTES)
    rig.image.look()
    os.truncate(rig.image_path, IMAGE_BYTES)
    if before_the_cut:
        rig.make_cut()
    # The server of the snapshots has an image of its own, which did not look meanwhile.
    rig.image.shortest_bytes = IMAGE_BYTES
    assert holes_of(first) == [extent(10, 15)]


def test_a_loss_that_a_later_snapshot_notes_meanwhile_is_no_hole_of_an_older_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.engine.cuts.name(rig.cut.generation, "first")
    first = rig.reader
    rig.make_cut("second")
    second = rig.cut
    rig.make_cut()
    assert holes_of(first) == [extent(10, 30)]
    holes = Image.holes

    def note_short(image: Image, offset: int, stop: int) -> Iterator[tuple[int, int]]:
        second.numbers[CutCounter.MISSING_BYTES] = pack_missing(IMAGE_BYTES - 15 * BLOCK_BYTES)
        return holes(image, offset, stop)

    monkeypatch.setattr(Image, "holes", note_short)
    assert holes_of(first) == []


def test_of_a_snapshot_that_is_over_nothing_is_told(rig: Rig) -> None:
    over = rig.reader
    rig.make_cut()
    with pytest.raises(SnapshotEnded):
        over.seek(0, IMAGE_BYTES, for_hole=False)


def test_what_a_fuse_server_calls_a_hole_is_not_believed(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have written nothing of it yet."""
    monkeypatch.setattr(filesystems, "_filesystem_type", lambda fd: 0x65735546)
    rig = with_hole(make_rig(OLD))
    rig.open()
    assert holes_of(rig.reader) == []
    rig.engine.zero(HOLE.start * BLOCK_BYTES, 4 * BLOCK_BYTES, give_back=True)
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == 4


RUN = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 8)).map(lambda run: (run[0], min(BLOCKS, sum(run))))
STEP = st.one_of(
    st.tuples(st.just("write"), RUN, st.integers(0, 3)),
    st.tuples(st.just("punch"), RUN),
    st.tuples(st.just("free"), RUN),
    st.tuples(st.just("cut")),
    st.tuples(st.just("compact")),
)


class Poisoned:
    """What each snapshot has to be, and what was ever called a hole of it."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.content = with_hole(rig), bytearray(rig.old)
        rig.open()
        rig.engine.cuts.name(rig.cut.generation, "first")
        self.snapshots: list[tuple[SeekingReader, bytearray]] = [(rig.reader, bytearray(rig.old))]
        self.called: list[tuple[SeekingReader, int, int]] = []

    def look(self) -> None:
        for reader, content in self.snapshots:
            for start, end in holes_of(reader):
                assert not any(content[start:end]), (start, end)
                self.called.append((reader, start, end))

    def write(self, run: tuple[int, int], seed: int) -> None:
        start, stop = extent(*run)
        data = pattern(stop - start, seed) if seed else bytes(stop - start)
        self.rig.write(start, data)
        self.content[start:stop] = data

    def punch(self, run: tuple[int, int]) -> None:
        start, stop = extent(*run)
        self.rig.compactor.drain()
        self.rig.engine.zero(start, stop - start, give_back=True)
        self.content[start:stop] = bytes(stop - start)

    def free(self, run: tuple[int, int]) -> None:
        """A map is known once."""
        if self.rig.numbers[CutCounter.FREE_BLOCKS]:
            return
        self.rig.settle_free([run])
        start, stop = extent(*run)
        self.snapshots[-1][1][start:stop] = bytes(stop - start)

    def cut(self) -> None:
        self.rig.make_cut(f"cut{len(self.snapshots)}")
        self.snapshots.append((self.rig.reader, bytearray(self.content)))

    def compact(self) -> None:
        self.rig.compactor.drain()

    def check(self) -> None:
        for reader, start, end in self.called:
            assert not any(reader.read(start, end - start))
        for reader, content in self.snapshots:
            assert reader.read(0, IMAGE_BYTES) == content


@settings(max_examples=20, deadline=None)
@given(st.lists(STEP, max_size=8))
def test_whatever_is_called_a_hole_was_zeros_and_stays_so(steps: list[tuple[object, ...]]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="holes-"))
    rig = Rig(directory, OLD)
    try:
        poisoned = Poisoned(rig)
        for name, *arguments in steps:
            if name in ("write", "punch"):
                # Also between any two steps of a write.
                with watching(poisoned.look):
                    getattr(poisoned, str(name))(*arguments)
            else:
                getattr(poisoned, str(name))(*arguments)
            poisoned.look()
        poisoned.check()
    finally:
        rig.close()
        shutil.rmtree(directory)


def some(*holes: tuple[int, int]) -> Iterator[tuple[int, int]]:
    yield from holes


def test_lseek_finds_its_way_between_holes() -> None:
    assert next_data(some((0, 4), (4, 8), (10, 12)), 2, 20) == 8
    assert next_data(some((4, 8)), 2, 20) == 2
    assert next_data(some((4, 20)), 5, 20) is None
    assert next_hole(some((4, 8)), 5, 20) == 5
    assert next_hole(some((4, 8)), 2, 20) == 4
    assert next_hole(some(), 2, 20) == 20
    assert list(clipped([(0, 4), (6, 9)], 2, 7)) == [(2, 4), (6, 7)]


def test_what_is_past_the_end_of_a_file_that_was_cut_short_is_no_hole(rig: Rig) -> None:
    """Also before anybody has noticed: it may have been data."""
    start, end = extent(HOLE.start, HOLE.stop)
    middle = (start + end) // 2
    os.truncate(rig.image_fd, middle)
    assert list(rig.image.holes(0, IMAGE_BYTES)) == [(start, middle)]
    assert rig.image.hole_end(end, IMAGE_BYTES) == end
