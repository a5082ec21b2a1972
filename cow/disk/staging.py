"""The staging ring: preserved blocks lie here raw until the compactor has moved them to a segment.

Slots are numbered by a sequence that never repeats; slot `seq` lies at `seq % slot_count`. Three numbers
of the control page cut the sequence:

    FREED_SEQ          COMMITTED_SEQ             RESERVED_SEQ          FREED_SEQ + slot_count
        | indexed: the     | being filled by writers  | free to reserve        |
        | compactor moves  |                          |                        |

A slot is filled in the order data, tag (the number of the block in it), checksum (XXH3-64 of the data, seeded
with the cut's generation and the sequence number), and only then indexed. A slot whose block's index entry
does not name this very sequence number is dead: its write failed, or an earlier cut owned it.
The ring's file is one hole until a block is preserved, then it is allocated as a whole: a store into it can never
meet a full disk. Once it has been empty for a while it becomes a hole again.
"""

from __future__ import annotations

import contextlib
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path

from cow.disk.codec import slot_checksums, slot_seed
from cow.disk.files import PAGE_BYTES, Files
from cow.disk.layout import MIN_STAGING_SLOTS, NO_TAG, STAGING_BYTES, TAG_BYTES
from cow.disk.mapped_file import MappedFile

_WARM_BYTES = 1 << 20


def slot_count(block_bytes: int, staging_bytes: int = STAGING_BYTES) -> int:
    """How many blocks the ring holds."""
    return max(MIN_STAGING_SLOTS, staging_bytes // block_bytes)


def _data_offset(slots: int) -> int:
    return -(-2 * slots * TAG_BYTES // PAGE_BYTES) * PAGE_BYTES


def file_bytes(block_bytes: int, slots: int) -> int:
    """Size of the ring's file: tags and checksums, then the slots."""
    return _data_offset(slots) + slots * block_bytes


class Staging:
    """The ring of `slots` blocks; the live server writes it, the others read."""

    def __init__(
        self,
        path: Path,
        block_bytes: int,
        slots: int,
        files: Files,
        *,
        writable: bool = False,
        create: bool = False,
    ) -> None:
        self.block_bytes, self.slots, self._files = block_bytes, slots, files
        table_bytes = slots * TAG_BYTES
        self._data_offset = _data_offset(slots)
        size_bytes = file_bytes(block_bytes, slots)
        self.file = MappedFile(path, size_bytes, files, writable=writable, create=create, is_ring=True)
        # Used from one end to the other.
        self.file.map.madvise(mmap.MADV_NORMAL)
        whole = memoryview(self.file.map)
        self._tags = whole[:table_bytes].cast("Q")
        self._checksums = whole[table_bytes : 2 * table_bytes].cast("Q")
        # Where the file is written, slots are filled in memory of our own first; untouched, it costs nothing.
        self._own = mmap.mmap(-1, slots * block_bytes) if self.file.is_written else None
        self._data = whole[self._data_offset :] if self._own is None else memoryview(self._own)

    def allocate(self) -> None:
        """Take the ring's space; OSError(ENOSPC) when the disk does not have it."""
        self.file.reserve()

    @property
    def is_allocated(self) -> bool:
        """Whether nothing was given back since."""
        return self.file.is_reserved

    def warm(self) -> None:
        """Have the kernel hold the ring's pages before they are first used; it takes no space on disk.

        A page that is new to the page cache costs the write that meets it more than everything else it does.
        """
        piece = memoryview(bytearray(_WARM_BYTES))
        for offset in range(0, self.file.size_bytes, _WARM_BYTES):
            length = min(_WARM_BYTES, self.file.size_bytes - offset)
            self._files.read_into(self.file.fd, [piece[:length]], offset)

    @property
    def takes_space(self) -> bool:
        """Whether anything of it is allocated on disk."""
        return self.file.takes_space

    def give_back(self) -> None:
        """Nothing is in it: take no space on disk. OSError: the filesystem cannot give it back."""
        self.file.empty()
        if self._own is not None:
            self._own.madvise(mmap.MADV_REMOVE)

    def views(self, seq: int, count: int) -> list[memoryview]:
        """The memory of `count` slots from `seq` on: one piece, or two where the ring wraps."""
        size, slot = self.block_bytes, seq % self.slots
        until = slot + count
        if until <= self.slots:
            return [self._data[slot * size : until * size]]
        return [self._data[slot * size :], self._data[: (until - self.slots) * size]]

    def fill(self, generation: int, seq: int, first: int, end: int) -> None:
        """The slots from `seq` on now hold the blocks `first` to `end`: tag and checksum them."""
        slot, count = seq % self.slots, end - first
        until = slot + count
        if until > self.slots:
            head = self.slots - slot
            self.fill(generation, seq, first, first + head)
            self.fill(generation, seq + head, first + head, end)
            return
        size = self.block_bytes
        if self._own is not None:
            self._write(generation, seq, first, end)
            return
        if count == 1:
            self._tags[slot] = first
            data = self._data[slot * size : until * size]
            self._checksums[slot] = slot_checksums(data, size, slot_seed(generation, seq))[0]
            return
        self._tags[slot:until] = array("Q", range(first, end))
        data = self._data[slot * size : until * size]
        self._checksums[slot:until] = array("Q", slot_checksums(data, size, slot_seed(generation, seq)))

    def _write(self, generation: int, seq: int, first: int, end: int) -> None:
        """The same for slots that lie side by side, in a file that is written: OSError if the disk refuses."""
        slot, count, size = seq % self.slots, end - first, self.block_bytes
        data = self._data[slot * size : (slot + count) * size]
        sums = array("Q", slot_checksums(data, size, slot_seed(generation, seq)))
        self.file.store(self._data_offset + slot * size, data)
        self.file.store(slot * TAG_BYTES, array("Q", range(first, end)).tobytes())
        self.file.store((self.slots + slot) * TAG_BYTES, sums.tobytes())

    def void(self, seq: int, count: int) -> None:
        """Mark slots that were reserved and hold nothing after all."""
        for number in range(seq, seq + count):
            slot = number % self.slots
            if self._own is None:
                self._tags[slot] = NO_TAG
                continue
            # Refused: no entry names the slot, which is what counts.
            with contextlib.suppress(OSError):
                self.file.store(slot * TAG_BYTES, NO_TAG.to_bytes(TAG_BYTES, "little"))

    def tags(self, seq: int, count: int) -> list[int]:
        """The block numbers in `count` slots from `seq` on; NO_TAG where there is none."""
        return self._table(self._tags, seq, count)

    def checksums(self, seq: int, count: int) -> list[int]:
        """The checksums noted for `count` slots from `seq` on."""
        return self._table(self._checksums, seq, count)

    def _table(self, table: memoryview, seq: int, count: int) -> list[int]:
        slot = seq % self.slots
        until = slot + count
        if until <= self.slots:
            return table[slot:until].tolist()
        return table[slot:].tolist() + table[: until - self.slots].tolist()

    def read_into(self, view: memoryview, seq: int) -> None:
        """Copy whole slots from `seq` on by system calls, so that a reader's memory does not grow by the ring."""
        for part, offset in self._parts(view, seq):
            self._files.read_into(self.file.fd, [part], offset)

    def try_read_into(self, view: memoryview, seq: int) -> bool:
        """The same from the page cache only; False if it would wait."""
        return all(self._files.try_read_into(self.file.fd, [part], offset) for part, offset in self._parts(view, seq))

    def _parts(self, view: memoryview, seq: int) -> Iterator[tuple[memoryview, int]]:
        """`view` with the offset in the file that each part of it comes from: two where the ring wraps."""
        size, slot = self.block_bytes, seq % self.slots
        head = min(len(view), (self.slots - slot) * size)
        yield view[:head], self._data_offset + slot * size
        if head < len(view):
            yield view[head:], self._data_offset

    def close(self) -> None:
        self._tags.release()
        self._checksums.release()
        self._data.release()
        self.file.close()
