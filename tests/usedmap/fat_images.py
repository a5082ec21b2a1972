"""FAT volumes for tests: made by mkfs.fat, filled by mtools, and changed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foreign_images import (
    fill,
    make_image,
    run,
)

from snapfs.usedmap.fat_geometry import read_geometry
from snapfs.usedmap.source import Source

KIB, MIB = 1 << 10, 1 << 20
UNCHECKED = {"MTOOLS_SKIP_CHECK": "1"}


@dataclass(frozen=True)
class Case:
    """How a volume is made."""

    name: str
    size: int
    options: str
    bits: int


CASES = [
    Case("fat12-floppy", 1440 * KIB, "-F 12", 12),
    Case("fat12-one-fat", 4 * MIB, "-F 12 -f 1 -s 4", 12),
    Case("fat12-sectors-4096", 8 * MIB, "-F 12 -S 4096 -s 1", 12),
    Case("fat16-clusters-512", 16 * MIB, "-F 16 -s 1", 16),
    Case("fat16-clusters-32k", 160 * MIB, "-F 16 -s 64", 16),
    Case("fat16-odd-size", 24 * MIB + 5 * 512, "-F 16 -s 2 -R 3 -r 1024", 16),
    Case("fat32-clusters-512", 48 * MIB, "-F 32 -s 1", 32),
    Case("fat32-clusters-4k", 300 * MIB, "-F 32 -s 8", 32),
    Case("fat32-one-fat", 48 * MIB, "-F 32 -s 1 -f 1", 32),
    Case("fat16-three-fats", 16 * MIB, "-F 16 -s 1 -f 3", 16),
    Case("fat32-four-fats", 48 * MIB, "-F 32 -s 1 -f 4", 32),
    Case("fat32-no-backup", 48 * MIB, "-F 32 -s 1 -b 0 -a", 32),
    Case("fat32-sectors-4096", 300 * MIB, "-F 32 -S 4096 -s 1", 32),
]
BY_NAME = {case.name: case for case in CASES}


def make_fat(path: Path, case: Case) -> Path:
    run("mkfs.fat", *case.options.split(), make_image(path, case.size))
    return path


def fill_fat(path: Path, work: Path) -> None:
    """Files in nested directories by mtools; some are deleted and others put into their place."""
    files = work / "files"
    if not files.exists():
        files.mkdir()
        fill(files)
    # The smallest volume holds one of the folders.
    folders = [f"folder-{number}" for number in range(1 if path.stat().st_size < 3 * MIB else 5)]
    run("mcopy", "-s", "-Q", "-i", path, *(files / folder for folder in folders), "::/", env=UNCHECKED)
    if len(folders) > 1:
        run("mdeltree", "-i", path, "::/folder-2", env=UNCHECKED)
        run("mcopy", "-i", path, files / "last.bin", "::/", env=UNCHECKED)


def made(name: str, work: Path) -> Path:
    """A filled volume of that case, made once."""
    path = work / f"{name}-base.img"
    if not path.exists():
        fill_fat(make_fat(path, BY_NAME[name]), work)
    return path


def unpack(path: Path, target: Path) -> Path:
    """All files of the volume, copied out."""
    if not target.exists():
        target.mkdir()
        run("mcopy", "-s", "-n", "-i", path, "::/*", target, env=UNCHECKED)
    return target


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def fat_offsets(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        return read_geometry(Source(file.fileno(), path.stat().st_size)).fat_offsets
