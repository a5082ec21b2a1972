"""Checking and dumping: stores in use, left behind, damaged, and one of each format that ever was."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from engine_rig import QuickFiles, Rig, pattern
from sample_store import OLD as SAMPLE_OLD
from sample_store import SAMPLES

from cow.disk.header import Header
from cow.disk.image import Image
from cow.disk.layout import Counter, CutCounter, State
from cow.disk.store import open_reader
from cow.errors import BlockReleased, StoreError
from cow.mount import check
from cow.mount.check import verify
from cow.mount.dump import dump
from cow.snapshot import SnapshotReader

OLD = pattern(40 * 4096)
MakeRig = Callable[..., Rig]


def used_rig(make_rig: MakeRig) -> Rig:
    """Blocks in a segment, in the ring, free and released."""
    rig = make_rig(OLD)
    rig.open()
    rig.settle_free([(30, 34)])
    rig.write(0, pattern(5 * 4096, 2))
    rig.engine.cuts.release(20, 22)
    rig.compactor.drain()
    rig.write(10 * 4096, pattern(4096, 3))
    return rig


def contents(path: Path) -> dict[Path, tuple[bytes, int]]:
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_a_store_in_use_is_whole_and_left_alone(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    before = contents(rig.store_path)
    report = verify(rig.store_path, rig.files)
    assert report.problems == []
    assert (report.records, report.blocks, report.damaged) == (1, 6, 0)
    assert contents(rig.store_path) == before


@pytest.mark.parametrize("end", ["seal", "abandon"])
def test_a_store_left_behind_is_whole(make_rig: MakeRig, end: str) -> None:
    rig = used_rig(make_rig)
    getattr(rig, end)()
    before = contents(rig.store_path)
    assert verify(rig.store_path, rig.files).is_whole
    assert contents(rig.store_path) == before


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.parametrize(
    ("name", "offset", "problem"),
    [
        ("cut-00000001/settled", 4, "settled: not what was sealed"),
        ("cut-00000001/index", 9 * 8, "index: not what was sealed"),
        ("cut-00000001/free", 3, "free: not what was noted when the map became known"),
        (
            "segments/00000001-00000001",
            100,
            "block 0: the record's checksum does not fit (segment 1, offset 0)",
        ),
    ],
)
def test_damage_is_named(make_rig: MakeRig, name: str, offset: int, problem: str) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    damage(rig.store_path / name, offset)
    report = verify(rig.store_path, rig.files)
    assert problem in report.problems
    assert not report.is_whole


def test_damaged_slot_is_named(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    assert rig.store is not None
    rig.store.staging.views(rig.control[Counter.FREED_SEQ], 1)[0][7] ^= 1
    report = verify(rig.store_path, rig.files)
    assert report.problems == ["block 10: the staged block's checksum does not fit"]
    assert report.damaged == 1


def test_a_lost_entry_is_named(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.rules.are_kept = False
    rig.cut.index.set_stored(2, 3, 0)
    problem = "block 2: overwritten, and nothing says where the old content is"
    assert verify(rig.store_path, rig.files).problems == [problem]


def test_missing_and_short_files_are_named(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    (rig.store_path / "control").unlink()
    os.truncate(rig.store_path / "cut-00000001/index", 5)
    problems = verify(rig.store_path, rig.files).problems
    assert problems == ["index: 5 bytes long instead of 320", "control: No such file or directory"]


@pytest.mark.parametrize("instead", ["nothing", "link", "file"])
def test_a_missing_directory_of_segments_is_named(make_rig: MakeRig, tmp_path: Path, instead: str) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    segments = rig.store_path / "segments"
    segments.rename(tmp_path / "elsewhere")
    if instead == "link":
        segments.symlink_to(tmp_path / "elsewhere")
    elif instead == "file":
        segments.touch()
    (problem,) = verify(rig.store_path, QuickFiles()).problems
    assert problem.startswith("segments: ")


def test_a_damaged_control_page_is_named(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    damage(rig.store_path / "control", 0)
    (problem,) = verify(rig.store_path, rig.files).problems
    assert problem.startswith("the store cannot be opened")


def test_an_overflowed_snapshot_is_named(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.numbers[CutCounter.STATE] = State.OVERFLOWED
    assert not verify(rig.store_path, rig.files).is_whole


def test_a_store_whose_last_snapshot_was_deleted_is_whole(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    assert rig.engine.cuts.forget(rig.cut.generation) == []
    rig.compactor.drain()
    rig.compactor.tidy()
    rig.seal()
    assert verify(rig.store_path, rig.files).problems == []


def test_of_several_snapshots_it_says_which_is_damaged(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.make_cut("mon")
    rig.make_cut("tue")
    rig.abandon()
    (rig.store_path / "cut-00000002" / "index").unlink()
    (rig.store_path / "staging").unlink()
    problems = verify(rig.store_path, rig.files).problems
    assert problems == ["cut 2 (mon): index: No such file or directory", "staging: No such file or directory"]


def test_many_problems_are_not_all_listed(make_rig: MakeRig) -> None:
    rig = make_rig(bytes(4 << 20))
    rig.open()
    rig.rules.are_kept = False
    for block_no in range(0, 1000, 2):
        rig.cut.settled.set_range(block_no, block_no + 1)
    report = verify(rig.store_path, rig.files)
    assert report.damaged == 500
    assert len(report.problems) == 101


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no snapshot"):
        verify(tmp_path, QuickFiles())
    with pytest.raises(StoreError, match="holds no snapshot"):
        list(dump(tmp_path, QuickFiles()))


def unpack(sample: Path, directory: Path) -> None:
    with tarfile.open(sample) as tar:
        # Python 3.11 has it from its fourth release on.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(directory)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_store_of_an_older_format_is_refused_by_name(tmp_path: Path, version: int) -> None:
    unpack(SAMPLES / f"format-{version}.tar.xz", tmp_path)
    older = rf"written by an older snapfs \(format {version}, this one knows 5\)"
    with pytest.raises(StoreError, match=older):
        open_reader(tmp_path / "store", QuickFiles())
    with pytest.raises(StoreError, match=older):
        verify(tmp_path / "store", QuickFiles())


@pytest.fixture(params=sorted(SAMPLES.glob("format-[5-9].tar.xz")), ids=lambda path: path.name)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An old store, unpacked, and the dump that belongs to it."""
    unpack(request.param, tmp_path)
    return tmp_path, request.param.with_name(request.param.name.replace(".tar.xz", ".dump"))


def test_a_store_of_every_format_is_dumped_the_same(sample: tuple[Path, Path]) -> None:
    directory, golden = sample
    assert "\n".join(dump(directory / "store", QuickFiles(), None)) + "\n" == golden.read_text()


def test_a_store_of_every_format_stays_readable(sample: tuple[Path, Path]) -> None:
    directory, _ = sample
    assert verify(directory / "store", QuickFiles()).is_whole
    store = open_reader(directory / "store", QuickFiles())
    fd = os.open(directory / "image", os.O_RDONLY)
    reader = SnapshotReader(store, Image(fd, len(SAMPLE_OLD), QuickFiles()))
    expected = bytearray(SAMPLE_OLD)
    expected[12 * 4096 : 14 * 4096] = bytes(2 * 4096)
    for first, end in ((0, 3), (5, 16)):
        offset, length = store.geometry.extent(first, end)
        assert reader.read(offset, length) == expected[offset : offset + length]
    with pytest.raises(BlockReleased):
        reader.read(3 * 4096, 1)
    store.close()
    os.close(fd)


def test_a_store_that_was_left_within_a_cut_is_whole(make_rig: MakeRig) -> None:
    """The header names the new one, and nobody lived to tell the readers."""
    rig = used_rig(make_rig)
    rig.make_cut("newer")
    rig.abandon()
    control = bytearray((rig.store_path / "control").read_bytes())
    assert control[-8:] == (2).to_bytes(8, "little")
    (rig.store_path / "control").write_bytes(control[:-8] + (1).to_bytes(8, "little"))
    assert verify(rig.store_path, rig.files).problems == []


def test_a_snapshot_that_is_deleted_meanwhile_is_no_damage(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = used_rig(make_rig)
    for name in ("older", "newer"):
        rig.make_cut(name)
    sizes = check.expected_files

    def late(path: Path, header: Header, generation: int) -> dict[str, tuple[Path, int]]:
        if rig.store is not None and len(rig.store.header.cuts) == len(header.cuts) == 2:
            for gone in rig.engine.cuts.forget(generation):
                gone.let_go()
        return sizes(path, header, generation)

    monkeypatch.setattr(check, "expected_files", late)
    assert verify(rig.store_path, rig.files).problems == []
    assert rig.store is not None
    assert len(rig.store.header.cuts) == 1


def test_the_checksum_of_a_record_is_what_the_document_says(sample: tuple[Path, Path]) -> None:
    """XXH3-64 of header and payload, seeded with the first 8 bytes of the store id."""
    store = sample[0] / "store"
    seed = int.from_bytes((store / "header").read_bytes()[60:68], "little")
    for segment in (store / "segments").iterdir():
        record = segment.read_bytes()
        payload_bytes, _, checksum = struct.unpack_from("<IIQ", record, 24)
        assert checksum == xxhash.xxh3_64_intdigest(record[:32] + record[40 : 40 + payload_bytes], seed)


def test_a_dump_is_bounded(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    lines = list(dump(rig.store_path, rig.files, 2))
    assert lines[lines.index("index:") + 1 :][:3] == [
        "  0 segment 1 offset 0 length " + lines[lines.index("index:") + 1].rsplit(" ", 1)[1],
        "  1 segment 1 offset 0 length " + lines[lines.index("index:") + 1].rsplit(" ", 1)[1],
        "  ...",
    ]
