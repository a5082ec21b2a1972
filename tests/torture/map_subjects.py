"""What the map campaign damages: a filesystem of each family, made with random options by the real mkfs, and filled.

Everything follows from the dice: the same seed makes the same filesystem (but for times and uuids).
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from disk_images import UNCHECKED, check, opened
from foreign_images import copy_image, digests, fill, make_image, poison, read_map, run
from linux_images import MIB, make_xfs_version_4, scatter
from map_damage import Change

from snapfs.usedmap.readers import READERS, Reader
from snapfs.usedmap.result import FreeMap

_TRIES = 20

# What mends a damaged filesystem, as far as it can be mended; whatever it answers, the files tell.
_REPAIRS: dict[str, tuple[str, ...]] = {
    "ext2": ("e2fsck", "-fy"),
    "ext3": ("e2fsck", "-fy"),
    "ext4": ("e2fsck", "-fy"),
    "xfs": ("xfs_repair",),
    "btrfs": ("true",),
    "ntfs": ("ntfsfix",),
    "vfat": ("fsck.fat", "-a"),
    "exfat": ("fsck.exfat", "-y"),
}


@dataclass(frozen=True)
class Family:
    """`kind` is blkid's name. Of each axis one choice is taken; each choice is words of the mkfs command."""

    kind: str
    mkfs: str
    sizes_mib: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @property
    def reader(self) -> Reader:
        return READERS[self.kind]


_EXT_BLOCKS = ("-b 1024", "-b 2048", "-b 4096")
_EXT_SHAPES = ("", "", "-O sparse_super2", "-O meta_bg,^resize_inode", "-O ^sparse_super,^resize_inode", "-g 4096")
_EXT_INODES = ("", "-I 128", "-i 8192", "-N 200")
_EXT4 = ("", "", "-O ^flex_bg", "-O ^64bit", "-O ^extent", "-O inline_data -I 256", "-O bigalloc", "-O ^has_journal")
_NO_CHECKSUMS = ("-O ^metadata_csum,^uninit_bg",)
_GDT_CHECKSUMS = ("-O ^metadata_csum,uninit_bg", "-O ^metadata_csum,uninit_bg -E lazy_itable_init=1")
_FAT_CLUSTERS = ("-s 1", "-s 2", "-s 4")
_FAT_COPIES = ("-f 2", "-f 2", "-f 1", "-f 3")

FAMILIES: dict[str, Family] = {
    "ext2": Family("ext2", "mkfs.ext2 -q -F", (24, 40), (_EXT_BLOCKS, _EXT_SHAPES, _EXT_INODES)),
    "ext3": Family("ext3", "mkfs.ext3 -q -F", (24, 40), (_EXT_BLOCKS, _EXT_SHAPES, _EXT_INODES)),
    "ext4": Family("ext4", "mkfs.ext4 -q -F", (32, 64), (_EXT_BLOCKS, _EXT_SHAPES, _EXT_INODES, _EXT4)),
    "ext4-gdt-csum": Family("ext4", "mkfs.ext4 -q -F", (32, 64), (_GDT_CHECKSUMS, _EXT_BLOCKS, _EXT_SHAPES, _EXT4)),
    "ext4-no-csum": Family("ext4", "mkfs.ext4 -q -F", (32, 64), (_NO_CHECKSUMS, _EXT_BLOCKS, _EXT_SHAPES, _EXT4)),
    "xfs": Family(
        "xfs",
        "mkfs.xfs -q -f",
        (320,),
        (("", "-b size=1024", "-s size=4096"), ("", "-d agcount=7"), ("", "-m rmapbt=1,reflink=1", "-l su=65536")),
    ),
    "xfs-4": Family(
        "xfs", "", (320,), (("", "-b size=1024", "-s size=4096", "-l version=1", "-b size=2048 -l version=1"),)
    ),
    "btrfs": Family(
        "btrfs",
        "mkfs.btrfs -q -f",
        (160,),
        (("", "-n 4096", "-M"), ("", "-m single"), ("", "--csum xxhash", "--csum sha256", "--csum blake2")),
    ),
    "ntfs": Family("ntfs", "mkfs.ntfs -q -F -Q", (12, 32), (("-c 512", "-c 1024", "-c 4096", "-c 16384"),)),
    "fat12": Family("vfat", "mkfs.fat -F 12", (8,), (("-s 8", "-s 16"), _FAT_COPIES, ("", "-R 5", "-r 1024"))),
    "fat16": Family("vfat", "mkfs.fat -F 16", (12, 24), (_FAT_CLUSTERS, _FAT_COPIES, ("", "-R 5", "-r 1024"))),
    "fat32": Family("vfat", "mkfs.fat -F 32", (36, 48), (("-s 1",), _FAT_COPIES, ("", "-R 40", "-b 0"))),
    "exfat": Family("exfat", "mkfs.exfat", (12, 24), (("-c 512", "-c 4K", "-c 32K"),)),
}


@dataclass(frozen=True)
class Subject:
    """`older` is the image as it was before the last files came: what a lost write leaves."""

    family: Family
    options: str
    image: Path
    older: Path | None
    truth: FreeMap
    expected: dict[str, str]


def make_subject(name: str, dice: random.Random, work: Path) -> Subject:
    """A filled filesystem, whose map has been proven by overwriting everything that it calls free."""
    family = FAMILIES[name]
    work.mkdir(exist_ok=True)
    if name == "xfs-4":
        options = _one_of_each(family.axes, dice)
        image, older = make_xfs_version_4(work, family.sizes_mib[0] * MIB, *options.split()), None
        expected: dict[str, str] = {}
    else:
        image, options = make_any(family, dice, work / "image")
        fill_twice(family.kind, image, work, dice)
        older = work / "older"
        with opened(family.kind, image, work / "mnt", read_only=True) as directory:
            expected = digests(directory)
    subject = Subject(family, options, image, older, read_map(family.reader, image), expected)
    prove(subject, work)
    return subject


def make_any(family: Family, dice: random.Random, image: Path, *, over: bool = False) -> tuple[Path, str]:
    """A new filesystem and its options; not all options go together. `over` keeps what the image holds."""
    for _ in range(_TRIES):
        options = _one_of_each(family.axes, dice)
        if not over:
            make_image(image, dice.choice(family.sizes_mib) * MIB)
        try:
            run(*family.mkfs.split(), *options.split(), image)
        except AssertionError:
            continue
        return image, options
    raise AssertionError(f"no options fit {family.mkfs}")


def _one_of_each(axes: tuple[tuple[str, ...], ...], dice: random.Random) -> str:
    return " ".join(filter(None, (dice.choice(axis) for axis in axes)))


def fill_twice(kind: str, image: Path, work: Path, dice: random.Random) -> None:
    """Files, a copy of the image (`older`), then other files in the place of some of them."""
    fill_some(kind, image, work, dice)
    copy_image(image, work / "older")
    if kind == "vfat":
        run("mdeltree", "-i", image, "::/folder-2", env=UNCHECKED)
    with opened(kind, image, work / "mnt") as directory:
        if kind != "vfat":
            shutil.rmtree(directory / "folder-2")
        (directory / "second").mkdir()
        scatter(directory / "second", 60, 3000, dice.randrange(1 << 30))


def fill_some(kind: str, image: Path, work: Path, dice: random.Random) -> dict[str, str]:
    with opened(kind, image, work / "mnt") as directory:
        fill(directory, dice.randrange(1 << 30))
        return digests(directory)


def prove(subject: Subject, work: Path) -> None:
    """Overwrite all that the map calls free: the filesystem's own check and its files must not notice."""
    copy = copy_image(subject.image, work / "poisoned")
    assert poison(copy, subject.truth) > 0
    has_check = not any(copies in subject.options for copies in ("-f 3", "-b 0"))
    if has_check:
        check(subject.family.kind, copy)
    if subject.expected:
        with opened(subject.family.kind, copy, work / "mnt", read_only=True) as directory:
            assert digests(directory) == subject.expected, "the map of the undamaged filesystem is wrong"
    copy.unlink()


def loses_files(subject: Subject, changes: list[Change], free_map: FreeMap, work: Path) -> bool:
    """Whether overwriting what `free_map` calls free costs files that a repair of the damaged image would have saved.

    A damage that takes the inodes away together with all that counts their blocks has lost the files by itself.
    """
    saved = _saved_files(subject, changes, None, work)
    return saved is None or saved != _saved_files(subject, changes, free_map, work)


def _saved_files(
    subject: Subject, changes: list[Change], free_map: FreeMap | None, work: Path
) -> dict[str, str] | None:
    """The files after a repair, None when there is no way to read them."""
    copy = copy_image(subject.image, work / "repaired")
    with copy.open("r+b") as file:
        for offset, content in changes:
            file.seek(offset)
            file.write(content)
    if free_map is not None:
        poison(copy, free_map)
    try:
        run(*_REPAIRS[subject.family.kind], copy, returncodes=range(256))
        with opened(subject.family.kind, copy, work / "mnt", read_only=True) as directory:
            return digests(directory)
    except AssertionError:
        return None
    finally:
        copy.unlink()
