"""Segments: appending, reading, and finding the way again after damage."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from cow.disk import segments as module
from cow.disk.codec import encode
from cow.disk.directory import SEGMENTS_NAME, remove_segments
from cow.disk.files import Files
from cow.disk.layout import LOST_ENTRY, RECORD, Counter, Place, pack_place
from cow.disk.numbers import Control
from cow.disk.segment_files import Segments, first_unused, present_segments, remove_segments_of
from cow.disk.segments import ScanProblem, SegmentReader, SegmentWriter, scan_segment
from cow.errors import Damaged

FILES = Files()
RNG, SEED = random.Random(2), 7
CONTENTS = [RNG.randbytes(600), bytes(4096), RNG.randbytes(4096), b"abc" * 300]
RECORDS = [encode(10 * number, 1, 1, raw, seed=SEED) for number, raw in enumerate(CONTENTS)]


def segments_in(directory: Path, generation: int = 1) -> Segments:
    """Those of one cut, into which none was merged."""
    return Segments(directory, generation, SEED, generation + 1)


def control_in(directory: Path) -> Control:
    path = directory / "control"
    control = Control(path, FILES, writable=True, create=not path.exists())
    control[Counter.NEXT_SEGMENT] = max(1, control[Counter.NEXT_SEGMENT])
    return control


def append(directory: Path, records: list[bytes] = RECORDS, generation: int = 1) -> list[Place]:
    control = control_in(directory)
    writer = SegmentWriter(segments_in(directory, generation), control, FILES)
    places = writer.append(records)
    writer.close()
    control.close()
    return places


def found_blocks(directory: Path, number: int = 1) -> list[int]:
    found = scan_segment(segments_in(directory), number, FILES, verify=True)
    return [item[1].block_no for item in found if not isinstance(item, ScanProblem)]


def test_records_are_read_back(tmp_path: Path) -> None:
    reader = SegmentReader(segments_in(tmp_path), FILES)
    for number, place in enumerate(append(tmp_path)):
        header, raw = reader.read(pack_place(place), 10 * number)
        assert (header.block_no, bytes(raw)) == (10 * number, CONTENTS[number])
    reader.close()


def test_a_new_writer_begins_a_new_segment(tmp_path: Path) -> None:
    append(tmp_path)
    (place,) = append(tmp_path, RECORDS[:1])
    assert (place.segment_no, place.offset) == (2, 0)
    assert segments_in(tmp_path).numbers() == [1, 2]


def test_a_number_is_not_used_again_when_its_segment_is_gone(tmp_path: Path) -> None:
    append(tmp_path)
    segments_in(tmp_path).path(1).unlink()
    assert [place.segment_no for place in append(tmp_path, generation=2)] == [2] * len(RECORDS)


def test_a_segment_of_one_who_was_killed_before_he_noted_its_number_is_left_alone(tmp_path: Path) -> None:
    segments_in(tmp_path).path(1).write_bytes(b"his")
    (place,) = append(tmp_path, RECORDS[:1])
    assert place.segment_no == 2
    assert segments_in(tmp_path).path(1).read_bytes() == b"his"


def test_a_cut_knows_its_own_segments_only(tmp_path: Path) -> None:
    for generation in (1, 2, 2, 4):
        append(tmp_path, RECORDS[:1], generation)
    assert [segments_in(tmp_path, generation).numbers() for generation in (1, 2, 3, 4)] == [[1], [2, 3], [], [4]]
    assert first_unused(tmp_path) == 5


def test_those_of_cuts_that_nobody_owns_go(tmp_path: Path) -> None:
    for generation in (1, 2, 3, 4):
        append(tmp_path, RECORDS[:1], generation)
    remove_segments_of(tmp_path, {1, 4}.__contains__)
    assert [segments_in(tmp_path, generation).numbers() for generation in (1, 2, 3, 4)] == [[], [2], [3], []]


def test_before_anybody_works_on_the_cuts_all_others_go(tmp_path: Path) -> None:
    directory = tmp_path / SEGMENTS_NAME
    directory.mkdir()
    for generation in (1, 2, 3, 4, 5):
        append(directory, RECORDS[:1], generation)
    remove_segments(tmp_path, [2, 4])
    assert sorted(number for number, _, _ in present_segments(directory)) == [2, 3, 4]


def test_a_merged_record_is_found_where_it_is(tmp_path: Path) -> None:
    (place,) = append(tmp_path, RECORDS[:1], generation=3)
    reader = SegmentReader(Segments(tmp_path, 1, SEED), FILES)
    assert reader.read(pack_place(place), 0)[0].block_no == 0
    reader.close()


def test_a_full_segment_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2 * len(RECORDS[0]))
    assert [place.segment_no for place in append(tmp_path, RECORDS[:1] * 5)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("entry", "block_no", "generation", "what"),
    [
        (pack_place(Place(1, 0, 64)), 0, 2, "segment 1 is missing"),
        (pack_place(Place(1, 0, 640)), 1, 1, "belongs to other blocks"),
        (pack_place(Place(1, 32, 640)), 0, 1, "no record where the index says"),
        (pack_place(Place(1, 1 << 20, 640)), 0, 1, "cut short"),
        (pack_place(Place(3, 0, 640)), 0, 1, "segment 3 is missing"),
        (LOST_ENTRY, 0, 1, "preserved content is lost"),
    ],
)
def test_what_is_not_the_right_record_is_damage(
    tmp_path: Path, entry: int, block_no: int, generation: int, what: str
) -> None:
    places = append(tmp_path)
    reader = SegmentReader(segments_in(tmp_path, generation), FILES)
    if entry == pack_place(Place(1, 0, 64)):
        entry = pack_place(places[0])
    with pytest.raises(Damaged, match=what):
        reader.read(entry, block_no)
    reader.close()


def test_many_segments_do_not_use_up_descriptors(tmp_path: Path) -> None:
    places = [append(tmp_path, RECORDS[:1])[0] for _ in range(140)]
    reader = SegmentReader(segments_in(tmp_path), FILES)
    before = len(os.listdir("/proc/self/fd"))
    for place in places + places:
        reader.read(pack_place(place), 0)
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    reader.close()


def test_a_scan_finds_all_records(tmp_path: Path) -> None:
    places = append(tmp_path)
    assert [
        item[0] for item in scan_segment(segments_in(tmp_path), 1, FILES) if not isinstance(item, ScanProblem)
    ] == places


@pytest.mark.parametrize("lost", range(len(RECORDS)))
@pytest.mark.parametrize("at", [0, 5, 24, 33, RECORD.size, RECORD.size + 1])
def test_a_scan_finds_its_way_after_each_damaged_record(tmp_path: Path, lost: int, at: int) -> None:
    place = append(tmp_path)[lost]
    data = bytearray(segments_in(tmp_path).path(1).read_bytes())
    data[place.offset + at] ^= 0x40
    segments_in(tmp_path).path(1).write_bytes(data)
    assert found_blocks(tmp_path) == [10 * number for number in range(len(RECORDS)) if number != lost]
    problems = [
        item for item in scan_segment(segments_in(tmp_path), 1, FILES, verify=True) if isinstance(item, ScanProblem)
    ]
    assert [problem.offset for problem in problems] == [place.offset]


def test_a_scan_of_a_segment_cut_anywhere_finds_what_is_whole(tmp_path: Path) -> None:
    places = append(tmp_path)
    data = segments_in(tmp_path).path(1).read_bytes()
    for length in range(0, len(data) + 1, 16):
        segments_in(tmp_path).path(1).write_bytes(data[:length])
        whole = [10 * number for number, place in enumerate(places) if place.offset + place.length <= length]
        found = found_blocks(tmp_path)
        assert found[: len(whole)] == whole
        assert len(found) - len(whole) <= 1, "only the padding of the last one may be missing"


def test_a_scan_passes_holes_without_complaint(tmp_path: Path) -> None:
    places = append(tmp_path, RECORDS * 10)
    fd = os.open(segments_in(tmp_path).path(1), os.O_RDWR)
    os.pwrite(fd, bytes(places[4].length), places[4].offset)
    FILES.punch(fd, 8192, 16384)
    os.close(fd)
    punched = {
        at for at, place in enumerate(places) if place.offset < 8192 + 16384 and place.offset + place.length > 8192
    }
    found = list(scan_segment(segments_in(tmp_path), 1, FILES, verify=True))
    kept = [item[0] for item in found if not isinstance(item, ScanProblem)]
    assert kept == [place for at, place in enumerate(places) if at != 4 and at not in punched]


class FailingFiles(Files):
    """A disk whose flushes, or flushes of directories, fail when told."""

    fails = ""

    def sync_data(self, fd: int) -> None:
        if self.fails == "data":
            raise OSError(errno.EIO, "lost")

    def sync_directory(self, path: Path) -> None:
        if self.fails == "directory":
            raise OSError(errno.EIO, "lost")


def test_nothing_follows_records_whose_flush_failed(tmp_path: Path) -> None:
    writer = SegmentWriter(segments_in(tmp_path), control_in(tmp_path), FailingFiles(), durable=True)
    writer.append(RECORDS[:1])
    writer.distrust()
    assert writer.failed_flushes == 1
    assert writer.append(RECORDS[:1])[0].segment_no == 2
    writer.close()


def test_a_failed_flush_before_the_next_segment_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", len(RECORDS[0]))
    files = FailingFiles()
    writer = SegmentWriter(segments_in(tmp_path), control_in(tmp_path), files, durable=True)
    writer.append(RECORDS[:1])
    files.fails = "data"
    with pytest.raises(OSError, match="lost"):
        writer.append(RECORDS[:1])
    assert writer.failed_flushes == 1
    writer.close()


def test_a_segment_whose_name_may_be_lost_is_not_used(tmp_path: Path) -> None:
    files = FailingFiles()
    files.fails = "directory"
    writer = SegmentWriter(segments_in(tmp_path), control_in(tmp_path), files, durable=True)
    for _ in range(2):
        with pytest.raises(OSError, match="lost"):
            writer.append(RECORDS[:1])
    files.fails = ""
    assert writer.append(RECORDS[:1]) == [Place(3, 0, len(RECORDS[0]))]
    assert segments_in(tmp_path).numbers() == [3]
    writer.close()


def test_nothing_more_goes_to_a_segment_that_could_not_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever removes segments takes it for finished once a later one was begun.
    monkeypatch.setattr(module, "SEGMENT_BYTES", len(RECORDS[0]) + len(RECORDS[1]))
    files = FailingFiles()
    writer = SegmentWriter(segments_in(tmp_path), control_in(tmp_path), files, durable=True)
    writer.append(RECORDS[:1])
    files.fails = "directory"
    with pytest.raises(OSError, match="lost"):
        writer.append(RECORDS[2:3])
    files.fails = ""
    assert writer.append(RECORDS[1:2])[0].segment_no == 3
    writer.close()


def test_the_last_segment_number_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEGMENT_NO", 0)
    with pytest.raises(OSError, match="no segment numbers left"):
        SegmentWriter(segments_in(tmp_path), control_in(tmp_path), FILES).append(RECORDS[:1])
