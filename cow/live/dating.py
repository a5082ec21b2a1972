"""The table of times of each cut (see `cow.disk.times`), made from that of the cut before.

What differs for the readers of two neighbouring cuts: what was written in between (`changed` of the one before), and
what is free in one of them only, which reads as zeros. The first is known with the cut, the second with its map, and
the cut before is gone by then, perhaps. So the table is made in two steps, outside of the freeze:

    follow_times    begins it: what was written, and a copy of the map of free blocks of the one before
    finish_times    when the map of the cut is known, or never will be

Stopped anywhere, the steps are done again. Whenever anything may have been missed, the table begins anew: all parts
were changed at this cut. Times go up from one cut to the next, whatever the clock does, by two seconds at least: what
was changed has the time of the cut, less a second, but for the first part of it. Tools that compare whole seconds
tell two cuts apart, and those that do not trust the latest time that they see distrust one part only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from bitarray import bitarray

from cow.disk.bitmaps import Bitmap
from cow.disk.codec import checksum_stream
from cow.disk.cut import Cut
from cow.disk.directory import BEGUN_TIMES_NAME, FREE_BEFORE_NAME, TIMES_NAME
from cow.disk.files import Files
from cow.disk.layout import PART_BYTES, Counter, CutCounter, Durability, Protect
from cow.disk.store import Store
from cow.disk.times import NO_MAP, Times, free_digest, latest_of, part_count, read_times

_SECOND_NS: Final = 1_000_000_000
_STEP_NS: Final = 2 * _SECOND_NS
# What tables and files can tell of: the year 2262.
_MAX_NS: Final = (1 << 63) - 1 - _STEP_NS
_PIECE_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = 4096
_ZEROS: Final = bytes(_PIECE_BYTES)


def follow_times(store: Store, cut: Cut, before: Cut | None) -> None:
    """Begin the table of `cut`, which came after `before`; nobody may be writing to that any more, and its map is as
    known as it will ever be. Both are held. OSError: there is no table."""
    times = None if before is None or _may_have_missed(before) else _finished(store, before)
    if times is None or before is None:
        return _begin_anew(store, cut)
    times.latest_ns = _next_ns(store, cut, times.latest_ns)
    _mark(times, before.changed.groups_with_set(_part_blocks(store)))
    if times.free != NO_MAP:
        _copy_map(before.free, cut.path / FREE_BEFORE_NAME, store.files)
    return _write(store, times, cut.path / BEGUN_TIMES_NAME)


def finish_times(store: Store, cut: Cut) -> None:
    """The map of `cut`, which is held, is known, or is not to be waited for. OSError: there is no table."""
    _finish(store, cut)


def _finish(store: Store, cut: Cut) -> Times:
    free = free_digest(cut)
    times = read_times(cut.path / TIMES_NAME, store.geometry)
    if times is None or times.free != free:
        times = _with_what_became_free(store, cut, _begun(store, cut, times))
        first = 0 if times.base_ns == times.latest_ns - _SECOND_NS else times.first_at(times.latest_ns - _SECOND_NS)
        if first is not None:
            times.by_part[first] = times.latest_ns
        times.free = free
        _write(store, times, cut.path / TIMES_NAME)
    for name in (BEGUN_TIMES_NAME, FREE_BEFORE_NAME):
        (cut.path / name).unlink(missing_ok=True)
    return times


def resume_times(store: Store) -> None:
    """At the start: what a killed server did not come to. OSError: there is no table."""
    for cut in store.older:
        if (cut.path / BEGUN_TIMES_NAME).exists():
            finish_times(store, cut)
    cut = store.cut
    if store.header.is_device:
        # It has no time that would tell whether somebody else wrote to it while it was not open.
        _begin_anew(store, cut)
        for name in (TIMES_NAME, FREE_BEFORE_NAME):
            (cut.path / name).unlink(missing_ok=True)
    if store.header.cut.is_hidden:
        return
    has_times = read_times(cut.path / TIMES_NAME, store.geometry) is not None
    if not has_times and read_times(cut.path / BEGUN_TIMES_NAME, store.geometry) is None:
        follow_times(store, cut, store.older[-1] if store.older else None)
    if has_times or store.header.protect is Protect.ALL or cut.numbers[CutCounter.FREE_BLOCKS]:
        finish_times(store, cut)


def _may_have_missed(cut: Cut) -> bool:
    """Whether the image may have changed since, without a bit in `changed`."""
    return not cut.numbers.is_kept or cut.numbers[CutCounter.MISSING_BYTES] != 0


def _finished(store: Store, cut: Cut) -> Times | None:
    """What is in the table of `cut`, if it tells of what its readers read."""
    path = cut.path / TIMES_NAME
    return _finish(store, cut) if path.exists() or (cut.path / BEGUN_TIMES_NAME).exists() else None


def _begin_anew(store: Store, cut: Cut) -> None:
    _write(store, _all_at(store, cut), cut.path / BEGUN_TIMES_NAME)


def _all_at(store: Store, cut: Cut) -> Times:
    """All parts were changed at `cut`."""
    latest_ns = _next_ns(store, cut, _latest_ns(store))
    return Times.empty(part_count(store.geometry), latest_ns - _SECOND_NS, latest_ns)


def _next_ns(store: Store, cut: Cut, known_ns: int) -> int:
    """Later than what is known, and than what any table of the store has told."""
    told_ns = store.control[Counter.LATEST_CHANGE_NS]
    facts = store.header.cut_of(cut.generation)
    latest_ns = max(one for one in (0, known_ns, told_ns) if one <= _MAX_NS)
    return max(0 if facts is None else facts.taken_at_ns, latest_ns + _STEP_NS)


def _latest_ns(store: Store) -> int:
    """Where the number of it was lost, what the tables say."""
    return max(latest_of(one.path / name) for one in store.cuts for name in (TIMES_NAME, BEGUN_TIMES_NAME))


def _begun(store: Store, cut: Cut, finished: Times | None) -> Times:
    """The table as it was begun; what is free in one of the two cuts only is still to be noted."""
    if finished is None:
        return read_times(cut.path / BEGUN_TIMES_NAME, store.geometry) or _all_at(store, cut)
    if finished.free != NO_MAP:
        return _all_at(store, cut)
    # The map became known late: what is free by it has read as what it was.
    finished.latest_ns = _next_ns(store, cut, _latest_ns(store))
    return finished


def _with_what_became_free(store: Store, cut: Cut, times: Times) -> Times:
    """Or is free no more: `times.free` says by which map they are right so far."""
    own = cut.free if cut.numbers[CutCounter.FREE_BLOCKS] else None
    if times.free == NO_MAP:
        if own is not None:
            _mark(times, own.groups_with_set(_part_blocks(store)))
        return times
    with suppress(OSError):
        before = Bitmap(cut.path / FREE_BEFORE_NAME, store.geometry.block_count, store.files)
        comparison = _Comparison(before, own, _part_blocks(store), store.files)
        _mark(times, comparison.differing())
        before.close()
        if comparison.digest == times.free:
            return times
    return _all_at(store, cut)


def _mark(times: Times, parts: Iterable[int]) -> None:
    by_part, time_ns = times.by_part, times.latest_ns - _SECOND_NS
    if times.base_ns != time_ns:
        for part in parts:
            by_part[part] = time_ns


def _write(store: Store, times: Times, path: Path) -> None:
    store.control[Counter.LATEST_CHANGE_NS] = times.latest_ns
    durable = store.header.durability is Durability.POWER
    times.write(path, part_count(store.geometry), store.files, durable=durable)


def _part_blocks(store: Store) -> int:
    return PART_BYTES // store.header.block_bytes


# --- two maps ------------------------------------------------------------------------------------------------


def _copy_map(source: Bitmap, path: Path, files: Files) -> None:
    """Durable or not, what it is for proves it by its digest."""
    size_bytes = source.file.size_bytes
    files.write_pieces(path, _pieces_of(source, files), size_bytes=size_bytes, durable=False)


def _pieces_of(bitmap: Bitmap, files: Files) -> Iterator[tuple[int, bytes]]:
    """What is no hole. By reading: to touch the pages of the mapping takes longer."""
    for offset, length in bitmap.file.data_ranges():
        for at in range(offset, offset + length, _PIECE_BYTES):
            yield at, files.pread(bitmap.file.fd, min(_PIECE_BYTES, offset + length - at), at)


class _Comparison:
    """Of two maps; None is one of zeros. Each piece of the first is read once, for its digest too, which is that of
    `seal_free`."""

    def __init__(self, one: Bitmap, other: Bitmap | None, group_blocks: int, files: Files) -> None:
        self._one, self._other, self._group_blocks, self._files = one, other, group_blocks, files
        self._digest = checksum_stream()

    def differing(self) -> Iterator[int]:
        """The groups of so many blocks in which they differ. A group may come twice."""
        for number in range(-(-self._one.file.size_bytes // _PIECE_BYTES)):
            left = self._piece(self._one, number)
            right = self._piece(self._other, number)
            if left is not None:
                self._digest.update(number.to_bytes(8, "little"))
                self._digest.update(left)
            if left != right:
                length = len(left or right or b"")
                yield from self._differing_in(left or bytes(length), right or bytes(length), number * _PIECE_BYTES)

    @property
    def digest(self) -> bytes:
        """Of the first, when they have been compared."""
        return self._digest.digest()

    def _piece(self, bitmap: Bitmap | None, number: int) -> bytes | None:
        """None for zeros. By reading: to touch the pages of the mapping takes longer."""
        if bitmap is None:
            return None
        start = number * _PIECE_BYTES
        stop = min(start + _PIECE_BYTES, bitmap.file.size_bytes)
        if not any(bitmap.file.data_ranges(start, stop)):
            return None
        data = self._files.pread(bitmap.file.fd, _PIECE_BYTES, start)
        return None if data == _ZEROS[: len(data)] else data

    def _differing_in(self, left: bytes, right: bytes, offset: int) -> Iterator[int]:
        for low in range(0, len(left), _PAGE_BYTES):
            high = low + _PAGE_BYTES
            if left[low:high] != right[low:high]:
                yield from _differing_bits(left[low:high], right[low:high], (offset + low) * 8, self._group_blocks)


def _differing_bits(left: bytes, right: bytes, first: int, group_blocks: int) -> Iterator[int]:
    bits, others = bitarray(endian="little"), bitarray(endian="little")
    bits.frombytes(left)
    others.frombytes(right)
    bits ^= others
    at = bits.find(1)
    while at >= 0:
        group = (first + at) // group_blocks
        yield group
        after = (group + 1) * group_blocks - first
        at = bits.find(1, after) if after < len(bits) else -1
