"""Images of NTFS, FAT, exFAT and swap for tests: made by the real tools, filled, damaged, poisoned.

Files are copied in through the user-space drivers (ntfs-3g, exfat-fuse) on a loop device, or by mtools.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitarray import bitarray
from bitarray.util import intervals

from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source
from tests.machine import attach_loop, detach_loop

POISON = b"\xa5"
Reader = Callable[[Source], FreeMap]


def run(*command: str | Path, returncodes: Iterable[int] = (0,), env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must end as expected."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **(env or {})}, check=False)
    assert done.returncode in returncodes, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout.decode("utf-8", "replace")


def make_image(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def copy_image(path: Path, copy: Path) -> Path:
    run("cp", "--sparse=always", path, copy)
    return copy


@contextmanager
def mounted(image: Path, driver: str, directory: Path, *options: str) -> Iterator[Path]:
    """The image mounted by a FUSE driver; unmounted and its loop device gone afterwards, also on failure."""
    directory.mkdir(exist_ok=True)
    loop = str(attach_loop(image))
    try:
        run(driver, *options, loop, directory)
        try:
            yield directory
        finally:
            run("umount", directory)
    finally:
        detach_loop(Path(loop))


def fill(directory: Path, seed: int = 1) -> None:
    """Files of many sizes in nested directories; every third is deleted again, so free space is in pieces."""
    dice = random.Random(seed)
    made = []
    for number in range(60):
        folder = directory / f"folder-{number % 5}" / f"deeper-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file-{number}.bin"
        path.write_bytes(dice.randbytes(dice.choice((0, 100, 5_000, 40_000, 150_000))))
        made.append(path)
    for path in made[::3]:
        path.unlink()
    (directory / "last.bin").write_bytes(dice.randbytes(900_000))


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def read_map(reader: Reader, path: Path) -> FreeMap:
    fd = os.open(path, os.O_RDONLY)
    try:
        return reader(Source(fd, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def poison(path: Path, free_map: FreeMap) -> int:
    """Overwrite every free unit; returns how many bytes that were."""
    poisoned = 0
    with path.open("r+b") as file:
        for value, first, end in intervals(free_map.free):
            if value:
                length = (end - first) * free_map.unit_bytes
                file.seek(free_map.data_offset + first * free_map.unit_bytes)
                file.write(POISON * length)
                poisoned += length
    return poisoned


def used_by_partclone(kind: str, path: Path, work: Path) -> list[tuple[int, int]]:
    """Used (offset, length) from partclone's domain map."""
    domain = work / f"{path.name}.domain"
    run(f"partclone.{kind}", "-D", "-q", "-s", path, "-O", domain, "-L", work / "partclone.log")
    lines = re.findall(r"^(0x\w+)\s+(0x\w+)\s+\+$", domain.read_text(), re.MULTILINE)
    return [(int(offset, 16), int(length, 16)) for offset, length in lines]


def used_units(free_map: FreeMap, used: list[tuple[int, int]]) -> bitarray:
    """The units of a map that used (offset, length) ranges touch, as a bitarray like `free`."""
    units = bitarray(len(free_map.free), endian="little")
    units.setall(0)
    for offset, length in used:
        first = max(0, offset - free_map.data_offset) // free_map.unit_bytes
        end = -(-(offset + length - free_map.data_offset) // free_map.unit_bytes)
        if end > first:
            units[first : min(end, len(units))] = 1
    return units


class MemoryImage:
    """An image in memory with changes, to damage it many times a second."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def source(self) -> Source:
        return Source(self, len(self.content))


def damage(content: bytearray, ranges: list[range], dice: random.Random) -> list[tuple[int, bytes]]:
    """Change up to four places within the ranges: a bit, a byte, or a word of extreme values.

    Returns (offset, old bytes) of each change.
    """
    undo = []
    for _ in range(dice.randint(1, 4)):
        at = dice.choice(dice.choice(ranges))
        undo.append((at, bytes(content[at : at + 4])))
        how = dice.randrange(3)
        if how == 0:
            content[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            content[at] = dice.randrange(256)
        else:
            content[at : at + 4] = dice.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0"))
    return undo


def damaged_maps(reader: Reader, content: bytes, ranges: list[range], seeds: range) -> Iterator[tuple[int, FreeMap]]:
    """Read the map of `content` damaged by each seed; only maps that were not refused come back."""
    image = MemoryImage(content)
    for seed in seeds:
        undo = damage(image.content, ranges, random.Random(seed))
        try:
            yield seed, reader(image.source())
        except MapError:
            continue
        finally:
            for at, old in reversed(undo):
                image.content[at : at + 4] = old


def damage_bitmap(content: bytearray, bitmap: list[range], dice: random.Random) -> None:
    """What a failing disk or a copy of it does to a bitmap: bits flip, bytes and sectors become zero."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        piece = dice.choice(bitmap)
        at = dice.choice(piece)
        how = dice.randrange(4)
        if how == 0:
            content[at] ^= 1 << dice.randrange(8)
            continue
        size = (1, 512, 4096)[how - 1]
        first = max(piece.start, at - at % size)
        end = min(piece.stop, at - at % size + size)
        content[first:end] = bytes(end - first)


def frees_only(free_map: FreeMap, truth: FreeMap) -> bool:
    """Whether every byte that `free_map` calls free is free in `truth`."""
    true_bytes = dict(_free_bytes(truth))
    starts = sorted(true_bytes)
    return all(_covered(first, end, starts, true_bytes) for first, end in _free_bytes(free_map))


def _free_bytes(free_map: FreeMap) -> Iterator[tuple[int, int]]:
    for value, first, end in intervals(free_map.free):
        if value:
            yield (
                free_map.data_offset + first * free_map.unit_bytes,
                free_map.data_offset + end * free_map.unit_bytes,
            )


def _covered(first: int, end: int, starts: list[int], true_bytes: dict[int, int]) -> bool:
    index = bisect.bisect_right(starts, first) - 1
    return index >= 0 and true_bytes[starts[index]] >= end
