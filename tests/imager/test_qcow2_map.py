"""Which clusters a qcow2 holds, read from its tables: the same that QEMU says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bitarray import bitarray
from bitarray.util import zeros
from imager_rig import run

from snapfs.errors import BackupDamagedError
from snapfs.imager.extents import CELL_BYTES
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.qcow2_map import Held, held_by

# More than one table, and an end that no cell divides.
SIZE = (600 << 20) + 12345
CELLS = -(-SIZE // CELL_BYTES)


def made(path: Path, *, compress: bool = False, backing: str | None = None) -> int:
    """A qcow2 with data in cells 1, 2 and 9000 and in the last one, zeros in 4 and 5. Its file, open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    target = Qcow2Target(fd, path, SIZE, compress=compress, keep=False, way_out="try again", backing=backing)
    target.write(memoryview(os.urandom(2 * CELL_BYTES)), CELL_BYTES)
    target.write(memoryview(b"x" * CELL_BYTES), 9000 * CELL_BYTES)
    target.write(memoryview(os.urandom(SIZE % CELL_BYTES)), (CELLS - 1) * CELL_BYTES)
    target.hide(4 * CELL_BYTES, 2 * CELL_BYTES)
    target.finish()
    target.close()
    return fd


def of_qemu(path: Path) -> Held:
    found = Held(zeros(CELLS, "little"), zeros(CELLS, "little"))
    node = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}
    for one in json.loads(run("qemu-img", "map", "--output=json", f"json:{json.dumps(node)}")):
        cells = slice(one["start"] // CELL_BYTES, -(-(one["start"] + one["length"]) // CELL_BYTES))
        if one["data"]:
            found.data[cells] = 1
        elif one["present"]:
            found.zeros[cells] = 1
    return found


@pytest.mark.parametrize("backing", [None, "below.qcow2", "nbd:below.qcow2"])
@pytest.mark.parametrize("compress", [False, True])
def test_what_it_holds_is_what_qemu_says(tmp_path: Path, compress: bool, backing: str | None) -> None:
    path = tmp_path / "a.qcow2"
    fd = made(path, compress=compress, backing=backing)
    held = held_by(fd, path, SIZE)
    os.close(fd)
    assert list(held.data.search(bitarray("1"))) == [1, 2, 9000, CELLS - 1]
    assert list(held.zeros.search(bitarray("1"))) == [4, 5]
    if not compress:
        # In QEMU's answer compressed clusters and those beside them are one.
        assert of_qemu(path) == held


@pytest.mark.parametrize("length", [0, 30, 200, 1 << 16, 1 << 18])
def test_one_that_was_cut_short_is_said_to_be(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.qcow2"
    fd = made(path)
    os.ftruncate(fd, length)
    with pytest.raises(BackupDamagedError):
        held_by(fd, path, SIZE)
    os.close(fd)


def test_one_of_another_size_is_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    fd = made(path)
    with pytest.raises(BackupDamagedError, match="size"):
        held_by(fd, path, SIZE + 512)
    os.close(fd)
