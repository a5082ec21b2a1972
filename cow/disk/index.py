"""Where each preserved block is: eight bytes a block in a sparse mapped file (entries: see layout).

The live server makes an entry once; the compactor alone replaces it when it has moved the block from staging
to a segment, and only if it still is the entry that it moved. An aligned entry is stored and loaded whole.
Where the file is written (see `MappedFile`), whatever stores an entry may raise OSError.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from cow.disk.files import Files
from cow.disk.layout import ENTRY_BYTES, KIND_MASK, STAGED, STORED
from cow.disk.mapped_file import MappedFile


class Index:
    """One entry for each of `block_count` blocks; 0 means nothing is preserved."""

    def __init__(
        self, path: Path, block_count: int, files: Files, *, writable: bool = False, create: bool = False
    ) -> None:
        self.file = MappedFile(path, block_count * ENTRY_BYTES, files, writable=writable, create=create)
        self.block_count = block_count
        self._entries = memoryview(self.file.map).cast("Q")

    def get(self, block_no: int) -> int:
        return self._entries[block_no]

    def has_all(self, first: int, end: int) -> bool:
        """Whether each of the blocks has an entry."""
        return 0 not in self._entries[first:end].tolist()

    def get_range(self, first: int, end: int) -> list[int]:
        return self._entries[first:end].tolist()

    def allocate(self, first: int, end: int, *, may_wait: bool = True) -> bool:
        """Make a later store to these entries certain to succeed; see `MappedFile.ensure`."""
        return self.file.ensure(first * ENTRY_BYTES, (end - first) * ENTRY_BYTES, may_wait=may_wait)

    def set_staged(self, first: int, end: int, seq: int) -> None:
        """Blocks `first` to `end` lie in the staging slots from `seq` on. Allocated before."""
        if end - first == 1 and not self.file.is_written:
            self._entries[first] = STAGED | seq
        else:
            self._store(first, array("Q", range(STAGED | seq, (STAGED | seq) + end - first)))

    def set_stored(self, first: int, end: int, entry: int) -> None:
        """Blocks `first` to `end` lie in the one record that `entry` names. Allocated before."""
        self._store(first, array("Q", [entry]) * (end - first))

    def set_entries(self, first: int, entries: list[int]) -> None:
        """The blocks from `first` on have these entries. Allocated before."""
        self._store(first, array("Q", entries))

    def _store(self, first: int, entries: array[int]) -> None:
        if self.file.is_written:
            self.file.store(first * ENTRY_BYTES, entries.tobytes())
        else:
            self._entries[first : first + len(entries)] = entries

    def replace(self, first: int, expected: list[int], entry: int) -> None:
        """Point each block from `first` on to `entry` if its entry still is the expected one."""
        assert entry & KIND_MASK == STORED, "a block moves into a segment, or is lost"
        assert 0 not in expected, "an entry is replaced that nobody has made"
        entries, end = self._entries, first + len(expected)
        if entries[first:end].tolist() == expected:
            self._store(first, array("Q", [entry]) * len(expected))
            return
        for block_no, old in enumerate(expected, first):
            if entries[block_no] == old:
                self._store(block_no, array("Q", [entry]))

    def filled_runs(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, list[int]]]:
        """`(first block, entries)` for the parts of the file between blocks `first` and `end` (all of it) that
        exist, in pieces of bounded size."""
        stop_bytes = None if end is None else end * ENTRY_BYTES
        for offset, length in self.file.data_ranges(first * ENTRY_BYTES, stop_bytes):
            low, high = offset // ENTRY_BYTES, (offset + length) // ENTRY_BYTES
            for start in range(low, high, 1 << 16):
                yield start, self.get_range(start, min(start + (1 << 16), high))

    def count(self) -> int:
        """How many blocks have an entry, lost ones included."""
        return sum(len(entries) - entries.count(0) for _, entries in self.filled_runs())

    def close(self) -> None:
        self._entries.release()
        self.file.close()
