"""What of a cut's preserved blocks somebody still needs."""

from __future__ import annotations

from cow.disk.bitmaps import Bitmap


class Needs:
    """Of a cut with these `released` blocks; `older`: what is settled in the cut before it, None without one. What is
    not settled there, that one has here."""

    def __init__(self, released: Bitmap, older: Bitmap | None) -> None:
        self._released, self.older = released, older

    def need_none(self, first: int, end: int) -> bool:
        """Whether nobody needs any of the blocks."""
        return self._released.all_set(first, end) and (self.older is None or self.older.all_set(first, end))

    def need_all(self, first: int, end: int) -> bool:
        """Whether each of them is needed; may say so of fewer than are."""
        return not self._released.any_set(first, end)

    def need(self, block_no: int) -> bool:
        return not self.need_none(block_no, block_no + 1)
