"""Checksums of the on-disk formats: crc32c in its raw form, and the crc16 of the older ext4 descriptors."""

from __future__ import annotations

from functools import cache

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_ONES = 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The usual crc32c (start and result inverted)."""
    return int(google_crc32c.value(data))


def crc32c_raw(state: int, data: bytes) -> int:
    """crc32c without the inversions: what Linux calls crc32c(state, data), used to chain pieces."""
    return int(google_crc32c.extend(state ^ _ONES, data)) ^ _ONES


def crc32c_with_zeroed_field(data: bytes, field_offset: int) -> int:
    """crc32c of a structure that holds its own checksum: its 4 bytes at `field_offset` count as zeros."""
    return crc32c(data[:field_offset] + bytes(4) + data[field_offset + 4 :])


def crc16_of_rows(rows: NDArray[np.uint8], start: int = 0xFFFF) -> NDArray[np.uint16]:
    """crc16 (polynomial 0xA001) of each row, all rows at once."""
    crc = np.full(rows.shape[0], start, np.uint16)
    table = _crc16_table()
    for column in rows.T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _crc16_table() -> NDArray[np.uint16]:
    table = np.arange(256, dtype=np.uint16)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint16(0xA001), table >> 1).astype(np.uint16)
    return table
