"""Free pages of a Linux swap area: all but its header, unless it holds a hibernated system.

What is in swap belongs to a running system and is worthless after a restart; whether it may be left out is
the caller's decision. Never while a hibernation image may be in it.

Source: the Linux kernel, include/linux/swap.h (union swap_header) and kernel/power/swap.c; the manual of
mkswap(8). The signature fills the last ten bytes of the first page, whose size depends on the machine.
"""

from __future__ import annotations

import struct
from typing import Final

from bitarray import bitarray

from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

PAGE_BYTES: Final = (4096, 8192, 16384, 32768, 65536)
_SIGNATURE_BYTES: Final = 10
_SIGNATURE: Final = b"SWAPSPACE2"
# What hibernation (the kernel, µswsusp, TuxOnIce) writes in place of the signature.
_HIBERNATION: Final = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c")
# 1024: version, number of the last page, number of bad pages; in the byte order of the machine.
_HEADER_OFFSET: Final = 1024
_HEADER: Final = ("<III", ">III")
_VERSION: Final = 1


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """Every page but the first, up to the last that the header names."""
    page_bytes = find_page_bytes(source)
    last = last_page(source)
    if (last + 1) * page_bytes > source.size_bytes:
        raise MapError("is larger than its place")
    free = bitarray(last, endian="little")
    free.setall(1)
    return FreeMap(page_bytes, page_bytes, free)


def find_page_bytes(source: Source) -> int:
    """The size of the first page, by where its signature is; `MapError` for a hibernated system too."""
    found: list[int] = []
    for page_bytes in PAGE_BYTES:
        if page_bytes > source.size_bytes:
            break
        signature = source.read(page_bytes - _SIGNATURE_BYTES, _SIGNATURE_BYTES)
        if signature.startswith(_HIBERNATION):
            raise MapError("holds a hibernated system")
        if signature == _SIGNATURE:
            found.append(page_bytes)
    if len(found) != 1:
        raise MapError("has no swap signature, or more than one")
    return found[0]


def last_page(source: Source) -> int:
    """The number of the last page that the header names."""
    header = source.read(_HEADER_OFFSET, 12)
    for byte_order in _HEADER:
        version, number, _ = struct.unpack(byte_order, header)
        if version == _VERSION and number > 0:
            return int(number)
    raise MapError("has a swap header of an unknown version")
