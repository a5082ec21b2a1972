"""exFAT volumes for tests: made by mkfs.exfat, where things are in them, and entries changed by hand."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from foreign_images import fill, make_image, mounted, read_map, run

from snapfs.usedmap.exfat import read_free_map
from snapfs.usedmap.result import MapError

MIB = 1 << 20
SECTOR_BYTES = 512
ENTRY_BYTES = 32
DRIVER = "mount.exfat-fuse"


def make_exfat(path: Path, size: int, *options: str) -> Path:
    run("mkfs.exfat", *options, make_image(path, size))
    return path


def layout_of(path: Path) -> dict[str, int]:
    """Numbers of dump.exfat by their names, without units."""
    found = re.findall(r"^([\w ]+?)(?:\([\w ]+\)| \([\w ]+\))?:\s+(\d+)$", run("dump.exfat", path), re.MULTILINE)
    return {name: int(number) for name, number in found}


def cluster_offset(path: Path, cluster: int) -> int:
    facts = layout_of(path)
    return facts["Cluster Heap Offset"] * SECTOR_BYTES + (cluster - 2) * facts["Cluster size"]


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(read_free_map, path)
    return str(caught.value)


def fragment(path: Path, directory: Path) -> Path:
    """Files and directories, some in many pieces, some deleted."""
    with mounted(path, DRIVER, directory):
        fill(directory)
        for number in range(60):
            (directory / f"small-{number}").write_bytes(bytes(6000))
        for number in range(0, 60, 2):
            (directory / f"small-{number}").unlink()
        (directory / "pieces").write_bytes(random.Random(1).randbytes(900_000))
        (directory / "grown").write_bytes(bytes(9000))
        (directory / "between").write_bytes(bytes(9000))
        with (directory / "grown").open("ab") as file:
            file.write(bytes(90_000))
    return path


def set_offset(path: Path, name: str) -> int:
    """Where the set of entries of a file begins; its name has at most 15 characters."""
    content = path.read_bytes()
    at = content.index(b"\xc1\0" + name.encode("utf-16-le").ljust(30, b"\0"))
    return at - 2 * ENTRY_BYTES


def change_set(path: Path, name: str, offset: int, change: bytes) -> None:
    """Change a set of three entries and make its checksum right again."""
    at = set_offset(path, name)
    entries = bytearray(path.read_bytes()[at : at + 3 * ENTRY_BYTES])
    entries[offset : offset + len(change)] = change
    total = 0
    for index, byte in enumerate(entries):
        if index not in (2, 3):
            total = ((total >> 1 | (total & 1) << 15) + byte) & 0xFFFF
    entries[2:4] = total.to_bytes(2, "little")
    write_at(path, at, bytes(entries))


def first_cluster(path: Path, name: str) -> int:
    at = set_offset(path, name) + ENTRY_BYTES + 20
    return int.from_bytes(path.read_bytes()[at : at + 4], "little")


def link_offset(path: Path, cluster: int) -> int:
    """Where the FAT says what follows a cluster."""
    return layout_of(path)["FAT Offset"] * SECTOR_BYTES + 4 * cluster


def bitmap_of(path: Path) -> range:
    """Where the allocation bitmap is; it is in one piece."""
    facts = layout_of(path)
    start = cluster_offset(path, facts["Bitmap start cluster"])
    return range(start, start + (facts["Total Clusters"] + 7) // 8)


def set_used(path: Path, cluster: int, used: bool) -> None:
    """Change the bit of one cluster."""
    at, bit = divmod(cluster - 2, 8)
    at += bitmap_of(path).start
    old = path.read_bytes()[at]
    write_at(path, at, bytes([old | 1 << bit if used else old & ~(1 << bit)]))
