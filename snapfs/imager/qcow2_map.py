"""Which clusters a qcow2 holds itself, as data or as zeros; the rest is what is below it.

Source: QEMU's docs/interop/qcow2.txt, "Cluster mapping".

Read from the file, not asked of a program: a table of 64 KiB is 512 MiB of the image, however scattered it is.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros

from snapfs.errors import BackupDamagedError
from snapfs.imager.extents import CELL_BYTES, cell_count

# From 20 on: cluster_bits, size, crypt_method, l1_size, l1_table_offset
_SIZES: Final = struct.Struct(">IQIIQ")
_SIZES_OFFSET: Final = 20
_CLUSTER_BITS: Final = 16
_ENTRY_BYTES: Final = 8
_ENTRIES: Final = CELL_BYTES // _ENTRY_BYTES
_OFFSET_MASK: Final = np.uint64(0x00FF_FFFF_FFFF_FE00)
_COMPRESSED: Final = np.uint64(1 << 62)
_ZERO: Final = np.uint64(1)


@dataclass(frozen=True)
class Held:
    """A bit per cell: what the file holds `data` of, and what it says to be `zeros`."""

    data: bitarray
    zeros: bitarray


def held_by(fd: int, path: Path, size_bytes: int) -> Held:
    """What the qcow2 open as `fd`, of an image of `size_bytes`, holds; BackupDamagedError when it is none of ours."""
    count = cell_count(size_bytes)
    held = Held(zeros(count, "little"), zeros(count, "little"))
    head = os.pread(fd, _SIZES.size, _SIZES_OFFSET)
    tables = -(-count // _ENTRIES)
    if len(head) < _SIZES.size:
        raise _damaged(path, "its header is cut off")
    bits, virtual_bytes, _, l1_entries, l1_offset = _SIZES.unpack(head)
    if bits != _CLUSTER_BITS or virtual_bytes != -(-size_bytes // 512) * 512 or l1_entries < tables:
        raise _damaged(path, "its clusters or its size are not those of the backup")
    for number, entry in enumerate(_entries(fd, path, l1_offset, tables) & _OFFSET_MASK):
        if entry:
            first = number * _ENTRIES
            _note(held, first, _entries(fd, path, int(entry), min(_ENTRIES, count - first)))
    return held


def _entries(fd: int, path: Path, offset: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    data = os.pread(fd, count * _ENTRY_BYTES, offset)
    if len(data) < count * _ENTRY_BYTES:
        raise _damaged(path, "a table of it is cut off")
    return np.frombuffer(data, ">u8").astype(np.uint64)


def _note(held: Held, first: int, entries: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    is_compressed = (entries & _COMPRESSED) != 0
    # In an entry of compressed data this bit is a part of the place.
    is_zeros = ~is_compressed & ((entries & _ZERO) != 0)
    is_data = is_compressed | (~is_zeros & ((entries & _OFFSET_MASK) != 0))
    for bits, found in ((held.data, is_data), (held.zeros, is_zeros)):
        packed = bitarray(np.packbits(found, bitorder="little").tobytes(), endian="little")
        bits[first : first + len(found)] = packed[: len(found)]


def _damaged(path: Path, reason: str) -> BackupDamagedError:
    return BackupDamagedError(f"{path} is not what was written: {reason}; take another copy.", path=path)
