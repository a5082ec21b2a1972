"""An image cut into cells of equal size, each with how many of its blocks are in which state.

Rules
1. Every block is in exactly one state. What a picture shows first wins: preserved, changed, released, used, free.
2. "Changed" is what was written since the cut and cost nothing: it was free, or the imager already had it.
3. A cell is a power of two of blocks, so that its size is a number one can say.
4. A cell's colour is a mixture of its states by their share. A state that is there at all stays visible,
   otherwise one used block among thousands of free ones would look free.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bitarray import bitarray

from snapfs.shown import shown
from snapfs.usedmap.result import ImageMap, Region

Colour = tuple[int, int, int]

# The share a state gets in the mixture of a cell as soon as it has one block there.
_VISIBLE_SHARE = 0.18


class State(Enum):
    """What a block is, for a picture: title and colour."""

    PRESERVED = ("preserved", (230, 126, 34))
    CHANGED = ("changed at no cost", (190, 60, 125))
    RELEASED = ("released", (72, 163, 108))
    USED = ("used", (52, 98, 166))
    FREE = ("free", (223, 228, 234))

    def __init__(self, title: str, colour: Colour) -> None:
        self.title = title
        self.colour = colour


@dataclass(frozen=True)
class Layers:
    """What is drawn: the map of an image, and what its snapshot knows of each block (None: nothing).

    The bitarrays have one bit per block, like `image_map.used`.
    """

    image_map: ImageMap
    owed: bitarray | None = None
    preserved: bitarray | None = None
    released: bitarray | None = None
    changed: bitarray | None = None

    def __post_init__(self) -> None:
        for bits in (self.owed, self.preserved, self.released, self.changed):
            if bits is not None and len(bits) != len(self.image_map.used):
                raise ValueError("a layer needs one bit per block of the image")

    def states(self) -> list[State]:
        """The states that can occur, most important first."""
        known = {State.PRESERVED: self.preserved, State.CHANGED: self.changed, State.RELEASED: self.released}
        return [state for state in State if state not in known or known[state] is not None]

    def title(self, state: State) -> str:
        """The state's name in a legend; what is used is owed as long as a snapshot needs it."""
        return "used and owed" if state is State.USED and self.owed is not None else state.title

    def counts(self, first: int, end: int) -> dict[State, int]:
        """How many of the blocks from `first` to before `end` are in which state."""
        left = bitarray(end - first, endian="little")
        left.setall(1)
        counts = {}
        for state in self.states():
            bits = self._bits(state)
            if bits is None:
                counts[state] = left.count()
                break
            mine = bits[first:end]
            mine &= left
            left &= ~mine
            counts[state] = mine.count()
        return counts

    def _bits(self, state: State) -> bitarray | None:
        if state is State.PRESERVED:
            return self.preserved
        if state is State.CHANGED:
            return self.changed
        if state is State.RELEASED:
            return self.released
        return self.image_map.used if state is State.USED else None


@dataclass(frozen=True)
class Grid:
    """Cells row by row; the last row may be short."""

    columns: int
    cell_bytes: int
    cells: list[dict[State, int]]

    @property
    def rows(self) -> int:
        return -(-len(self.cells) // self.columns)

    @property
    def row_bytes(self) -> int:
        return self.columns * self.cell_bytes


def make_grid(layers: Layers, columns: int, rows: int) -> Grid:
    """The image in at most `columns` x `rows` cells, as fine as possible."""
    block_count = len(layers.image_map.used)
    blocks_per_cell = 1
    while -(-block_count // blocks_per_cell) > columns * rows:
        blocks_per_cell *= 2
    cells = [
        layers.counts(first, min(first + blocks_per_cell, block_count))
        for first in range(0, block_count, blocks_per_cell)
    ]
    return Grid(columns, blocks_per_cell * layers.image_map.block_bytes, cells)


def total_bytes(layers: Layers, grid: Grid) -> dict[State, int]:
    """Bytes in each state; they add up to the size of the image, its last block may be a partial one."""
    block_bytes, size_bytes = layers.image_map.block_bytes, layers.image_map.size_bytes
    totals = {state: sum(cell[state] for cell in grid.cells) * block_bytes for state in layers.states()}
    block_count = len(layers.image_map.used)
    if block_count:
        last = layers.counts(block_count - 1, block_count)
        state = next(state for state, count in last.items() if count)
        totals[state] -= block_count * block_bytes - size_bytes
    return totals


def mixed_colour(cell: dict[State, int], free: Colour = State.FREE.colour) -> Colour:
    """The colours of a cell's states, mixed by their share; `free` is that of free blocks."""
    count = sum(cell.values())
    busy = {state: number for state, number in cell.items() if number and state is not State.FREE}
    if not busy:
        return free
    shares: dict[State, float] = {
        state: _VISIBLE_SHARE + (1 - _VISIBLE_SHARE) * number / count for state, number in busy.items()
    }
    total = sum(shares.values())
    if cell[State.FREE]:
        shares[State.FREE] = max(0.0, 1.0 - total)
        total = sum(shares.values())
    colours = [(free if state is State.FREE else state.colour, share) for state, share in shares.items()]
    red, green, blue = (
        round(sum(colour[channel] * share for colour, share in colours) / total) for channel in range(3)
    )
    return red, green, blue


def owners(image_map: ImageMap, grid: Grid) -> list[Region | None]:
    """The filesystem or partition in the middle of each cell, or None where there is none."""
    middles = (index * grid.cell_bytes + grid.cell_bytes // 2 for index in range(len(grid.cells)))
    regions = iter(named_regions(image_map))
    region = next(regions, None)
    found: list[Region | None] = []
    for middle in middles:
        while region is not None and middle >= region.offset + region.length:
            region = next(regions, None)
        found.append(region if region is not None and middle >= region.offset else None)
    return found


def named_regions(image_map: ImageMap) -> list[Region]:
    """Regions worth a name in a picture, in their order: not tables and gaps."""
    unnamed = ("gap", "dos", "gpt", "extended")
    return sorted((region for region in image_map.regions if region.kind not in unnamed), key=lambda r: r.offset)


def region_title(region: Region) -> str:
    """For example "2  ext4  home"; a label is as hostile as the image."""
    number = "" if region.partition_number is None else str(region.partition_number)
    return shown("  ".join(part for part in (number, region.kind, region.label or region.partition_name) if part))


def region_facts(region: Region) -> str:
    """For example "4 GiB, 38 % used", or why all of it counts as used."""
    size = bytes_text(region.length)
    if region.state != "trusted":
        return f"{size}, counts as used"
    return f"{size}, {percent_text(region.used_bytes, region.length)} used"


def bytes_text(count: int) -> str:
    """A size as people say it, three digits: "1.46 GiB"."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1000 or unit == "PiB":
            break
        value /= 1024
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def percent_text(part: int, whole: int) -> str:
    """A share; what is not nothing is not said to be nothing, what is not all is not all."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %"
