"""An image with sectors that a real read answers with EIO: a FUSE export of QEMU's blkdebug over a good image."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cli.command_line import TIMEOUT_S, loop_device, wait_until

SECTOR_BYTES = 512


@contextmanager
def bad_image(good: Path, path: Path, sectors: Sequence[int]) -> Iterator[Path]:
    """`path` shows the content of `good`, and cannot read these sectors. Its times are always now."""
    faults = "".join(
        f",inject-error.{number}.event=none,inject-error.{number}.iotype=read,inject-error.{number}.errno=5"
        f",inject-error.{number}.sector={sector}"
        for number, sector in enumerate(sectors)
    )
    path.touch()
    command = [
        "qemu-storage-daemon",
        f"--blockdev=file,node-name=good,filename={good}",
        f"--blockdev=blkdebug,node-name=bad,image=good{faults}",
        f"--export=fuse,id=export,node-name=bad,mountpoint={path},writable=on,growable=off",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        try:
            wait_until(lambda: path.stat().st_size or daemon.poll() is not None)
            assert daemon.poll() is None, "qemu-storage-daemon ended"
            yield path
        finally:
            daemon.terminate()
            daemon.wait(TIMEOUT_S)


@contextmanager
def bad_device(good: Path, export: Path, sectors: Sequence[int], sector_bytes: int = SECTOR_BYTES) -> Iterator[Path]:
    """A block device with the content of `good` that cannot read these sectors; `export` is a file for the rig."""
    options = ("--direct-io=on", f"--sector-size={sector_bytes}")
    with bad_image(good, export, sectors), loop_device(export, *options) as device:
        yield device


def with_zeros(good: Path, sectors: Sequence[int], unit_bytes: int = SECTOR_BYTES) -> bytes:
    """The content of `good`, with zeros wherever a bad sector makes a unit unreadable."""
    data = bytearray(good.read_bytes())
    for start in {sector * SECTOR_BYTES // unit_bytes * unit_bytes for sector in sectors}:
        data[start : start + unit_bytes] = bytes(len(data[start : start + unit_bytes]))
    return bytes(data)
