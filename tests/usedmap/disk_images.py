"""Filesystems of every kind on disks, for tests: filled, checked, put into partitions and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from foreign_images import mounted as mounted_by_driver
from foreign_images import run
from linux_images import READ_ONLY, fsck, mounted

SECTOR = 512

UNCHECKED = {"MTOOLS_SKIP_CHECK": "1"}
FOREIGN_DRIVERS = {"ntfs": "ntfs-3g", "exfat": "mount.exfat-fuse"}
FOREIGN_CHECKS = {"vfat": ("fsck.fat", "-n"), "ntfs": ("ntfsfix", "-n"), "exfat": ("fsck.exfat", "-n")}


@contextmanager
def opened(kind: str, image: Path, directory: Path, *, read_only: bool = False) -> Iterator[Path]:
    """The files of a filesystem: mounted, or for FAT copied by mtools, as the kernel may not know it."""
    if kind == "vfat":
        directory.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=directory) as copy:
            if read_only:
                run("mcopy", "-s", "-i", image, "::*", copy, env=UNCHECKED)
            yield Path(copy)
            if not read_only:
                run("sh", "-c", f"mcopy -s -i {image} {copy}/* ::", env=UNCHECKED)
    elif kind in FOREIGN_DRIVERS:
        with mounted_by_driver(image, FOREIGN_DRIVERS[kind], directory):
            yield directory
    else:
        with mounted(image, directory, READ_ONLY[kind] if read_only else "rw"):
            yield directory


def check(kind: str, image: Path) -> None:
    if kind in FOREIGN_CHECKS:
        run(*FOREIGN_CHECKS[kind], image)
    else:
        fsck(kind, image)


def run_sfdisk(path: Path, script: str, work: Path) -> None:
    (work / "script").write_text(script)
    run("sh", "-c", f"sfdisk --force --quiet --no-reread --no-tell-kernel --wipe never {path} < {work / 'script'}")


def put(part: Path, disk: Path, offset: int) -> None:
    run("dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={offset}", "oflag=seek_bytes", "conv=notrunc,sparse")


def take(disk: Path, offset: int, size: int, part: Path) -> Path:
    run(
        "dd", f"if={disk}", f"of={part}", "bs=1M", f"skip={offset}", f"count={size}",
        "iflag=skip_bytes,count_bytes", "conv=sparse",
    )  # fmt: skip
    return part
