"""Whole disks for the map campaign: partition tables of every kind over filesystems, with leftovers of older formats.

A disk is believed to be right when everything that its map calls free can be overwritten: the files of every
partition are the same afterwards. Then its tables and the beginnings of its partitions are damaged.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from disk_images import SECTOR, opened, put, run_sfdisk, take
from foreign_images import copy_image, digests, make_image
from linux_images import MIB, poison_image, scan_image
from map_damage import Change
from map_subjects import FAMILIES, fill_some, make_any

from snapfs.usedmap.result import ImageMap
from snapfs.usedmap.scan import scan

SMALL = ("ext2", "ext3", "ext4", "ext4-gdt-csum", "ntfs", "fat12", "fat16", "fat32", "exfat")
LARGE = ("xfs", "btrfs")
STALE = (*SMALL, *LARGE)
_DISK_END_BYTES = 2 * MIB


@dataclass(frozen=True)
class Part:
    kind: str
    offset: int
    length: int
    expected: dict[str, str]


@dataclass(frozen=True)
class Disk:
    image: Path
    description: str
    parts: list[Part]
    image_map: ImageMap


def make_disk(dice: random.Random, work: Path) -> Disk:
    """A disk of some partitions; it may once have been formatted as a whole, its partitions as something else."""
    names = dice.choices(SMALL, k=dice.randint(1, 4))
    if dice.random() < 0.15:
        names.append(dice.choice(LARGE))
    description = []
    parts, files, sector = [], [], dice.choice((34, 63, 2048, 2049))
    for number, name in enumerate(names):
        path = work / f"part-{number}"
        make_image(path, max(FAMILIES[name].sizes_mib) * MIB)
        over = f" over {format_as_something(dice, path)}" if dice.random() < 0.3 else ""
        make_any(FAMILIES[name], dice, path, over=True)
        expected = fill_some(FAMILIES[name].kind, path, work, dice)
        parts.append(Part(FAMILIES[name].kind, sector * SECTOR, path.stat().st_size, expected))
        files.append(path)
        description.append(f"{name}{over} at {sector}")
        sector += path.stat().st_size // SECTOR + dice.choice((2, 3, 2048))
    image = make_image(work / "disk", sector * SECTOR + _DISK_END_BYTES)
    if dice.random() < 0.4:
        description.append(f"on a disk that was {format_as_something(dice, image)}")
    label = dice.choice(("dos", "gpt", "extended") if len(names) > 1 and parts[0].offset > 40 * SECTOR else ("gpt",))
    run_sfdisk(image, _script(label, parts), work)
    for path, part in zip(files, parts, strict=True):
        put(path, image, part.offset)
        path.unlink()
    return Disk(image, f"{label}: {', '.join(description)}", parts, scan_image(image, SECTOR))


def format_as_something(dice: random.Random, image: Path) -> str:
    """Make any filesystem that fits on the whole of an image: it will be a leftover. Its name."""
    for name in dice.sample(STALE, len(STALE)):
        try:
            make_any(FAMILIES[name], dice, image, over=True)
        except AssertionError:
            continue
        return name
    return "nothing"


def _script(label: str, parts: list[Part]) -> str:
    rows = [(part.offset // SECTOR, part.length // SECTOR) for part in parts]
    if label == "gpt":
        return "label: gpt\nfirst-lba: 34\n" + "".join(f"start={start}, size={size}\n" for start, size in rows)
    primary, logical = (rows[:4], []) if label == "dos" else (rows[:1], rows[1:])
    script = "label: dos\n" + "".join(f"start={start}, size={size}, type=83\n" for start, size in primary)
    if logical:
        start, end = logical[0][0] - 1, logical[-1][0] + logical[-1][1]
        script += f"start={start}, size={end - start}, type=5\n"
        script += "".join(f"start={start}, size={size}, type=83\n" for start, size in logical)
    return script


def check_disk(disk: Disk, work: Path) -> list[str]:
    """Overwrite everything called free; what is wrong afterwards."""
    saved = _saved_files(disk, [], disk.image_map, work)
    return [
        f"files of the {part.kind} at {part.offset} were lost"
        for part, files in zip(disk.parts, saved, strict=True)
        if files != part.expected
    ]


def loses_files(disk: Disk, changes: list[Change], damaged_map: ImageMap, work: Path) -> bool:
    """Whether overwriting what the map of the damaged disk calls free costs files that the damage had left.

    A damage to one of two formats that claimed the disk may leave the other one, and a right map of it.
    """
    return _saved_files(disk, changes, None, work) != _saved_files(disk, changes, damaged_map, work)


def _saved_files(
    disk: Disk, changes: list[Change], image_map: ImageMap | None, work: Path
) -> list[dict[str, str] | None]:
    """The files of each partition of the damaged disk (None: cannot be opened), after poison where a map is given."""
    copy = copy_image(disk.image, work / "poisoned")
    with copy.open("r+b") as file:
        for offset, content in changes:
            file.seek(offset)
            file.write(content)
    if image_map is not None:
        poison_image(copy, image_map)
    saved = [_files_of(part, copy, work) for part in disk.parts]
    copy.unlink()
    return saved


def _files_of(part: Part, disk: Path, work: Path) -> dict[str, str] | None:
    filesystem = take(disk, part.offset, part.length, work / "part")
    try:
        with opened(part.kind, filesystem, work / "mnt", read_only=True) as directory:
            return digests(directory)
    except AssertionError:
        return None
    finally:
        filesystem.unlink()


def damage_places(disk: Disk) -> list[range]:
    """Tables at both ends, the sectors in front of partitions (logical ones have a table there), their beginnings."""
    size = disk.image.stat().st_size
    places = [range(SECTOR), range(SECTOR, 2 * SECTOR), range(2 * SECTOR, 34 * SECTOR)]
    places += [range(size - 33 * SECTOR, size - SECTOR), range(size - SECTOR, size)]
    for part in disk.parts:
        places += [range(part.offset - 2 * SECTOR, part.offset), range(part.offset, part.offset + 4096)]
    return places


def map_in_spite_of_damage(disk: Disk, changes: list[Change]) -> ImageMap:
    """The map of the damaged disk; the damage is undone."""
    fd = os.open(disk.image, os.O_RDWR)
    undo = [(offset, os.pread(fd, len(content), offset)) for offset, content in changes]
    size_bytes = os.fstat(fd).st_size
    try:
        for offset, content in changes:
            os.pwrite(fd, content[: size_bytes - offset], offset)
        return scan(fd, size_bytes, SECTOR)
    finally:
        for offset, content in reversed(undo):
            os.pwrite(fd, content, offset)
        os.close(fd)
