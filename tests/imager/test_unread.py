"""Reading on past bad sectors: exactly these are zeros, listed, and known to whatever reads the backup later."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_sectors import SECTOR_BYTES, bad_device, bad_image, with_zeros
from imager_rig import MIB, Bench, Done, make_ext4, mounted, names_in, read_manifest, run, running, snapfs

from snapfs.imager.unread import Ranges, Salvager, UnreadableError, pieces_with_zeros
from tests.cli.command_line import SNAPFS

SKIP = ("--on-read-error", "skip")
# One alone, a run across the border of a piece that is read at once, one at the very end.
BAD = (100, *range(4090, 4100), 24 * MIB // SECTOR_BYTES - 1)
RANGES = [(100 * 512, 512), (4090 * 512, 10 * 512), (24 * MIB - 512, 512)]
# As the page cache reads them, below the snapshot view and below a device with such sectors.
PAGES = [(12 * 4096, 4096), (511 * 4096, 2 * 4096), (24 * MIB - 4096, 4096)]


@pytest.fixture
def good(bench: Bench) -> Path:
    """An image that no map is read of, so that every block is used."""
    path = bench.path / "good.img"
    path.write_bytes(random.Random(1).randbytes(24 * MIB))
    bench.image.unlink()
    return path


@pytest.fixture
def bad(bench: Bench, good: Path) -> Iterator[Path]:
    with bad_device(good, bench.image, BAD) as device:
        yield device


def unread(backup: Path) -> list[tuple[int, int]]:
    return [(one["offset"], one["length"]) for one in read_manifest(backup)["unread"]]


def tells(done: Done, *words: str) -> None:
    """Done, but for what is named in one sentence."""
    assert (done.code, done.err.count("\n")) == (4, 1), done.err
    assert all(word in done.err for word in words), done.err


def test_a_backup_stops_at_a_bad_sector_unless_told_otherwise(bench: Bench, bad: Path) -> None:
    snapfs("backup", bad, bench.path / "backup").refuses(1, "cannot be read", "--on-read-error skip")
    assert "backup" not in names_in(bench.path)


@pytest.mark.parametrize("words", [(), ("--format", "qcow2", "--compress")], ids=" ".join)
def test_only_bad_sectors_are_zeros_and_all_that_follows_knows(
    bench: Bench, good: Path, bad: Path, words: tuple[str, ...]
) -> None:
    backup, restored = bench.path / "backup", bench.path / "restored"
    tells(snapfs("backup", bad, backup, *SKIP, "--verify", *words), "6144 bytes in 3 ranges", "backup.map")
    assert unread(backup) == RANGES
    assert "6144 bytes" in snapfs("verify", backup).ok().out
    assert json.loads(snapfs("verify", backup, "--json").ok().out)["unread_bytes"] == 6144
    tells(snapfs("restore", backup, restored, "--verify"), "6144 bytes", "zeros")
    assert restored.read_bytes() == with_zeros(good, BAD)


def test_ddrescue_goes_on_with_the_map_and_the_backup_stays_whole(bench: Bench, good: Path, bad: Path) -> None:
    backup, restored = bench.path / "backup", bench.path / "restored"
    done = snapfs("backup", bad, backup, *SKIP)
    command = done.err.partition("to try again: ")[2].strip().rstrip(".").split()
    assert command == ["ddrescue", "-r", "3", str(bad), str(backup), f"{backup}.map"]
    run(*command)
    assert backup.read_bytes() == with_zeros(good, BAD), "the disk is as bad as before"
    run("ddrescue", "-r", "1", good, backup, f"{backup}.map")
    run("cmp", good, backup)
    snapfs("verify", backup).ok()
    tells(snapfs("restore", backup, restored), "rescued")
    run("cmp", good, restored)


def test_a_map_of_an_older_backup_goes_with_it(bench: Bench, good: Path, bad: Path) -> None:
    backup = bench.path / "backup"
    assert snapfs("backup", bad, backup, *SKIP).code == 4
    other = bench.path / "other.img"
    other.write_bytes(b"x" * MIB)
    snapfs("backup", other, backup, "--force", *SKIP).ok()
    assert "backup.map" not in names_in(bench.path)
    assert unread(backup) == []


def test_a_file_of_somebody_else_is_not_replaced_by_the_map(bench: Bench, good: Path) -> None:
    (bench.path / "backup.map").write_text("dear")
    snapfs("backup", good, bench.path / "backup", *SKIP).refuses(2, "backup.map", "--force")
    snapfs("backup", good, bench.path / "backup").ok()
    assert (bench.path / "backup.map").read_text() == "dear"


def test_a_device_is_narrowed_down_to_its_own_sectors(bench: Bench, good: Path) -> None:
    backup = bench.path / "backup"
    with bad_device(good, bench.image, BAD, 4096) as device:
        tells(snapfs("backup", device, backup, *SKIP), "16384 bytes")
    assert unread(backup) == PAGES
    assert backup.read_bytes() == with_zeros(good, BAD, 4096)


def test_an_image_file_on_a_bad_disk_is_narrowed_down_too(bench: Bench) -> None:
    content, good, backup = bench.path / "content", bench.path / "good.img", bench.path / "backup"
    content.mkdir()
    (content / "disk.img").write_bytes(random.Random(2).randbytes(3 * MIB))
    make_ext4(good, 16 * MIB, content)
    block_no = int(run("debugfs", "-R", "bmap /disk.img 300", good))
    bench.image.unlink()
    point = bench.path / "point"
    with bad_device(good, bench.image, [block_no * 8 + 3]) as device, mounted(device, point, "-o", "ro,noload"):
        tells(snapfs("backup", point / "disk.img", backup, *SKIP), "512 bytes at")
    assert unread(backup) == [(300 * 4096 + 3 * 512, 512)]
    assert backup.read_bytes() == with_zeros(content / "disk.img", [300 * 8 + 3])


def test_a_stream_has_zeros_and_may_have_a_manifest(bench: Bench, good: Path, bad: Path) -> None:
    manifest = bench.path / "stream.json"
    command = [SNAPFS, "backup", bad, "-", *SKIP, "--manifest", manifest]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout == with_zeros(good, BAD)) == (4, True)
    assert (bench.path / "stream.json.map").exists()
    assert len(json.loads(manifest.read_text())["unread"]) == 3


@pytest.mark.parametrize("words", [(), ("--format", "qcow2")], ids=" ".join)
def test_a_resumed_backup_knows_what_the_first_run_could_not_read(
    bench: Bench, bad: Path, words: tuple[str, ...]
) -> None:
    backup = bench.path / "backup"
    with running("backup", bad, backup, *words, *SKIP, "--rate", "8M") as process:
        process.await_bytes(17 * MIB)
        process.interrupt()
        assert process.wait().code == 130
    snapfs("backup", bad, backup, *words, "--resume").refuses(1, "cannot be read")
    with running("backup", bad, backup, *words, *SKIP, "--resume") as process:
        tells(process.wait(), "6144 bytes")
        assert process.progress[0]["total_bytes"] == 8 * MIB, "what was done is not done again"
    assert unread(backup) == RANGES
    snapfs("verify", backup).ok()


def test_what_a_snapshot_cannot_give_is_never_released(bench: Bench, good: Path) -> None:
    backup = bench.path / "backup"
    with bad_image(good, bench.image, BAD), bench.mounted():
        snapfs("backup", bench.live, bench.path / "stopped").refuses(3, "--on-read-error skip")
        tells(snapfs("backup", bench.live, backup, *SKIP, "--release"), "16384 bytes")
        snapshot = bench.status()["snapshot"]
        assert (snapshot["owed_blocks"], snapshot["released_blocks"]) == (4, 24 * MIB // 4096 - 4)
    assert unread(backup) == PAGES
    assert backup.read_bytes() == with_zeros(good, BAD, 4096)


def test_bad_sectors_that_nobody_uses_do_not_matter(bench: Bench) -> None:
    """The second half of a cell in which an ext4 uses only the first block."""
    good = bench.path / "good.img"
    bench.image.rename(good)
    used = json.loads(snapfs("map", good, "--json").ok().out)["extents"]
    free = next(one["start"] for one in used if not one["data"] and one["start"] % 65536)
    with bad_device(good, bench.image, [free // SECTOR_BYTES]) as device:
        snapfs("backup", device, bench.path / "backup").ok()
    snapfs("restore", bench.path / "backup", bench.path / "restored").ok()
    run("e2fsck", "-fn", bench.path / "restored")


def test_a_disk_of_which_nothing_can_be_read_makes_no_backup(bench: Bench) -> None:
    good = bench.path / "good.img"
    good.write_bytes(bytes(64 << 10))
    bench.image.unlink()
    with bad_device(good, bench.image, range(128)) as device:
        snapfs("backup", device, bench.path / "backup", *SKIP).refuses(1, "Nothing of")
    assert "backup" not in names_in(bench.path)


class Disk:
    """Memory of which some units cannot be read."""

    def __init__(self, data: bytes, bad: set[int], unit_bytes: int) -> None:
        self.data, self.bad, self.unit_bytes = data, bad, unit_bytes
        self.reads = 0

    def read_into(self, view: memoryview, offset: int) -> None:
        self.reads += 1
        units = range(offset // self.unit_bytes, -(-(offset + len(view)) // self.unit_bytes))
        if self.bad.intersection(units):
            raise UnreadableError("bad; go on.")
        view[:] = self.data[offset : offset + len(view)]

    reread_into = read_into

    def reread_unit_bytes(self) -> int:
        return self.unit_bytes


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_bad_units_are_unread(seed: int) -> None:
    dice = random.Random(seed)
    length = dice.randrange(1, 40 * 512)
    data = dice.randbytes(length)
    units = -(-length // 512)
    bad = set(dice.sample(range(units), dice.randrange(min(units, 6) + 1)))
    ranges = Ranges()
    view = memoryview(bytearray(b"x" * length))
    Salvager(Disk(data, bad, 512), ranges).read_into(view, 0)
    expected = bytearray(data)
    for unit in bad:
        expected[unit * 512 : (unit + 1) * 512] = bytes(len(expected[unit * 512 : (unit + 1) * 512]))
    assert bytes(view) == expected
    assert b"".join(map(bytes, pieces_with_zeros(memoryview(data), 0, ranges))) == expected
    assert ranges.total_bytes == sum(min(512, length - unit * 512) for unit in bad)
    assert len(ranges) == sum(unit - 1 not in bad for unit in bad), "neighbours are one range"
    whole = sorted([*ranges, *ranges.outside(0, length)])
    assert [start for start, _ in whole] == [0, *(start + count for start, count in whole)][:-1]


def test_one_bad_sector_costs_few_reads() -> None:
    disk = Disk(bytes(2 << 20), {1234}, 512)
    Salvager(disk, Ranges()).read_into(memoryview(bytearray(2 << 20)), 0)
    assert disk.reads <= 2 + 2 * 12
