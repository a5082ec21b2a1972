"""The damage matrix: every file of a kept store deleted, cut short or with one byte flipped.

Of a store that was closed cleanly, and of one whose processes were killed. Whatever the damage, each block of the
snapshot then reads as it was or fails, the live view is untouched, and who asks is told.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import Bench, mount_points_below, processes_about, run, snapfs, wait_until

BLOCK_BYTES = 4096
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
    "cut-00000001/intact",
    "cut-00000001/seal",
    "segments/00000001-00000001",
]


def flip(file: Path) -> None:
    """Another value for the first byte that is not zero, or for the first at all."""
    data = bytearray(file.read_bytes())
    if not data:
        file.write_bytes(b"\xff")
        return
    at = next((at for at, byte in enumerate(data) if byte), 0)
    with file.open("r+b") as raw:
        raw.seek(at)
        raw.write(bytes([data[at] ^ 0x10]))


def flip_last(file: Path) -> None:
    """The same of the last record, which nobody has read for the map: a record that was read is kept in memory."""
    data = file.read_bytes().rstrip(b"\0")
    with file.open("r+b") as raw:
        raw.seek(len(data) - 1)
        raw.write(bytes([data[-1] ^ 0x10]))


@dataclass
class Kept:
    """An image with its kept store, put back before each test; and what the snapshot shows."""

    bench: Bench
    original: Path
    frozen: bytes

    def restore(self) -> None:
        run("rm", "-rf", self.bench.store)
        run("cp", "-a", "--sparse=always", self.original, self.bench.store)


def make_kept(path: Path, *, killed: bool) -> Kept:
    path.mkdir(parents=True)
    bench = Bench(path)
    bench.image.write_bytes(os.urandom(1 << 20))
    frozen = bench.image.read_bytes()
    bench.live.mkdir()
    bench.snap.mkdir()
    bench.mount("--store", bench.store).ok()
    # One block in two, so that every block has its own runs and both kinds of content are read.
    with bench.live_file.open("r+b") as file:
        for block_no in range(0, 128, 2):
            file.seek(block_no * BLOCK_BYTES)
            file.write(os.urandom(BLOCK_BYTES))
        os.fsync(file.fileno())
    if killed:
        wait_until(lambda: bench.status()["buffer"]["staged_bytes"] == 0)
        for pid in processes_about(path):
            os.kill(pid, 9)
        wait_until(lambda: not processes_about(path))
        for view in (bench.snap, bench.live):
            run("umount", "-l", view)
    else:
        bench.umount().ok()
    original = path / "original"
    run("cp", "-a", "--sparse=always", bench.store, original)
    return Kept(bench, original, frozen)


@pytest.fixture(scope="module", params=["closed", "killed"])
def kept_once(request: pytest.FixtureRequest) -> Iterator[Kept]:
    kept = make_kept(Path(f"/tmp/snapfs-test-cli/{os.getpid()}-{request.param}"), killed=request.param == "killed")
    try:
        yield kept
    finally:
        kept.bench.clean_up()


@pytest.fixture
def kept(kept_once: Kept) -> Iterator[Kept]:
    kept_once.restore()
    try:
        yield kept_once
    finally:
        if mount_points_below(kept_once.bench.path):
            kept_once.bench.umount()


def read_blocks(file: Path, count: int) -> list[bytes | None]:
    """Each block on its own, past the page cache; None where it is refused, as damaged or as released."""
    blocks: list[bytes | None] = []
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    try:
        for block_no in range(count):
            try:
                blocks.append(buffer[: os.preadv(fd, [buffer], block_no * BLOCK_BYTES)])
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENODATA):
                    raise
                blocks.append(None)
    finally:
        os.close(fd)
    return blocks


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {"deleted": Path.unlink, "truncated": cut_short, "flipped": flip}


def test_an_undamaged_store_reads_well(kept: Kept) -> None:
    bench = kept.bench
    assert "Carrying on with the same snapshot" in bench.mount("--store", bench.store).ok().out
    assert bench.snap_file.read_bytes() == kept.frozen
    assert snapfs("status", bench.live).ok().out


# `kept_once` in a mark of its own: beside a parameter of each test it would be made anew for each.
@pytest.mark.parametrize("kept_once", ["closed"], indirect=True)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_closed_store(kept: Kept, name: str, damage: str) -> None:
    check_damaged(kept, name, damage)


@pytest.mark.parametrize("kept_once", ["killed"], indirect=True)
@pytest.mark.parametrize("name", [name for name in FILES if "seal" not in name])
def test_a_flipped_byte_in_the_store_of_a_killed_instance(kept: Kept, name: str) -> None:
    check_damaged(kept, name, "flipped")


def check_damaged(kept: Kept, name: str, damage: str) -> None:
    """Either the store is refused, or every block of the snapshot is right or refused, and the damage is told."""
    bench, file = kept.bench, kept.bench.store / name
    present = bench.image.read_bytes()
    DAMAGES[damage](file)
    done = bench.mount("--store", bench.store)
    if done.code:
        done.refuses(3, str(bench.store), "remove it")
        assert bench.image.read_bytes() == present
        return
    assert bench.live_file.read_bytes() == present
    is_carried_on = "Carrying on" in done.out
    assert is_carried_on
    blocks = read_blocks(bench.snap_file, len(kept.frozen) // BLOCK_BYTES)
    wrong = [
        no for no, block in enumerate(blocks) if block not in (None, kept.frozen[no * BLOCK_BYTES :][:BLOCK_BYTES])
    ]
    assert wrong == []
    # Nothing tells a flipped bit of the released blocks of a killed instance from a released block.
    wait_until(lambda: None not in blocks or "released" in name or damage_is_told(bench))
    bench.umount().ok()
    assert bench.image.read_bytes() == present


def damage_is_told(bench: Bench) -> bool:
    """Whether status says so and ends with 3."""
    done = snapfs("status", bench.live)
    return done.code == 3 and ("damaged" in done.out or "overflowed" in done.out)


def test_a_record_damaged_while_mounted(kept: Kept) -> None:
    bench = kept.bench
    bench.mount("--store", bench.store).ok()
    flip_last(bench.store / "segments/00000001-00000001")
    count = len(kept.frozen) // BLOCK_BYTES
    blocks = read_blocks(bench.snap_file, count)
    assert None in blocks
    assert all(block in (None, kept.frozen[no * BLOCK_BYTES :][:BLOCK_BYTES]) for no, block in enumerate(blocks))
    wait_until(lambda: damage_is_told(bench))
