"""From the free units of a filesystem to the used blocks of the snapshot.

Rules
1. A block becomes free only when every byte of it lies in free units of one filesystem.
2. Units and blocks are powers of two, but a filesystem may start anywhere: a block that straddles two units
   needs both of them free, and blocks cut by the start or the end of the filesystem stay used.

How, for units that start at byte D of the image:

    unit > block          expand each bit, so that unit == block
    D % unit != 0         f[i] & f[i+1] instead of f[i]: units that start at the next multiple
    unit < block          fold: one bit per block, the AND of its units

Everything works on whole arrays of bytes, a piece of the image at a time: 2^28 bits take about a tenth of a second.
A piece begins and ends at blocks and gets every unit that it touches; what it says about blocks beyond its ends
is true as well, only incomplete.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros
from numpy.typing import NDArray

from snapfs.usedmap.result import FreeMap, ImageMap, MapError

# Units or blocks, whichever are more, that are worked on at once: some MiB of memory, used again and again.
_PIECE_BITS = 1 << 24

Bytes = NDArray[np.uint8]


def clear_free_blocks(image_map: ImageMap, free_map: FreeMap, offset: int, length: int) -> None:
    """Clear the bits in `image_map.used` of the blocks that `free_map` proves free.

    The filesystem lies at `offset` bytes of the image and may use `length` bytes.
    """
    unit_bytes, free = free_map.unit_bytes, free_map.free
    if free_map.data_offset + len(free) * unit_bytes > length:
        raise MapError("has allocation units beyond its end")
    start = offset + free_map.data_offset
    piece_bytes = _PIECE_BITS * min(unit_bytes, image_map.block_bytes)
    end = start + len(free) * unit_bytes
    for piece_start in range(start - start % image_map.block_bytes, end, piece_bytes):
        first_unit = max(piece_start - start, 0) // unit_bytes
        end_unit = -(-(piece_start + piece_bytes - start) // unit_bytes)
        _clear_piece(image_map, free[first_unit:end_unit], unit_bytes, start + first_unit * unit_bytes)


def _clear_piece(image_map: ImageMap, free: bitarray, unit_bytes: int, start: int) -> None:
    """Clear the blocks that are proven free by units from byte `start` of the image on."""
    block_bytes = image_map.block_bytes
    if unit_bytes > block_bytes:
        free = expand_bits(free, unit_bytes // block_bytes)
        unit_bytes = block_bytes
    if start % unit_bytes:
        free = free[:-1] & free[1:]
        start += unit_bytes - start % unit_bytes
    lead_units = start % block_bytes // unit_bytes
    blocks = fold_bits(zeros(lead_units, "little") + free if lead_units else free, block_bytes // unit_bytes)
    first_block = start // block_bytes
    image_map.used[first_block : first_block + len(blocks)] &= ~blocks


def expand_bits(bits: bitarray, factor: int) -> bitarray:
    """Each bit `factor` times; `factor` is a power of two."""
    small, large = min(factor, 8), max(factor // 8, 1)
    result = bitarray(_expand_table(small)[_as_bytes(bits)].tobytes(), endian="little") if small > 1 else bits
    if large > 1:
        result = bitarray(np.repeat(_as_bytes(result), large).tobytes(), endian="little")
    return result[: len(bits) * factor]


def fold_bits(bits: bitarray, factor: int) -> bitarray:
    """One bit for each whole run of `factor` bits: 1 when all of them are 1; an incomplete run is dropped."""
    if factor == 1:
        return bits
    count = len(bits) // factor
    data = _as_bytes(bits)
    data = np.concatenate((data, np.zeros(-len(data) % max(factor, 8), np.uint8)))
    if factor < 8:
        parts = _fold_table(factor)[data].reshape(-1, factor) << (np.arange(factor, dtype=np.uint8) * (8 // factor))
        folded: Bytes = np.bitwise_or.reduce(parts, axis=1)
    else:
        whole = (data.reshape(-1, factor // 8) == 0xFF).all(axis=1)
        folded = np.packbits(whole, bitorder="little")
    return bitarray(folded.tobytes(), endian="little")[:count]


def _as_bytes(bits: bitarray) -> Bytes:
    """The bits as bytes; those of the last byte beyond the end read 0."""
    return np.frombuffer(bits.tobytes(), np.uint8)


@cache
def _expand_table(factor: int) -> NDArray[np.unsignedinteger]:
    """For every byte its bits `factor` (2, 4 or 8) times, as one little endian integer of 8 * factor bits."""
    byte_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = np.packbits(np.repeat(byte_bits, factor, axis=1), axis=1, bitorder="little")
    return table.view(f"<u{factor}").reshape(256)


@cache
def _fold_table(factor: int) -> Bytes:
    """For every byte its 8 / factor (2 or 4) folded bits, in the low bits."""
    byte_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    folded = byte_bits.reshape(256, -1, factor).all(axis=2)
    return np.packbits(folded, axis=1, bitorder="little").reshape(256)
