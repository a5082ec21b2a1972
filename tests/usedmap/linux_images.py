"""Images of ext2/3/4, XFS and btrfs for tests: made by the real mkfs, filled by the kernel, poisoned, damaged."""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitarray import bitarray
from foreign_images import Reader, copy_image, damage, digests, fill, make_image, poison, run

from snapfs.usedmap import btrfs, ext, xfs
from snapfs.usedmap.domain import json_extents
from snapfs.usedmap.result import FreeMap, ImageMap, MapError
from snapfs.usedmap.scan import scan
from snapfs.usedmap.source import Source

MIB = 1 << 20

READERS: dict[str, Reader] = {
    "ext2": ext.read_free_map,
    "ext3": ext.read_free_map,
    "ext4": ext.read_free_map,
    "xfs": xfs.read_free_map,
    "btrfs": btrfs.read_free_map,
}

# Mount a copy for comparing: nothing is replayed, and another filesystem of the same uuid does not matter.
READ_ONLY = {"ext2": "ro", "ext3": "ro,noload", "ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro"}


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


def make_filesystem(kind: str, path: Path, size: int, *options: str) -> Path:
    make_image(path, size)
    quiet = ("-q",) if kind in ("ext2", "ext3", "ext4", "btrfs") else ()
    run(f"mkfs.{kind}", *quiet, *options, path)
    return path


@contextmanager
def mounted(image: Path, directory: Path, options: str = "rw") -> Iterator[Path]:
    """The image mounted by the kernel; unmounted and its loop device gone afterwards, also on failure."""
    directory.mkdir(exist_ok=True)
    run("mount", "-o", f"loop,{options}", image, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    run("fsfreeze", "--freeze", directory)
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", directory)


def scatter(directory: Path, count: int, file_bytes: int, seed: int = 7) -> None:
    """Many files of one size, every second deleted: free space in many pieces, trees of several levels."""
    dice = random.Random(seed)
    (directory / "scattered").mkdir(exist_ok=True)
    paths = [directory / "scattered" / f"{number:05}" for number in range(count)]
    for path in paths:
        path.write_bytes(dice.randbytes(file_bytes))
    os.sync()
    for path in paths[::2]:
        path.unlink()


@contextmanager
def filled_filesystem(
    kind: str, work: Path, size: int, *options: str, file_bytes: int
) -> Iterator[tuple[Path, dict[str, str]]]:
    """An unmounted image with files in many pieces, and the digests of the files; `work` is removed afterwards."""
    image = make_filesystem(kind, work / "image", size, *options)
    with mounted(image, work / "mnt") as directory:
        fill(directory)
        scatter(directory, 600, file_bytes)
        expected = digests(directory)
    yield image, expected
    shutil.rmtree(work)


def fsck(kind: str, image: Path) -> None:
    """The filesystem's own check, read-only, finds nothing."""
    if kind == "xfs":
        run("xfs_repair", "-n", image)
    elif kind == "btrfs":
        run("btrfs", "check", "--check-data-csum", image)
    else:
        run("e2fsck", "-fn", image)


def check_poisoned(
    kind: str, image: Path, work: Path, free_map: FreeMap, expected: dict[str, str], *, recovers: bool = False
) -> None:
    """Everything called free may be overwritten: the filesystem checks clean and all its files are the same.

    A frozen XFS (`recovers`) is mounted for writing: its counters stand right only after its log has been read.
    """
    copy = copy_image(image, work / "poisoned.img")
    try:
        assert poison(copy, free_map) > 0
        with mounted(copy, work / "poisoned", "rw,nouuid" if recovers else READ_ONLY[kind]) as directory:
            assert digests(directory) == expected
        fsck(kind, copy)
    finally:
        copy.unlink()


def scan_image(path: Path, block_bytes: int = 4096, **options: object) -> ImageMap:
    fd = os.open(path, os.O_RDONLY)
    try:
        return scan(fd, os.fstat(fd).st_size, block_bytes, **options)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def only_region_reason(path: Path, **options: object) -> str:
    """Why the image, a bare filesystem, counts as wholly used."""
    image_map = scan_image(path, **options)
    (region,) = image_map.regions
    assert region.state == "all-used"
    assert image_map.used.all()
    return region.reason


def poison_image(path: Path, image_map: ImageMap) -> int:
    """Overwrite every free block of an image; returns how many bytes that were."""
    free = FreeMap(image_map.block_bytes, 0, ~image_map.used)
    return poison(path, free) if free.free.any() else 0


def units(free_ranges: list[tuple[int, int]], length: int) -> bitarray:
    """A bitarray of `length` with the (first, count) ranges set."""
    bits = bitarray(length, endian="little")
    bits.setall(0)
    for first, count in free_ranges:
        bits[first : first + count] = 1
    return bits


def free_by_xfs_db(path: Path, free_map: FreeMap) -> bitarray:
    """Free blocks by xfs_db, without those each group keeps in reserve, which it counts as free."""
    numbers = run("xfs_db", "-r", "-c", "sb 0", "-c", "p agblocks agcount", path)
    ag_blocks, ag_count = map(int, re.findall(r"= (\d+)", numbers))
    rows = re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)$", run("xfs_db", "-r", "-c", "freesp -d", path), re.MULTILINE)
    free = units([(int(ag) * ag_blocks + int(block), int(n)) for ag, block, n in rows], len(free_map.free))
    for ag in range(ag_count):
        for block in reserved_blocks(path, ag):
            free[ag * ag_blocks + block] = 0
    return free


def reserved_blocks(path: Path, ag: int) -> list[int]:
    header = run("xfs_db", "-r", "-c", f"agf {ag}", "-c", "p flfirst fllast flcount", path)
    first, _, count = map(int, re.findall(r"= (\d+)", header))
    text = run("xfs_db", "-r", "-c", f"agfl {ag}", "-c", "p bno", path)
    slots: dict[int, int] = {}
    for low, high, value in re.findall(r"(\d+)(?:-(\d+))?:(\d+|null)", text):
        for slot in range(int(low), int(high or low) + 1):
            slots[slot] = -1 if value == "null" else int(value)
    return [slots[(first + index) % len(slots)] for index in range(count)]


def make_xfs_version_4(work: Path, size: int, *options: str) -> Path:
    """A filesystem with files, every second one taken away again so that free space is in many pieces."""
    dice = random.Random(4)
    lines = ["boot 0 0", "d--755 0 0"]
    for number in range(120):
        (work / f"content-{number}").write_bytes(dice.randbytes(dice.choice((10, 5_000, 60_000))))
        lines.append(f"file-{number} ---644 0 0 {work / f'content-{number}'}")
    (work / "files").write_text("\n".join([*lines, "$", ""]))
    image = make_image(work / "image", size)
    run("mkfs.xfs", "-q", "-m", "crc=0", "-p", work / "files", *options, image)
    names = run("xfs_db", "-c", "blockget -n", "-c", "ncheck", image)
    numbers = re.findall(r"^\s*(\d+) file-\d*[13579]$", names, re.MULTILINE)
    assert len(numbers) == 60
    writes = [word for number in numbers for word in ("-c", f"inode {number}", "-c", "write core.mode 0")]
    run("xfs_db", "-x", *writes, image)
    run("xfs_repair", image)
    return image


class DamagedImage:
    """A private mapping of an image, to damage it and put it right again many times a second."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.reads: set[tuple[int, int]] = set()

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self.reads.add((offset, len(part)))
        return len(part)

    def source(self) -> Source:
        return Source(self, len(self.content))

    @contextmanager
    def damaged(self, ranges: list[range], seed: int) -> Iterator[None]:
        before = {part: self.content[part.start : part.stop + 4] for part in ranges}
        try:
            damage(self.content, ranges, random.Random(seed))  # type: ignore[arg-type]
            yield
        finally:
            for part, content in before.items():
                self.content[part.start : part.start + len(content)] = content


def survive_damage(reader: Reader, path: Path, seeds: range) -> Iterator[FreeMap]:
    """Damage what the reader reads, by each seed; yields the maps that were not refused.

    Any exception but `MapError` comes through and fails the test.
    """
    image = DamagedImage(path)
    reader(image.source())
    # Places of at most 512 bytes at a time, so that headers are hit as often as large tables.
    ranges = [range(offset, offset + min(length, 512)) for offset, length in sorted(image.reads)]
    ranges += [range(offset, offset + length) for offset, length in sorted(image.reads) if length > 512]
    for seed in seeds:
        chosen = random.Random(seed).sample(ranges, min(3, len(ranges)))
        with image.damaged(chosen, seed):
            try:
                free_map = reader(image.source())
            except MapError:
                continue
            yield free_map


def stretches(image_map: ImageMap) -> list[tuple[int, int, bool]]:
    """(start, length, used) of the image in turn."""
    return [
        (extent["start"], extent["length"], extent["data"]) for extent in json.loads("".join(json_extents(image_map)))
    ]
