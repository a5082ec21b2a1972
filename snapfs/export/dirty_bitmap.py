"""A snapshot by qemu-nbd, with a dirty bitmap of what changed since an older one.

qemu-nbd exports the bitmaps of a qcow2. So one is made that has the snapshot behind it and a bitmap, and is only
read. A bitmap has a bit where something was written, and nothing may be written there: the bits are made in a second
qcow2, by writing zeros, and merged into the first. Names: docs/interop/bitmaps.rst and qemu-img(1) of QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from snapfs.errors import SnapfsError
from snapfs.export.address import Address
from snapfs.export.process import Server, serving
from snapfs.imager.qemu import Export, Link
from snapfs.system.descriptors import path_of
from snapfs.system.scratch import scratch

# What NBD clients ask for as qemu:dirty-bitmap:changed.
BITMAP_NAME: Final = "changed"
_SECTOR_BYTES: Final = 512
_QEMU_IMG_S: Final = 600.0
_MOST_CONNECTIONS: Final = 16
# A length in a request of NBD has 32 bits.
_MOST_ZEROS: Final = 1 << 30


@contextlib.contextmanager
def qemu_nbd(
    fd: int,
    size_bytes: int,
    block_bytes: int,
    changed: Iterable[tuple[int, int]],
    address: Address,
    certificates: Path | None,
) -> Iterator[Server]:
    """Serve what `fd` is open on; the bitmap `BITMAP_NAME` has the extents `changed`, `(start, length)` in bytes."""
    with scratch() as directory:
        image, marks = directory / "image.qcow2", directory / "marks.qcow2"
        for path in (marks, image):
            _qemu_img("create", "-q", "-f", "qcow2", path, str(-(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES))
            _qemu_img("bitmap", "-f", "qcow2", "--add", "-g", str(block_bytes), path, BITMAP_NAME)
        _mark(marks, changed)
        _qemu_img("bitmap", "-f", "qcow2", "--merge", BITMAP_NAME, "-b", marks, "-F", "qcow2", image, BITMAP_NAME)
        with serving(_command(image, fd, address, certificates), address, (fd,)) as server:
            yield server


def _mark(path: Path, changed: Iterable[tuple[int, int]]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        export = Export(Link(fd, path))
        try:
            for start, length in changed:
                for offset in range(start, start + length, _MOST_ZEROS):
                    count = min(_MOST_ZEROS, start + length - offset)
                    export.client.write_zeroes(offset, -(-count // _SECTOR_BYTES) * _SECTOR_BYTES)
        finally:
            export.close()
    finally:
        os.close(fd)


def _command(image: Path, fd: int, address: Address, certificates: Path | None) -> list[str]:
    behind = {"driver": "raw", "read-only": True, "file": {"driver": "file", "filename": str(path_of(fd))}}
    node: dict[str, Any] = {
        "driver": "qcow2",
        "read-only": True,
        "file": {"driver": "file", "filename": str(image), "read-only": True},
        "backing": behind,
    }
    command = ["qemu-nbd", "--persistent", f"--shared={_MOST_CONNECTIONS}", "--read-only", f"--bitmap={BITMAP_NAME}"]
    if address.path is not None:
        command.append(f"--socket={address.path}")
    else:
        command += [f"--bind={address.host}", f"--port={address.port}"]
    if address.is_tls:
        command += [f"--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=off,dir={certificates}"]
        command += ["--tls-creds=tls"]
    return [*command, "json:" + json.dumps(node)]


def _qemu_img(*words: str | Path) -> None:
    try:
        done = subprocess.run(
            ["qemu-img", *words], capture_output=True, text=True, errors="replace", timeout=_QEMU_IMG_S, check=False
        )
    except FileNotFoundError as error:
        raise SnapfsError("A dirty bitmap needs qemu-img, which is not installed; install qemu-utils.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SnapfsError(f"qemu-img cannot make a dirty bitmap: {said[-1] if said else 'it gives no reason'}.")
