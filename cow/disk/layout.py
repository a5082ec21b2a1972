"""Every byte of the store: constants and structs of format version 5. Described in FORMAT.md.

All integers are little-endian. Nothing here reads, writes or decides anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Self

FORMAT_VERSION = 5

# --- header -------------------------------------------------------------------------------------------------

HEADER_MAGIC = b"snapfsST"
# magic, version: the same in every format
HEADER_START = struct.Struct("<8sI")
# magic, version, block_bytes, image_bytes, image_dev, image_ino, staging_slots, durability, protect, is_device,
# device_id_bytes, path_bytes, cut_count, store_id, boot_id; then the path, the device's identity, and the cuts
HEADER = struct.Struct("<8sII QQQQ BBBB II 16s16s")
# generation, taken_at_ns, image_atime_ns, image_mtime_ns, image_mode, image_uid, image_gid, is_hidden, name_bytes,
# holder_count, snapshot_id; then the name, and the holders
HEADER_CUT = struct.Struct("<QQQQ IIIBBBx 16s")
HEADER_CHECKSUM = struct.Struct("<Q")

# --- the note of a revert ------------------------------------------------------------------------------------

REVERT_MAGIC = b"snapfsRV"
# magic, snapshot id of the target, checksum of both
REVERT_NOTE = struct.Struct("<8s16sQ")

# --- when parts of the image were changed --------------------------------------------------------------------

TIMES_MAGIC = b"snapfsTM"
# Magic, bytes of a part, digest of the map of free blocks, base, latest, parts, digest of the entries, checksum.
TIMES = struct.Struct("<8sIxxxx 16s QQQ 16sQ")
# Where the entries begin, a u64 a part: at a page of their own, so that the holes among them are holes of the file.
TIMES_ENTRIES_OFFSET = 4096
# The smallest that a reader may ask about; a larger one would have more of an image sent again for a small change.
PART_BYTES = 1 << 20
MAX_PATH_BYTES = 4096
# What one byte can count.
MAX_DEVICE_ID_BYTES = 255
MAX_NAME_BYTES = 100
# Of one cut: chains of backups that are made of one image. So the longest header has room in the spare one.
MAX_HOLDERS = 8
HOLDER_BYTES = 16


class Durability(IntEnum):
    """What preserved data survives: the death of processes, or the loss of power as well."""

    PROCESS = 0
    POWER = 1


class Protect(IntEnum):
    """Which blocks a cut owes: every one, or those the image's filesystems use."""

    ALL = 0
    USED = 1


# --- numbers: one u64 each, in pages that are mapped by all processes ----------------------------------------

PAGE_OF_NUMBERS_BYTES = 4096


class Owner(Enum):
    """The one process that stores a number."""

    LIVE = "live server"
    COMPACTOR = "compactor"
    APPENDER = "whoever appends to segments: the compactor; durability power: the live server"
    SNAPSHOT = "snapshot server"
    MOUNT = "whoever mounts"


class Trait(Enum):
    """What becomes of a number when the processes that stored it are gone."""

    SEALED = "a clean end notes it in the seal, and the next process takes it from there"
    RECOUNTED = "the next process counts it again from the maps"
    PASSING = "it means nothing then, and begins at 0"


class Number(IntEnum):
    """A place in a page. None but its `owner` stores it."""

    owner: Owner
    traits: frozenset[Trait]

    def __new__(cls, place: int, owner: Owner, *traits: Trait) -> Self:
        number = int.__new__(cls, place)
        number._value_ = place
        number.owner, number.traits = owner, frozenset(traits)
        return number


class Counter(Number):
    """What concerns all cuts of a store: the file `control`."""

    MAGIC = 0, Owner.LIVE
    # Of the present cut. At the end of the page: whoever cuts the file short takes this away first.
    GENERATION = 511, Owner.LIVE
    RESERVED_SEQ = 2, Owner.LIVE, Trait.SEALED  # slots below may hold data
    COMMITTED_SEQ = 3, Owner.LIVE  # slots below are indexed, the compactor may move them
    FREED_SEQ = 4, Owner.COMPACTOR  # slots below are moved, the live server may use them again
    LIMIT_BYTES = 5, Owner.LIVE, Trait.PASSING  # 0 is no limit
    HEARTBEAT_NS = 6, Owner.LIVE  # wall clock of the last write, at most 20 ms late
    IMAGE_MTIME_NS = 7, Owner.LIVE  # modification time of the image when no write was under way
    WRITING = 8, Owner.LIVE  # 1 when IMAGE_MTIME_NS may be behind
    PRESSED = 9, Owner.LIVE, Trait.PASSING  # 1 while writes wait for room
    COMPACTOR_IDLE = 10, Owner.COMPACTOR, Trait.PASSING  # 1 while it waits to be woken
    SHOWN_HEADERS = 11, Owner.SNAPSHOT, Trait.PASSING  # the HEADERS whose list its view shows
    NEXT_SEGMENT = 13, Owner.APPENDER, Trait.SEALED  # segments below have been used, and never are again
    HEADERS = 14, Owner.LIVE, Trait.PASSING  # counts the changes of the list of cuts, and of which are over
    FOLLOWED_HEADERS = 15, Owner.COMPACTOR, Trait.PASSING  # the HEADERS whose list it has done what follows from
    LATEST_CHANGE_NS = 16, Owner.LIVE  # no table of times has a later one
    UNSEEN = (
        12,
        Owner.MOUNT,
    )  # its mark until both views have answered, and that is told: till then nobody has seen it


class CutCounter(Number):
    """What concerns one cut: the file `numbers` beside its maps. A new cut begins with a page of its own."""

    MAGIC = 0, Owner.LIVE
    STATE = 511, Owner.LIVE, Trait.SEALED  # a State; at the end of the page, as GENERATION is
    UNREADABLE = 2, Owner.LIVE, Trait.SEALED  # 1 when nothing of the snapshot can be proven right
    FIRST_SEQ = 3, Owner.LIVE, Trait.SEALED  # staged slots below belong to an earlier cut
    STORED_BYTES = 4, Owner.APPENDER, Trait.SEALED  # payload bytes of all records
    STORED_RAW_BYTES = 5, Owner.APPENDER, Trait.SEALED  # the same before compression
    RETURNED_BYTES = 6, Owner.COMPACTOR, Trait.SEALED  # payload bytes of records that were given back
    STORE_ERRNO = 7, Owner.COMPACTOR, Trait.PASSING  # why nothing can be written to segments, 0 when it can
    PRESERVED_BLOCKS = 8, Owner.LIVE, Trait.SEALED, Trait.RECOUNTED  # lost ones included
    SETTLED_BLOCKS = 9, Owner.LIVE, Trait.RECOUNTED
    CHANGED_BLOCKS = 10, Owner.LIVE, Trait.RECOUNTED
    RELEASED_BLOCKS = 11, Owner.LIVE, Trait.RECOUNTED
    FREE_BLOCKS = 12, Owner.LIVE, Trait.RECOUNTED  # settled because nothing is in them
    LOST_BLOCKS = 13, Owner.LIVE, Trait.SEALED  # could not be read from the image; after a repair, all that are lost
    EXCUSED_BLOCKS = 17, Owner.LIVE, Trait.SEALED  # lost ones that are free or released: nobody misses them
    SPOILT_BLOCKS = 18, Owner.COMPACTOR, Trait.SEALED  # lost ones: their slots were not what had been put in
    MISSING_BYTES = 14, Owner.LIVE, Trait.SEALED  # how much shorter than it should be the image was at some time
    OVERFLOW_ERRNO = 15, Owner.LIVE  # what the side buffer failed with
    DAMAGED_READS = 16, Owner.LIVE  # answered with EIO because of damage


def numbers_with(trait: Trait) -> list[Counter | CutCounter]:
    """All numbers of both pages that have it, in order."""
    return [number for number in (*Counter, *CutCounter) if trait in number.traits]


# As many as the largest image needs.
_MISSING_BITS = 45


def pack_missing(missing_bytes: int) -> int:
    """MISSING_BYTES with its proof in the bits above: a damaged number must not make live data unreadable."""
    return (missing_bytes * 0x9E3779B97F4A7C15 >> _MISSING_BITS & 0x7FFFF) << _MISSING_BITS | missing_bytes


def unpack_missing(number: int) -> int:
    """Inverse of `pack_missing`; 0 for a number that proves nothing."""
    missing_bytes = number & ((1 << _MISSING_BITS) - 1)
    return missing_bytes if pack_missing(missing_bytes) == number else 0


# In UNSEEN. Only the whole of it counts: a damaged number must not give up a snapshot.
UNSEEN_MARK = int.from_bytes(b"snapfsUS", "little")

CONTROL_MAGIC = int.from_bytes(b"snapfsC3", "little")
NUMBERS_MAGIC = int.from_bytes(b"snapfsN3", "little")


class State(IntEnum):
    """State of the snapshot, by the name status shows; a DAMAGED one still serves what is provably right."""

    NONE = 0
    ACTIVE = 1
    OVERFLOWED = 2
    DAMAGED = 3


# While the snapshot is in one of these, live writes preserve and reads are served.
KEPT_STATES = frozenset({State.ACTIVE, State.DAMAGED})

# --- index: one u64 a block ----------------------------------------------------------------------------------
#
#   0                                  nothing preserved
#   01 | 62-bit staging sequence no    in the staging ring
#   10 | 25-bit segment no | 21-bit offset | 16-bit length    in a segment, both in units of 32 bytes

ENTRY_BYTES = 8
STAGED = 1 << 62
STORED = 2 << 62
KIND_MASK = 3 << 62
SEQ_MASK = STAGED - 1
RECORD_ALIGN = 32
_SEGMENT_BITS, _OFFSET_BITS, _LENGTH_BITS = 25, 21, 16
MAX_SEGMENT_NO = (1 << _SEGMENT_BITS) - 1
SEGMENT_BYTES = RECORD_ALIGN << _OFFSET_BITS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: segment, offset and length in bytes, header included."""

    segment_no: int
    offset: int
    length: int


def pack_place(place: Place) -> int:
    """The index entry of a record; offset a multiple of RECORD_ALIGN, length rounded up to one."""
    units = -(-place.length // RECORD_ALIGN)
    assert 0 < place.segment_no <= MAX_SEGMENT_NO, place
    assert 0 < units < 1 << _LENGTH_BITS, place
    assert place.offset % RECORD_ALIGN == 0 <= place.offset < SEGMENT_BYTES, place
    return (
        STORED
        | place.segment_no << (_OFFSET_BITS + _LENGTH_BITS)
        | (place.offset // RECORD_ALIGN) << _LENGTH_BITS
        | units
    )


def unpack_place(entry: int) -> Place:
    """Inverse of `pack_place`; the length is the rounded one."""
    offset = (entry >> _LENGTH_BITS) & ((1 << _OFFSET_BITS) - 1)
    segment_no = (entry >> (_OFFSET_BITS + _LENGTH_BITS)) & MAX_SEGMENT_NO
    return Place(segment_no, offset * RECORD_ALIGN, (entry & ((1 << _LENGTH_BITS) - 1)) * RECORD_ALIGN)


# --- segments ------------------------------------------------------------------------------------------------

RECORD_MAGIC = 0x52_46_53_31  # "1SFR"
RECORD_VERSION = 1
# magic, version, flags, block_count, generation, block_no, raw_bytes, payload_bytes, checksum
RECORD = struct.Struct("<IBBHIQIIxxxxQ")
RECORD_CHECKSUM_OFFSET = RECORD.size - 8
# A longer run compresses better, but a reader of one block decompresses all of it.
RECORD_RAW_BYTES = 64 << 10


def blocks_in_record(block_bytes: int) -> int:
    """How many blocks the longest record holds: a single one when blocks are larger than that."""
    return max(1, RECORD_RAW_BYTES // block_bytes)


class RecordFlag(IntEnum):
    """How the payload of a record is stored."""

    RAW = 0
    LZ4 = 1
    # No payload at all: the blocks could not be read from the image, and are lost.
    LOST = 2


# A block that is known to be lost: the entry names segment 0, which never exists, so reads fail with EIO.
LOST_ENTRY = STORED

# --- staging -------------------------------------------------------------------------------------------------

STAGING_BYTES = 64 << 20
MIN_STAGING_SLOTS = 16
TAG_BYTES = 8
# The checksum of a slot is seeded with `generation << SEED_SHIFT` plus its sequence number.
SEED_SHIFT = 44
NO_TAG = (1 << 64) - 1
