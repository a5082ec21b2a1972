"""Is the $LogFile of an NTFS volume at rest, so that $Bitmap on the disk is the truth?

Rules
1. A log of 0xFF bytes only was emptied by a tool that had seen it clean: at rest. One other byte: not.
2. Else both restart pages must be whole and of version 1.1. The one with the higher log sequence number
   counts: at rest if no client uses the log or the volume is marked clean.
3. Version 2.0 is refused: Windows keeps metadata in memory, or in its hibernation file.
4. Anything else (one page damaged, a log without restart pages) is refused: what is newest is not known.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from typing import NamedTuple

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs_records import Stream, Volume, undo_sequence
from snapfs.usedmap.result import MapError

# How much of an empty log is compared at once: small enough to stay in the processor's cache.
_PIECE_BYTES = 1 << 20


class _Restart(NamedTuple):
    """What counts of a restart page."""

    sequence_number: int
    version: tuple[int, int]
    at_rest: bool


def check_log(volume: Volume, log: Stream) -> None:
    """Raise `MapError` unless the log is at rest."""
    head = volume.read(log, 0, layout.RESTART_PAGE.size)
    if head == b"\xff" * len(head):
        _check_empty(volume, log)
        return
    page_bytes = _page_bytes(head)
    restarts = [
        _restart(volume.read(log, 0, page_bytes)),
        _restart(volume.read(log, page_bytes, page_bytes)),
    ]
    newest = max(restarts, key=lambda restart: restart.sequence_number)
    if any(restart.version != layout.LOG_VERSION_AT_REST for restart in restarts):
        raise MapError("was not shut down: Windows keeps part of it in memory (fast startup)")
    if not newest.at_rest:
        raise MapError("was not unmounted cleanly, its $LogFile is in use")


def _check_empty(volume: Volume, log: Stream) -> None:
    if log.size_bytes > layout.LOG_BYTES_MAX:
        raise MapError("has a $LogFile larger than any real one")
    empty = b"\xff" * _PIECE_BYTES
    buffer = bytearray(_PIECE_BYTES)
    for offset, length in volume.pieces(log, 0, log.size_bytes):
        for done in range(0, length, _PIECE_BYTES):
            count = min(_PIECE_BYTES, length - done)
            with memoryview(buffer)[:count] as part:
                volume.source.readinto(offset + done, part)
            if buffer[:count] != empty[:count]:
                raise MapError("has a $LogFile with records but no restart page")


def _page_bytes(head: bytes) -> int:
    mark, _, _, page_bytes, _, _, _, _ = layout.RESTART_PAGE.unpack(head)
    low, high = layout.RESTART_PAGE_BYTES_RANGE
    if mark not in layout.RESTART_MARKS:
        raise MapError("has no restart page in its $LogFile")
    if page_bytes & (page_bytes - 1) or not low <= page_bytes <= high:
        raise MapError("has a broken restart page in its $LogFile")
    return int(page_bytes)


def _restart(raw: bytes) -> _Restart:
    mark, sequence_offset, sequence_count, page_bytes, _, area_offset, minor, major = layout.RESTART_PAGE.unpack_from(
        raw
    )
    if mark not in layout.RESTART_MARKS or page_bytes != len(raw):
        raise MapError("has only one restart page in its $LogFile")
    page = undo_sequence(raw, sequence_offset, sequence_count, "restart page in its $LogFile")
    area_end = area_offset + layout.RESTART_AREA.size
    # An area that a sector's end cuts through, or that overlaps the update sequence, is no area.
    sequence_end = sequence_offset + 2 * sequence_count
    if area_offset % 8 or area_offset < sequence_end or area_end > layout.SEQUENCE_STRIDE_BYTES - 2:
        raise MapError("has a broken restart page in its $LogFile")
    number, _, _, clients_in_use, flags = layout.RESTART_AREA.unpack_from(page, area_offset)
    at_rest = clients_in_use == layout.NO_CLIENT or bool(flags & layout.VOLUME_IS_CLEAN)
    return _Restart(number, (major, minor), at_rest)
