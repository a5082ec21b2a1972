"""What an image and its snapshot must hold, after writes that were acknowledged and others that were not.

Rules
- A sector that was written and synced holds what was written last.
- One that was not synced, or whose sync failed, holds that or anything it held since it was last certain.
- A sector of the snapshot holds what the live view held at the cut, by the same two rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 512


@dataclass
class Content:
    """Bytes, and for each uncertain sector all that it may hold instead."""

    data: bytearray
    maybe: dict[int, list[bytes]] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(bytearray(self.data), {sector: list(held) for sector, held in self.maybe.items()})

    def wrong(self, offset: int, found: bytes) -> str | None:
        """What is wrong with `found` at `offset` (whole sectors, but for the last of the image)."""
        if self.data[offset : offset + len(found)] == found:
            return None
        for at in range(0, len(found), SECTOR):
            piece, sector = found[at : at + SECTOR], (offset + at) // SECTOR
            due = bytes(self.data[offset + at : offset + at + len(piece)])
            if piece != due and piece not in self.maybe.get(sector, ()):
                return f"sector {sector} holds {piece[:8].hex()}, due is {due[:8].hex()}"
        return None


class Model:
    """The live view and the snapshot of one image."""

    def __init__(self, content: bytes) -> None:
        self.live = Content(bytearray(content))
        self.snap = self.live.copy()
        self.released: set[int] = set()  # sectors
        self._failed: set[int] = set()

    def note_write(self, offset: int, data: bytes) -> None:
        """`data` was given to the kernel, or may have been; certain is nothing before a sync."""
        for at in range(0, len(data), SECTOR):
            sector, start = (offset + at) // SECTOR, offset + at
            piece = data[at : at + SECTOR]
            held = self.live.maybe.setdefault(sector, [bytes(self.live.data[start : start + len(piece)])])
            held.append(piece)
            self._failed.discard(sector)
        self.live.data[offset : offset + len(data)] = data

    def note_sync(self, *, succeeded: bool) -> None:
        """A failure is told once: what had been written by then stays uncertain until it is written again."""
        if succeeded:
            self.live.maybe = {at: held for at, held in self.live.maybe.items() if at in self._failed}
        else:
            self._failed.update(self.live.maybe)

    def note_cut(self) -> None:
        self.snap, self.released = self.live.copy(), set()

    def note_release(self, offset: int, length: int) -> None:
        self.released.update(range(offset // SECTOR, (offset + length) // SECTOR))

    def settle(self, image: bytes) -> str | None:
        """The servers died: what the image holds now is what it holds. What is wrong with it, if anything is."""
        wrong = self.live.wrong(0, image)
        self.live.data[:] = image
        self.live.maybe.clear()
        self._failed.clear()
        return wrong
