"""What is right of a chain of snapshots: the bytes of the image, and what each snapshot and each checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine_rig import pattern

from cow.geometry import Geometry
from cow.live.overflow import OverflowPolicy

BLOCK_BYTES = 512
BLOCKS = 48
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)


@dataclass
class Snapshot:
    """What is right: the bytes, but for blocks that read as zeros, and those that are released or lost.

    `in_image`: blocks of which nobody has a copy yet.
    """

    content: bytes
    in_image: set[int] = field(default_factory=lambda: set(range(BLOCKS)))
    free: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    is_over: bool = False

    def lose(self, blocks: set[int]) -> None:
        """The image cannot give them any more."""
        self.lost |= blocks & self.in_image
        self.in_image -= blocks


@dataclass
class Held:
    """A checkpoint: what the image was, who holds it, and whether something may have been missed since."""

    content: bytes
    holders: set[str] = field(default_factory=set)
    may_be_void: bool = False


class Right:
    """The image, and the snapshots and checkpoints by generation, oldest first."""

    def __init__(self) -> None:
        self.image, self.has_lost = bytearray(OLD), False
        # Of the image's file: whether it is cut short now, and how short it has been since the last cut.
        self.is_short = False

    def begin_anew(self, *, takes_snapshot: bool) -> None:
        """A store that has the present alone, or nothing."""
        # The last cut in whose time the image changed and nobody wrote.
        self.shortest, self.has_missed = len(OLD), 0
        self.snapshots = {1: Snapshot(bytes(self.image))} if takes_snapshot else {}
        self.named: set[int] = set()
        self.mapped: set[int] = set()
        self.checkpoints: dict[int, Held] = {}

    def write(self, offset: int, data: bytes, blocks: set[int], bad: set[int]) -> None:
        """What the image cannot give is lost, perhaps only to one that was deleted and waits to be merged."""
        self.image[offset : offset + len(data)] = data
        self.has_lost |= bool(bad)
        for snapshot in self.snapshots.values():
            snapshot.lose(bad)
            snapshot.in_image -= blocks

    def overflow(self, overflowed: set[int], policy: OverflowPolicy) -> list[int]:
        """Those snapshots that have just given way, of all cuts that have; none that had not to."""
        kept = [one for one, snapshot in sorted(self.snapshots.items()) if not snapshot.is_over]
        lost = [one for one in kept if one in overflowed]
        if overflowed:
            self.void(max(overflowed))
        assert lost == kept[: len(lost)]
        assert policy is OverflowPolicy.BREAK_OLDEST or lost in ([], kept)
        for generation in lost:
            self.snapshots[generation].is_over = True
        return lost

    def void(self, generation: int) -> None:
        """The cut may have missed something."""
        for one, held in self.checkpoints.items():
            held.may_be_void |= one <= generation

    def hold(self, generation: int, holder: str) -> None:
        if generation not in self.checkpoints:
            self.checkpoints[generation] = Held(self.snapshots[generation].content)
            # It may have happened before.
            self.checkpoints[generation].may_be_void = True in {
                one.is_over for at, one in self.snapshots.items() if at >= generation
            } or (self.has_missed and generation <= self.has_missed)
        self.checkpoints[generation].holders.add(holder)

    def let_go(self, holder: str, kept: Iterable[int]) -> None:
        for generation in self.checkpoints.keys() - kept:
            self.checkpoints[generation].holders.discard(holder)
        self.checkpoints = {at: held for at, held in self.checkpoints.items() if held.holders}

    def cut(self, generation: int, *, is_named: bool) -> None:
        self.snapshots[generation] = Snapshot(bytes(self.image))
        self.shortest = len(OLD)
        if is_named:
            self.named.add(generation)

    def cut_short(self, length: int, generation: int) -> None:
        """The image's file, in the time of that cut."""
        self.shortest, self.is_short, self.has_lost = min(length, self.shortest), True, True
        self.image[length:] = bytes(len(OLD) - length)
        self.has_missed = generation
        self.void(generation)
        gone = set(range(self.shortest // BLOCK_BYTES, BLOCKS))
        for snapshot in self.snapshots.values():
            snapshot.lose(gone)

    def reverted(self, target: Snapshot, geometry: Geometry) -> bytes:
        """The image after a revert to that snapshot, which leaves free blocks as they are."""
        image = bytearray(self.image)
        for block_no in set(range(BLOCKS)) - target.free:
            offset, length = geometry.extent(block_no, block_no + 1)
            image[offset : offset + length] = target.content[offset : offset + length]
        return bytes(image)

    def revert(self, image: bytes, expected: bytes, geometry: Geometry, *, is_refused: bool) -> None:
        written = {
            block_no
            for block_no in range(BLOCKS)
            for offset, length in [geometry.extent(block_no, block_no + 1)]
            if expected[offset : offset + length] != self.image[offset : offset + length]
        }
        self.image[:] = image
        for snapshot in self.snapshots.values() if not is_refused else ():
            snapshot.in_image -= written
