"""What of a cut's preserved blocks somebody still needs."""

from __future__ import annotations

from cow.disk.bitmaps import Bitmap
from cow.disk.served import Served


class Needs:
    """Of a cut with these `released` blocks; what is not `served` before, readers of an older one have here."""

    def __init__(self, released: Bitmap, served: Served) -> None:
        self._released, self.served = released, served

    def need_none(self, first: int, end: int) -> bool:
        """Whether nobody needs any of the blocks."""
        return self._released.all_set(first, end) and self.served.all_set(first, end)

    def need_all(self, first: int, end: int) -> bool:
        """Whether each of them is needed; may say so of fewer than are."""
        return not self._released.any_set(first, end)

    def need(self, block_no: int) -> bool:
        return not self.need_none(block_no, block_no + 1)
