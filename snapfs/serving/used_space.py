"""How much of each cut is in use, as far as it is known: what its file is said to take on its disk."""

from __future__ import annotations

from cow import CowError, CutCounter, CutHeader, Image, Store
from snapfs.serving.open_cuts import OpenCuts


class UsedSpace:
    """Of all cuts that `cuts.present` lists. `is_device`: of `image`, which shows no holes then."""

    def __init__(self, cuts: OpenCuts, image: Image, *, is_device: bool) -> None:
        self._cuts, self._image, self._is_device = cuts, image, is_device
        header = cuts.present.header
        self._image_bytes, self._block_bytes = header.image_bytes, header.block_bytes
        # By generation; the second of those that are not the newest, until there is another list of cuts.
        self._used_bytes: dict[int, int] = {}
        self._counts: dict[int, tuple[int, int]] = {}

    def show(self, store: Store) -> None:
        """There is another list of cuts, that of `store`."""
        listed = {one.generation for one in store.header.shown}
        self._used_bytes = {one: used_bytes for one, used_bytes in self._used_bytes.items() if one in listed}
        self._counts.clear()

    def sectors(self, facts: CutHeader) -> int:
        """How many of them hold something: what copies a file looks for its holes only if they are fewer than its
        size tells. About right, and never none, which tar takes for a file of zeros without a look."""
        used_bytes = self._used_bytes.get(facts.generation)
        if used_bytes is None:
            used_bytes = self._look_at_used(facts)
        return max(1, -(-min(self._image_bytes, used_bytes) // 512))

    def _look_at_used(self, facts: CutHeader) -> int:
        """Kept for a cut that is not the newest, whose map never changes."""
        shown = self._cuts.present.header.shown
        if not shown or facts.is_hidden:
            return self._image_bytes
        try:
            free_blocks, _ = self._counts_of(facts.generation)
            used_bytes = self._image_bytes - free_blocks * self._block_bytes
            if not self._is_device:
                used_bytes = min(used_bytes, self._kept_bytes(facts.generation, used_bytes))
        except (CowError, OSError):
            return self._image_bytes
        if facts.generation != shown[-1].generation:
            self._used_bytes[facts.generation] = used_bytes
        return used_bytes

    def _kept_bytes(self, generation: int, most_bytes: int) -> int:
        """What the image has, and what the cut and those after it preserved, which a discard may have taken out of
        the image since. What was written over counts twice; so no further than to `most_bytes`."""
        kept_bytes = self._image.used_bytes
        for one in self._cuts.present.header.cuts:
            if kept_bytes >= most_bytes:
                break
            if one.generation >= generation:
                kept_bytes += self._counts_of(one.generation)[1] * self._block_bytes
        return kept_bytes

    def _counts_of(self, generation: int) -> tuple[int, int]:
        """How many blocks of a cut are free, and how many it has preserved. OSError, CowError: nobody knows."""
        counts = self._counts.get(generation)
        if counts is not None:
            return counts
        cut = self._cuts.hold(generation)
        try:
            counts = cut.numbers[CutCounter.FREE_BLOCKS], cut.numbers[CutCounter.PRESERVED_BLOCKS]
        finally:
            cut.let_go()
        if generation != self._cuts.present.cut.generation:
            self._counts[generation] = counts
        return counts
