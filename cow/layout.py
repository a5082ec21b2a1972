"""Every byte of the store: constants and structs of format version 1. Described in FORMAT.md.

All integers are little-endian. Nothing here reads, writes or decides anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

FORMAT_VERSION = 1

# --- header -------------------------------------------------------------------------------------------------

HEADER_MAGIC = b"snapfsST"
# magic, version, block_bytes, image_bytes, image_dev, image_ino, image_mode, image_uid, image_gid,
# image_atime_ns, image_mtime_ns, taken_at_ns, generation, staging_slots, durability, protect, is_device,
# device_id_bytes, path_bytes, store_id, boot_id, snapshot_id; then the path and the device's identity
HEADER = struct.Struct("<8sII QQQ III QQQQQ BBBBI 16s16s16s")
HEADER_CHECKSUM = struct.Struct("<Q")
MAX_PATH_BYTES = 4096
# What one byte can count.
MAX_DEVICE_ID_BYTES = 255


class Durability(IntEnum):
    """What preserved data survives: the death of processes, or the loss of power as well."""

    PROCESS = 0
    POWER = 1


class Protect(IntEnum):
    """Which blocks a cut owes: every one, or those the image's filesystems use."""

    ALL = 0
    USED = 1


# --- control page: one u64 each, mapped by all processes -----------------------------------------------------

CONTROL_BYTES = 4096


class Counter(IntEnum):
    """Place of each number in the control page. The comment says which process stores it."""

    MAGIC = 0  # live
    GENERATION = 1  # live
    STATE = 2  # live: a State
    CUT_SEQ = 3  # live: staged slots below belong to an earlier cut
    RESERVED_SEQ = 4  # live: slots below may hold data
    COMMITTED_SEQ = 5  # live: slots below are indexed, the compactor may move them
    FREED_SEQ = 6  # compactor: slots below are moved, the live server may use them again
    STORED_BYTES = 7  # who writes segments: payload bytes of all records
    STORED_RAW_BYTES = 8  # who writes segments: the same before compression
    STORE_ERRNO = 9  # compactor: why nothing can be written to segments, 0 when it can
    PRESERVED_BLOCKS = 10  # live: lost ones included
    SETTLED_BLOCKS = 11  # live
    CHANGED_BLOCKS = 12  # live
    RELEASED_BLOCKS = 13  # live
    LIMIT_BYTES = 14  # live: 0 is no limit
    HEARTBEAT_NS = 15  # live: wall clock of the last write, at most 20 ms late
    IMAGE_MTIME_NS = 16  # live: modification time of the image when no write was under way
    WRITING = 17  # live: 1 when IMAGE_MTIME_NS may be behind
    OVERFLOW_ERRNO = 18  # live: what the side buffer failed with
    PRESSED = 19  # live: 1 while writes wait for room
    DAMAGED_READS = 20  # live: reads answered with EIO because of damage
    COMPACTOR_IDLE = 21  # compactor: 1 while it waits to be woken
    SHOWN_GENERATION = 23  # snapshot server: the cut its view shows
    FREE_BLOCKS = 24  # live: blocks settled because nothing is in them
    RETURNED_BYTES = 25  # live: payload bytes of records that were given back
    UNREADABLE = 22  # live: 1 when nothing of the snapshot can be proven right
    LOST_BLOCKS = 26  # live: blocks whose old content is gone, free and released ones aside
    MISSING_BYTES = 27  # live: how much shorter than it should be the image was at some time
    UNSEEN = 28  # who mounts: its mark until both views have answered; killed before, nobody has seen the snapshot


# As many as the largest image needs.
_MISSING_BITS = 45


def pack_missing(missing_bytes: int) -> int:
    """MISSING_BYTES with its proof in the bits above: a damaged number must not make live data unreadable."""
    return (missing_bytes * 0x9E3779B97F4A7C15 >> _MISSING_BITS & 0x7FFFF) << _MISSING_BITS | missing_bytes


def unpack_missing(number: int) -> int:
    """Inverse of ``pack_missing``; 0 for a number that proves nothing."""
    missing_bytes = number & ((1 << _MISSING_BITS) - 1)
    return missing_bytes if pack_missing(missing_bytes) == number else 0


# The generation while a cut is made: none.
NO_GENERATION = 0

# In UNSEEN. Only the whole of it counts: a damaged number must not give up a snapshot.
UNSEEN_MARK = int.from_bytes(b"snapfsUS", "little")

CONTROL_MAGIC = int.from_bytes(b"snapfsC1", "little")


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
    return (
        STORED
        | place.segment_no << (_OFFSET_BITS + _LENGTH_BITS)
        | (place.offset // RECORD_ALIGN) << _LENGTH_BITS
        | units
    )


def unpack_place(entry: int) -> Place:
    """Inverse of ``pack_place``; the length is the rounded one."""
    offset = (entry >> _LENGTH_BITS) & ((1 << _OFFSET_BITS) - 1)
    segment_no = (entry >> (_OFFSET_BITS + _LENGTH_BITS)) & MAX_SEGMENT_NO
    return Place(segment_no, offset * RECORD_ALIGN, (entry & ((1 << _LENGTH_BITS) - 1)) * RECORD_ALIGN)


# --- segments ------------------------------------------------------------------------------------------------

RECORD_MAGIC = 0x52_46_53_31  # "1SFR"
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
# The checksum of a slot is seeded with ``generation << SEED_SHIFT`` plus its sequence number.
SEED_SHIFT = 44
NO_TAG = (1 << 64) - 1
