"""Run lists of NTFS: which clusters an attribute holds, one list at a time or thousands at once.

A run list is a row of runs, each a head byte (low half: bytes of the length, high half: bytes of the step), the
length in clusters, and the signed step from the start of the run before. A run without a step is a hole. A head of
zero, or the end of the attribute, ends the list.

Rules
1. A length is positive; a number has at most eight bytes; a run lies inside its attribute.
2. A run that is no hole lies inside the volume.
3. `runs_at_once` says exactly what `runs_one_by_one` says; it is for the mass of short lists, and hands those
   that go on for long to the other one.

Source: `ntfs_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap.result import MapError

Numbers = NDArray[np.int64]

# Zeros that must follow a buffer for `runs_at_once`: its last read of eight bytes is widened to two words.
PADDING_BYTES = 16
# As few lists as this are decoded faster one by one than by a dozen calls of numpy for each run.
_FEW_LISTS = 24
# More clusters than any file has; keeps sums of many lists inside 64 bits.
CLUSTERS_MAX = 1 << 44

_LENGTH_MASK = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_STEP_SHIFT = np.array([63, *(64 - 8 * count for count in range(1, 9))], dtype=np.int64)


class RunLists(NamedTuple):
    """What many lists hold: starts and ends of all their runs but holes, and how many clusters each spans."""

    starts: Numbers
    ends: Numbers
    spans: Numbers


def runs_one_by_one(mapping: bytes, cluster_count: int, cluster: int = 0) -> Iterator[tuple[int | None, int]]:
    """Start (None: a hole) and length of each run of a list; its steps count from `cluster`."""
    at = 0
    while at < len(mapping) and mapping[at]:
        length_bytes, step_bytes = mapping[at] & 15, mapping[at] >> 4
        end = at + 1 + length_bytes + step_bytes
        if not 0 < length_bytes <= 8 or step_bytes > 8 or end > len(mapping):
            raise _broken()
        length = int.from_bytes(mapping[at + 1 : at + 1 + length_bytes], "little")
        if not 0 < length <= CLUSTERS_MAX:
            raise _broken()
        if step_bytes:
            cluster += int.from_bytes(mapping[at + 1 + length_bytes : end], "little", signed=True)
            if cluster < 0 or cluster + length > cluster_count:
                raise _outside()
        yield cluster if step_bytes else None, length
        at = end


def runs_at_once(content: NDArray[np.uint8], firsts: Numbers, ends: Numbers, cluster_count: int) -> RunLists:
    """Decode the lists in `content` from each of `firsts` to before each of `ends` (bytes).

    `content` is a multiple of eight bytes long and ends in `PADDING_BYTES` that belong to no list.
    """
    lists = _Lists(content, firsts, ends, cluster_count)
    while len(lists.index) > _FEW_LISTS:
        lists.advance()
    lists.finish()
    return RunLists(np.concatenate(lists.starts), np.concatenate(lists.run_ends), lists.spans)


class _Lists:
    """Lists that have not ended yet: which (`index`), where each is read next, its end, its last start."""

    def __init__(self, content: NDArray[np.uint8], firsts: Numbers, ends: Numbers, cluster_count: int) -> None:
        self._bytes = content
        self._words = content.view("<u8")
        self._cluster_count = cluster_count
        self.spans = np.zeros(len(firsts), dtype=np.int64)
        self.starts: list[Numbers] = [np.zeros(0, dtype=np.int64)]
        self.run_ends: list[Numbers] = [np.zeros(0, dtype=np.int64)]
        self.index = np.arange(len(firsts))
        self._at, self._end, self._cluster = firsts, ends, np.zeros(len(firsts), dtype=np.int64)

    def advance(self) -> None:
        """Decode one run of each list; drop lists that have ended."""
        head = self._bytes[self._at].astype(np.int64)
        goes_on = (self._at < self._end) & (head != 0)
        if not goes_on.all():
            self._keep(goes_on)
            head = head[goes_on]
        length_bytes, step_bytes = head & 15, head >> 4
        following = self._at + 1 + length_bytes + step_bytes
        if ((length_bytes == 0) | (length_bytes > 8) | (step_bytes > 8) | (following > self._end)).any():
            raise _broken()
        unsigned = self._eight_bytes(self._at + 1) & _LENGTH_MASK[length_bytes]
        if ((unsigned == 0) | (unsigned > CLUSTERS_MAX)).any():
            raise _broken()
        length = unsigned.astype(np.int64)
        shift = _STEP_SHIFT[step_bytes]
        step = self._eight_bytes(self._at + 1 + length_bytes).view(np.int64) << shift >> shift
        self._cluster = self._cluster + np.where(step_bytes > 0, step, 0)
        self._add(self._cluster, length, step_bytes > 0)
        self._at = following

    def finish(self) -> None:
        """Decode what is left, one list after the other."""
        for index, at, end, cluster in zip(
            self.index.tolist(), self._at.tolist(), self._end.tolist(), self._cluster.tolist(), strict=True
        ):
            runs = list(runs_one_by_one(self._bytes[at:end].tobytes(), self._cluster_count, cluster))
            self.spans[index] += sum(length for _, length in runs)
            real = [(start, start + length) for start, length in runs if start is not None]
            pairs = np.array(real, dtype=np.int64).reshape(-1, 2)
            self.starts.append(pairs[:, 0])
            self.run_ends.append(pairs[:, 1])

    def _keep(self, which: NDArray[np.bool_]) -> None:
        self.index, self._at, self._end = self.index[which], self._at[which], self._end[which]
        self._cluster = self._cluster[which]

    def _add(self, start: Numbers, length: Numbers, is_real: NDArray[np.bool_]) -> None:
        self.spans[self.index] += length
        # Compared without a sum, which a start near the end of 64 bits would overflow.
        if (is_real & ((start < 0) | (start > self._cluster_count - length))).any():
            raise _outside()
        self.starts.append(start[is_real])
        self.run_ends.append((start + length)[is_real])

    def _eight_bytes(self, at: Numbers) -> NDArray[np.uint64]:
        """Eight bytes at any offset, from the two aligned words around them."""
        word, bits = at >> 3, (at.astype(np.uint64) & np.uint64(7)) << np.uint64(3)
        upper = self._words[word + 1] << np.uint64(1) << (np.uint64(63) - bits)
        result: NDArray[np.uint64] = self._words[word] >> bits | upper
        return result


def _broken() -> MapError:
    return MapError("has a file with a broken list of clusters")


def _outside() -> MapError:
    return MapError("has a file with clusters outside the volume")
