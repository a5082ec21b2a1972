"""A map for a terminal: two cells in one character, above the legend and the names of the partitions.

With colours a character is an upper half block: its ink is the upper cell, its background the lower. Without
colours one character is one cell and says which state is the most important there.
"""

from __future__ import annotations

from rich.color import Color
from rich.style import Style
from rich.text import Text

from snapfs.usedmap.cells import (
    Colour,
    Grid,
    Layers,
    State,
    bytes_text,
    make_grid,
    mixed_colour,
    named_regions,
    percent_text,
    region_facts,
    region_title,
    total_bytes,
)
from snapfs.usedmap.result import Region

_HALF_BLOCK = "▀"
_SWATCH = "■"
_OFFSET_WIDTH = 9
# Columns in steps, so that rows begin at numbers one can read.
_COLUMN_STEP, _MIN_ROWS = 16, 1
# Totals do not depend on the grid; cells keep the pieces of bitmaps small that are worked on.
_GRID_FOR_TOTALS = (32, 32)
# Without colours: a letter for what happened since the cut, a shade for what is used.
_LETTERS = {State.PRESERVED: "P", State.CHANGED: "C", State.RELEASED: "R"}
_SHADES = "░▒▓█"
_FREE_MARK = "·"
# A grey that stands back on dark and on light terminals; the paper's would glare.
_FREE_COLOUR: Colour = (96, 103, 112)


def terminal_map(layers: Layers, width: int, height: int, *, colour: bool = True) -> Text:
    """The map within `width` characters and, if the partitions are not too many, `height` lines."""
    legend = _legend(layers, width, colour=colour)
    regions = [_region_line(region, width) for region in named_regions(layers.image_map)]
    lines_left = max(_MIN_ROWS, height - len(legend) - len(regions))
    rows = lines_left * 2 if colour else lines_left
    columns = max(_COLUMN_STEP, (width - _OFFSET_WIDTH) // _COLUMN_STEP * _COLUMN_STEP)
    grid = make_grid(layers, columns, rows)
    body = _coloured_rows(grid) if colour else _plain_rows(grid)
    scale = Text.assemble((f"{'':{_OFFSET_WIDTH}}one cell is {bytes_text(grid.cell_bytes)}", "dim"))
    scale.truncate(width)
    return Text("\n").join([*body, scale, *legend[1:], *regions])


def _offset(grid: Grid, row: int) -> Text:
    # A style of this piece only: one of the whole line would dim the cells that follow.
    return Text.assemble((f"{bytes_text(row * grid.row_bytes):>{_OFFSET_WIDTH - 1}} ", "dim"))


def _coloured_rows(grid: Grid) -> list[Text]:
    lines = []
    for row in range(0, grid.rows, 2):
        line = _offset(grid, row)
        upper = grid.cells[row * grid.columns : (row + 1) * grid.columns]
        lower = grid.cells[(row + 1) * grid.columns : (row + 2) * grid.columns]
        for column, cell in enumerate(upper):
            below = mixed_colour(lower[column], _FREE_COLOUR) if column < len(lower) else None
            line.append(_HALF_BLOCK, _style(mixed_colour(cell, _FREE_COLOUR), below))
        lines.append(line)
    return lines


def _plain_rows(grid: Grid) -> list[Text]:
    lines = []
    for row in range(grid.rows):
        line = _offset(grid, row)
        for cell in grid.cells[row * grid.columns : (row + 1) * grid.columns]:
            line.append(_mark(cell))
        lines.append(line)
    return lines


def _mark(cell: dict[State, int]) -> str:
    for state, letter in _LETTERS.items():
        if cell.get(state):
            return letter
    used, count = cell[State.USED], sum(cell.values())
    return _SHADES[min(len(_SHADES) - 1, used * len(_SHADES) // count)] if used else _FREE_MARK


def _style(ink: Colour, background: Colour | None) -> Style:
    below = Color.from_rgb(*background) if background else None
    return Style(color=Color.from_rgb(*ink), bgcolor=below)


def _legend(layers: Layers, width: int, *, colour: bool) -> list[Text]:
    """First an empty line in the place of the scale, then the states, as many in a line as fit."""
    lines = [Text()]
    totals = total_bytes(layers, make_grid(layers, *_GRID_FOR_TOTALS))
    for state, count in reversed(totals.items()):
        share = percent_text(count, layers.image_map.size_bytes)
        swatch = _SWATCH if colour else _LETTERS.get(state, _FREE_MARK if state is State.FREE else _SHADES[-1])
        ink = _FREE_COLOUR if state is State.FREE else state.colour
        entry = Text.assemble(
            (swatch, _style(ink, None)),
            f" {layers.title(state)} ",
            (f"{bytes_text(count)} ({share})", "dim"),
        )
        if len(lines) == 1 or lines[-1].cell_len + 3 + entry.cell_len > width:
            lines.append(Text(" " * _OFFSET_WIDTH if width > 60 else ""))
        elif lines[-1].plain.strip():
            lines[-1].append("   ")
        lines[-1].append_text(entry)
    return lines


def _region_line(region: Region, width: int) -> Text:
    offset = f"{bytes_text(region.offset):>{_OFFSET_WIDTH - 1}} "
    line = Text.assemble((offset, "dim"), (region_title(region), "bold"), (f"  {region_facts(region)}", "dim"))
    line.truncate(width, overflow="ellipsis")
    return line
