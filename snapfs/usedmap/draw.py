"""Pictures of a map: the whole image as a grid of cells, as PNG or SVG.

A picture is laid out once, as a list of rectangles, lines and texts in logical pixels; each format only
writes that list down. Text widths are measured with Pillow's own font for both.

    title, size
    offset | grid of cells, borders between partitions | leader lines and names of partitions
    scale
    legend with totals
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from snapfs.shown import shown
from snapfs.usedmap.cells import (
    Colour,
    Grid,
    Layers,
    bytes_text,
    make_grid,
    mixed_colour,
    named_regions,
    owners,
    percent_text,
    region_facts,
    region_title,
    total_bytes,
)
from snapfs.usedmap.result import Region
from snapfs.usedmap.terminal import terminal_map

__all__ = ["draw_png", "draw_svg", "terminal_map"]

# Logical pixels; the PNG has twice as many in each direction, to be sharp on today's screens.
_PNG_SCALE: Final = 2
# A power of two of columns: then rows begin at round numbers too.
_COLUMNS, _ROWS_MAX = 128, 80
_PITCH, _CELL = 7, 6
_MARGIN, _OFFSETS_WIDTH, _NAMES_WIDTH = 24, 64, 232
_TITLE_HEIGHT, _SCALE_HEIGHT, _LEGEND_HEIGHT = 48, 34, 40
_NAME_HEIGHT = 34
# More names would make a picture that is mostly names: one of thousands of partitions takes gigabytes of memory.
_MAX_NAMES = 64
_OFFSET_EVERY_ROWS = 8
_LEADER = 26

_PAPER: Final[Colour] = (255, 255, 255)
_INK: Final[Colour] = (33, 41, 52)
_FAINT: Final[Colour] = (112, 122, 134)
_BORDER: Final[Colour] = (33, 41, 52)


@dataclass(frozen=True)
class _Rectangle:
    x: float
    y: float
    width: float
    height: float
    fill: Colour


@dataclass(frozen=True)
class _Line:
    x1: float
    y1: float
    x2: float
    y2: float
    colour: Colour
    width: float = 1


@dataclass(frozen=True)
class _Text:
    """`anchor` is "start" or "end"; (x, y) is on the middle of the line's height."""

    x: float
    y: float
    text: str
    size: int = 12
    colour: Colour = _INK
    anchor: str = "start"


@dataclass
class _Scene:
    width: int
    height: int
    items: list[_Rectangle | _Line | _Text]


def draw_png(path: Path, layers: Layers, title: str = "") -> None:
    """Write the picture as a PNG."""
    scene = _lay_out(layers, title)
    image = Image.new("RGB", (scene.width * _PNG_SCALE, scene.height * _PNG_SCALE), _PAPER)
    draw = ImageDraw.Draw(image)
    for item in scene.items:
        if isinstance(item, _Rectangle):
            _png_rectangle(draw, item)
        elif isinstance(item, _Line):
            ends = [(item.x1 * _PNG_SCALE, item.y1 * _PNG_SCALE), (item.x2 * _PNG_SCALE, item.y2 * _PNG_SCALE)]
            draw.line(ends, fill=item.colour, width=round(item.width * _PNG_SCALE))
        else:
            anchor = "lm" if item.anchor == "start" else "rm"
            place = (item.x * _PNG_SCALE, item.y * _PNG_SCALE)
            draw.text(place, item.text, item.colour, _font(item.size * _PNG_SCALE), anchor=anchor)
    image.save(path, format="PNG", optimize=True)


def _png_rectangle(draw: ImageDraw.ImageDraw, item: _Rectangle) -> None:
    # Pillow's corners are both inside.
    left, top = item.x * _PNG_SCALE, item.y * _PNG_SCALE
    right, bottom = left + item.width * _PNG_SCALE - 1, top + item.height * _PNG_SCALE - 1
    draw.rectangle((left, top, right, bottom), fill=item.fill)


def draw_svg(path: Path, layers: Layers, title: str = "") -> None:
    """Write the picture as an SVG."""
    scene = _lay_out(layers, title)
    size = f'viewBox="0 0 {scene.width} {scene.height}" width="{scene.width}" height="{scene.height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Inter, Helvetica, Arial, sans-serif">',
        f"<title>{escape(shown(title) or 'map of an image')}</title>",
        f'<rect width="100%" height="100%" fill="{_hex(_PAPER)}"/>',
        *(_svg_element(item) for item in scene.items),
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _svg_element(item: _Rectangle | _Line | _Text) -> str:
    if isinstance(item, _Rectangle):
        place = f'x="{item.x:g}" y="{item.y:g}" width="{item.width:g}" height="{item.height:g}"'
        return f'<rect {place} fill="{_hex(item.fill)}"/>'
    if isinstance(item, _Line):
        ends = f'x1="{item.x1:g}" y1="{item.y1:g}" x2="{item.x2:g}" y2="{item.y2:g}"'
        return f'<line {ends} stroke="{_hex(item.colour)}" stroke-width="{item.width:g}" stroke-linecap="square"/>'
    # From the middle of the line down to the baseline, which every program understands.
    baseline = item.y + 0.36 * item.size
    place = f'x="{item.x:g}" y="{baseline:g}" font-size="{item.size}" text-anchor="{item.anchor}"'
    text = escape(item.text)
    return f'<text {place} fill="{_hex(item.colour)}" xml:space="preserve">{text}</text>'


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _lay_out(layers: Layers, title: str) -> _Scene:
    grid = make_grid(layers, _COLUMNS, _ROWS_MAX)
    regions = named_regions(layers.image_map)
    unnamed_count = len(regions) - _MAX_NAMES
    regions = _largest(regions)
    left, top = _MARGIN + _OFFSETS_WIDTH, _MARGIN + _TITLE_HEIGHT
    grid_height = max(grid.rows * _PITCH, len(regions) * _NAME_HEIGHT)
    width = left + _COLUMNS * _PITCH + _NAMES_WIDTH + _MARGIN
    height = top + grid_height + _SCALE_HEIGHT + _LEGEND_HEIGHT + _MARGIN
    size = f"{bytes_text(layers.image_map.size_bytes)}, blocks of {bytes_text(layers.image_map.block_bytes)}"
    items: list[_Rectangle | _Line | _Text] = [
        _Text(left, _MARGIN + 12, _shortened(shown(title) or "Image", 20, _COLUMNS * _PITCH - 240), 20),
        _Text(left + _COLUMNS * _PITCH - 1, _MARGIN + 14, size, 12, _FAINT, "end"),
        *_cells(grid, left, top),
        *_borders(layers, grid, left, top),
        *_offsets(grid, left - 10, top),
        *_names(regions, grid, left + _COLUMNS * _PITCH, top, top + grid_height),
        *_scale(grid, left, top + grid_height + 14),
        *_unnamed(unnamed_count, left + _COLUMNS * _PITCH + _LEADER + 6, top + grid_height + 14),
        *_legend(layers, grid, left, top + grid_height + _SCALE_HEIGHT + 20),
    ]
    return _Scene(width, height, items)


def _cells(grid: Grid, left: int, top: int) -> list[_Rectangle]:
    rectangles = []
    for index, cell in enumerate(grid.cells):
        row, column = divmod(index, grid.columns)
        x, y = left + column * _PITCH, top + row * _PITCH
        rectangles.append(_Rectangle(x, y, _CELL, _CELL, mixed_colour(cell)))
    return rectangles


def _borders(layers: Layers, grid: Grid, left: int, top: int) -> list[_Line]:
    """A line wherever a cell and its neighbour to the right or below belong to different owners."""
    owner = owners(layers.image_map, grid)
    lines: list[_Line] = []
    gap = (_PITCH - _CELL) / 2
    for index, region in enumerate(owner):
        row, column = divmod(index, grid.columns)
        x, y = left + column * _PITCH - gap, top + row * _PITCH - gap
        if column and owner[index - 1] is not region:
            lines.append(_Line(x, y, x, y + _PITCH, _BORDER, 1.5))
        if row and owner[index - grid.columns] is not region:
            lines.append(_Line(x, y, x + _PITCH, y, _BORDER, 1.5))
    return lines


def _offsets(grid: Grid, right: int, top: int) -> list[_Text]:
    """Where a row begins in the image, for every eighth row."""
    return [
        _Text(right, top + row * _PITCH + _CELL / 2, bytes_text(row * grid.row_bytes), 11, _FAINT, "end")
        for row in range(0, grid.rows, _OFFSET_EVERY_ROWS)
    ]


def _largest(regions: list[Region]) -> list[Region]:
    """As many as are named, in their order."""
    return sorted(sorted(regions, key=lambda one: -one.length)[:_MAX_NAMES], key=lambda one: one.offset)


def _unnamed(count: int, x: int, y: int) -> list[_Text]:
    return [_Text(x, y, f"and {count} smaller ones", 12, _FAINT)] if count > 0 else []


def _names(regions: list[Region], grid: Grid, x: int, top: int, bottom: int) -> list[_Line | _Text]:
    """Names beside the rows where the regions are, pushed apart where they would overlap."""
    wanted = [top + _middle_row(region, grid) * _PITCH for region in regions]
    items: list[_Line | _Text] = []
    for region, row_y, y in zip(regions, wanted, _spread(wanted, top, bottom), strict=True):
        middle, end = x + _LEADER / 2, x + _LEADER
        items += [
            _Line(x + 2, row_y, middle, row_y, _FAINT),
            _Line(middle, row_y, middle, y, _FAINT),
            _Line(middle, y, end, y, _FAINT),
            _Text(end + 6, y - 7, _shortened(region_title(region), 13, _NAMES_WIDTH - _LEADER - 6), 13),
            _Text(end + 6, y + 8, region_facts(region), 11, _FAINT),
        ]
    return items


def _middle_row(region: Region, grid: Grid) -> float:
    return (region.offset + region.length / 2) / grid.row_bytes


def _spread(wanted: list[float], top: int, bottom: int) -> list[float]:
    """Places in the same order, `_NAME_HEIGHT` apart, within top and bottom and near what is wanted."""
    places: list[float] = []
    lowest = top + _NAME_HEIGHT / 2
    for y in wanted:
        places.append(max(y, lowest))
        lowest = places[-1] + _NAME_HEIGHT
    highest = bottom - _NAME_HEIGHT / 2
    for index in reversed(range(len(places))):
        places[index] = min(places[index], highest)
        highest = places[index] - _NAME_HEIGHT
    return places


def _scale(grid: Grid, left: int, y: int) -> list[_Rectangle | _Text]:
    text = f"one cell is {bytes_text(grid.cell_bytes)}, a row is {bytes_text(grid.row_bytes)}"
    return [_Rectangle(left, y - _CELL / 2, _CELL, _CELL, _FAINT), _Text(left + 16, y, text, 12, _FAINT)]


def _legend(layers: Layers, grid: Grid, left: int, y: int) -> list[_Rectangle | _Text]:
    """A swatch, the state, its total and its share, side by side."""
    totals = total_bytes(layers, grid)
    step = (_COLUMNS * _PITCH + _NAMES_WIDTH) / max(len(totals), 4)
    items: list[_Rectangle | _Text] = []
    for number, (state, count) in enumerate(reversed(totals.items())):
        x = left + number * step
        share = percent_text(count, layers.image_map.size_bytes)
        items += [
            _Rectangle(x, y - 8, 16, 16, state.colour),
            _Text(x + 24, y - 7, layers.title(state), 13),
            _Text(x + 24, y + 8, f"{bytes_text(count)}, {share}", 11, _FAINT),
        ]
    return items


def _shortened(text: str, size: int, width: float) -> str:
    """The text, its end replaced by an ellipsis if it is wider than `width`."""
    font = _font(size)
    # The fonts that show an SVG may be wider than the one that measures here.
    room = width / 1.15
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"
