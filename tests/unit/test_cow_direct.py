"""Large appends past the page cache: where they lie, and when they are not done."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cow.disk import direct as module
from cow.disk.codec import encode
from cow.disk.direct import ALIGN_BYTES, DirectWriter
from cow.disk.files import Data, Files
from cow.disk.layout import Counter, Place, pack_place
from cow.disk.numbers import Control
from cow.disk.segment_files import Segments
from cow.disk.segments import ScanProblem, SegmentReader, SegmentWriter, scan_segment

RAW = os.urandom(60_000)
FEW, MANY, SEED = 1, 5, 7


@pytest.fixture(autouse=True)
def large_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_BYTES", 3 * len(RAW))
    # However slow the machine is.
    monkeypatch.setattr(module, "_LEAST_BYTES_PER_S", 0.0)


def new_writer(folder: Path, files: Files, direct: DirectWriter) -> SegmentWriter:
    control = Control(folder / "control", files, writable=True, create=True)
    control[Counter.NEXT_SEGMENT] = 1
    return SegmentWriter(Segments(folder, 1, SEED), control, files, direct=direct)


def append(folder: Path, counts: list[int], files: Files) -> list[Place]:
    writer = new_writer(folder, files, DirectWriter(files))
    places: list[Place] = []
    for count in counts:
        first = len(places)
        places += writer.append([encode(number, 1, 1, RAW, seed=SEED) for number in range(first, first + count)])
    writer.close()
    return places


def assert_all_found(folder: Path, places: list[Place]) -> None:
    reader = SegmentReader(Segments(folder, 1, SEED), Files())
    for number, place in enumerate(places):
        assert bytes(reader.read(pack_place(place), number)[1]) == RAW
    reader.close()
    found = list(scan_segment(Segments(folder, 1, SEED), 1, Files(), verify=True))
    assert not [item for item in found if isinstance(item, ScanProblem)]
    assert [item[0].offset for item in found if not isinstance(item, ScanProblem)] == [p.offset for p in places]


def test_large_appends_begin_at_a_page_and_small_ones_fill_up(tmp_path: Path) -> None:
    places = append(tmp_path, [FEW, MANY, FEW, FEW, MANY], Files())
    assert [places[number].offset % ALIGN_BYTES for number in (1, 6, 8)] == [0, 0, 0]
    assert places[7].offset == places[6].offset + places[6].length
    assert_all_found(tmp_path, places)


class NoDirectFiles(Files):
    """A filesystem that takes no such writes."""

    refusals = 0

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            self.refusals += 1
            raise OSError(errno.EINVAL, "not aligned")
        super().pwrite(fd, data, offset)


def test_where_it_is_refused_once_it_is_not_tried_again(tmp_path: Path) -> None:
    files = NoDirectFiles()
    assert_all_found(tmp_path, append(tmp_path, [MANY, MANY], files))
    assert files.refusals == 1


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    class FullFiles(Files):
        def pwrite(self, fd: int, data: Data, offset: int) -> None:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        append(tmp_path, [MANY], FullFiles())


def test_a_slow_disk_is_written_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_BYTES_PER_S", float("inf"))
    files = Files()
    direct = DirectWriter(files)
    writer = new_writer(tmp_path, files, direct)
    suited = []
    for _ in range(5):
        suited.append(direct.suits(MANY * len(RAW)))
        writer.append([encode(0, 1, 1, RAW, seed=SEED)] * MANY)
    writer.close()
    assert suited == [True, True, True, True, False]
