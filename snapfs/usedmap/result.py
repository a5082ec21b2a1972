"""What the readers of maps give back, and how they refuse.

Rules
1. A reader answers with a `FreeMap` or raises `MapError`; there is no half-trusted answer.
2. Polarity is *free*: a set bit was proven free. Whatever a map does not mention is used.
3. A `MapError` carries one clause that goes on from the name of the filesystem, for example
   "needs journal recovery"; the region then counts as wholly used and its `reason` says so.

Every reader module has the same contract:

    def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from bitarray import bitarray

RegionState = Literal["trusted", "all-used"]


class MapError(Exception):
    """The map of a filesystem cannot be trusted; the caller counts the filesystem as wholly used."""


@dataclass
class FreeMap:
    """Free units of one filesystem: bit i set = bytes [data_offset + i * unit_bytes, + unit_bytes) are free.

    `data_offset` counts from the start of the filesystem; `unit_bytes` is a power of two;
    `free` is little endian. Bytes outside the bits are used.
    """

    unit_bytes: int
    data_offset: int
    free: bitarray

    def __post_init__(self) -> None:
        if self.unit_bytes <= 0 or self.unit_bytes & (self.unit_bytes - 1):
            raise MapError(f"has allocation units of {self.unit_bytes} bytes, which is no power of two")
        if self.data_offset < 0:
            raise MapError("has its allocation units before its start")
        if self.free.endian != "little":
            raise ValueError("a free map is a little endian bitarray")


@dataclass
class Region:
    """One stretch of the image with one owner: a filesystem, a table, a gap, something unknown.

    `kind` is blkid's name of it ("ext4", "xfs", "ntfs", "LVM2_member") or "dos", "gpt" (tables), "gap",
    "extended", "unknown". `offset` and `length` are bytes of the image. `free_bytes` counts in units of the
    filesystem, before folding to blocks of the snapshot. `block_bytes` is that unit (0 when not known).
    """

    kind: str
    offset: int
    length: int
    state: RegionState = "all-used"
    reason: str = ""
    label: str = ""
    uuid: str = ""
    block_bytes: int = 0
    free_bytes: int = 0
    partition_number: int | None = None
    partition_name: str = ""
    # Files whose content counts as free: {"name", "bytes"} of each.
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def used_bytes(self) -> int:
        return self.length - self.free_bytes

    def facts(self) -> dict[str, Any]:
        """The region in JSON, of the same shape wherever it is told: maps, status, manifests."""
        return {**asdict(self), "used_bytes": self.used_bytes}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Region:
        """The region that `facts` tell of; keys that this version does not know are left out."""
        return cls(**{one.name: facts[one.name] for one in fields(cls) if one.name in facts})


def partition_name(region: Region) -> str:
    """As the kernel ends the name of its device: "p1"."""
    return f"p{region.partition_number}"


@dataclass
class ImageMap:
    """`used`: one bit per block of the snapshot, little endian, 1 = used; a partial last block has one."""

    block_bytes: int
    size_bytes: int
    used: bitarray
    regions: list[Region] = field(default_factory=list)
