"""What happens when the side buffer is full, and what the engine tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OverflowPolicy(Enum):
    """Who gives way when the side buffer is full: all snapshots, the oldest, the write, or time."""

    BREAK_SNAPSHOT = "break-snapshot"
    BREAK_OLDEST = "break-oldest"
    BREAK_WRITE = "break-write"
    WAIT = "wait"


class EventKind(Enum):
    """What the engine tells its owner about."""

    BUFFER_FILLING = "buffer-filling"
    OVERFLOW = "overflow"
    GAVE_WAY = "gave-way"
    WAITING = "waiting"
    LOST = "lost"
    CUT_SHORT = "cut-short"


@dataclass(frozen=True, slots=True)
class Event:
    """`value`: percent of the limit in use, or the errno of an overflow or of the image; 0 of CUT_SHORT.

    `generation` of GAVE_WAY: the cut that did; OVERFLOW and CUT_SHORT are of all.

    `is_on_disk`: of these three, whether the store says so too.

    `offset` and `length` in bytes of the image: what it could not give, of LOST.
    """

    kind: EventKind
    value: int
    offset: int = 0
    length: int = 0
    is_on_disk: bool = True
    generation: int = 0
