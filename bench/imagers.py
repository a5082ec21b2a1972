"""Programs that copy an unmounted image: the command of each, and how its result is compared with the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.image import MIB, Master, run
from bench.measure import wrong_bytes
from bench.peers.snapfs import PROGRAM
from bench.rows import DD, PARTCLONE, QEMU, SNAPFS


@dataclass(frozen=True)
class Imager:
    """`command` makes DEST of an image; `verify` says how many bytes of DEST are wrong."""

    name: str
    command: Callable[[Path, Path], tuple[str, ...]]
    verify: Callable[[Master, Path], int]


def snapfs_command(image: Path, dest: Path, dest_format: str, *more: str) -> tuple[str, ...]:
    return (str(PROGRAM), "backup", "-q", "--format", dest_format, *more, str(image), str(dest))


def qemu_command(image: Path, dest: Path, dest_format: str) -> tuple[str, ...]:
    return ("qemu-img", "convert", "-f", "raw", "-O", dest_format, str(image), str(dest))


def dd_command(image: Path, dest: Path) -> tuple[str, ...]:
    return ("dd", f"if={image}", f"of={dest}", "bs=1M", "conv=sparse", "status=none")


def partclone_command(image: Path, dest: Path) -> tuple[str, ...]:
    return ("partclone.extfs", "-c", "-q", "-L", f"{dest}.log", "-s", str(image), "-o", str(dest))


def verify_raw(master: Master, dest: Path) -> int:
    if dest.stat().st_size != master.image_bytes:
        return abs(master.image_bytes - dest.stat().st_size)
    return wrong_bytes(master, dest, MIB, direct=False)


def verify_qcow2(master: Master, dest: Path) -> int:
    """QEMU's own tools judge, and say what is wrong in the error."""
    run("qemu-img", "check", "-q", str(dest))
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(master.path), str(dest))
    return 0


def verify_partclone(master: Master, dest: Path) -> int:
    """Its own format, which only partclone reads: restored first."""
    restored = dest.with_suffix(".restored")
    try:
        run("partclone.extfs", "-r", "-q", "-C", "-W", "-L", f"{dest}.log", "-s", str(dest), "-o", str(restored))
        return verify_raw(master, restored)
    finally:
        restored.unlink(missing_ok=True)


IMAGERS = {
    "backup-raw": (
        Imager(SNAPFS, lambda image, dest: snapfs_command(image, dest, "raw"), verify_raw),
        Imager(DD, dd_command, verify_raw),
        Imager(QEMU, lambda image, dest: qemu_command(image, dest, "raw"), verify_raw),
        Imager(PARTCLONE, partclone_command, verify_partclone),
    ),
    "backup-qcow2": (
        Imager(SNAPFS, lambda image, dest: snapfs_command(image, dest, "qcow2"), verify_qcow2),
        Imager(QEMU, lambda image, dest: qemu_command(image, dest, "qcow2"), verify_qcow2),
    ),
}
