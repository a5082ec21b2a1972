"""Pictures of a map: what is in the cells, what stands in the PNG, the SVG and the terminal."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bitarray import bitarray
from bitarray.util import zeros
from PIL import Image

from snapfs.usedmap.cells import (
    Layers,
    State,
    bytes_text,
    make_grid,
    mixed_colour,
    owners,
    percent_text,
    total_bytes,
)
from snapfs.usedmap.draw import draw_png, draw_svg, terminal_map
from snapfs.usedmap.result import ImageMap, Region

KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = 4096
SVG = "{http://www.w3.org/2000/svg}"
# Where the first cell of a picture is, and how far the next one, in logical pixels; a PNG has two for one.
LEFT, TOP, PITCH, PNG_SCALE = 24 + 64, 24 + 48, 7, 2


def bits(text: str) -> bitarray:
    """Bits of a small map as zeros and ones, blanks ignored."""
    return bitarray(text.replace(" ", ""), endian="little")


def image_map(used: bitarray, regions: list[Region] | None = None, size_bytes: int | None = None) -> ImageMap:
    return ImageMap(BLOCK_BYTES, size_bytes or len(used) * BLOCK_BYTES, used, regions or [])


def two_partitions() -> ImageMap:
    """16 MiB: a gap of 1 MiB, 7 MiB half used, 8 MiB that count as used."""
    used = zeros(4096, "little")
    used[:256] = used[1024:2048] = used[2048:] = 1
    regions = [
        Region("gap", 0, MIB),
        Region("ext4", MIB, 7 * MIB, state="trusted", label="<root> & more", partition_number=1, free_bytes=3 * MIB),
        Region("ntfs", 8 * MIB, 8 * MIB, reason="it is marked dirty", partition_number=2),
    ]
    return image_map(used, regions)


def layers_of_all_states() -> Layers:
    """Eight blocks: free, used, preserved (and changed), changed while free, released, released and changed, ..."""
    return Layers(
        image_map(bits("0110 1101")),
        owed=bits("0100 0000"),
        preserved=bits("0010 0000"),
        released=bits("0000 1100"),
        changed=bits("0011 0100"),
    )


def test_every_block_is_in_one_state() -> None:
    counts = layers_of_all_states().counts(0, 8)
    assert counts == {State.PRESERVED: 1, State.CHANGED: 2, State.RELEASED: 1, State.USED: 2, State.FREE: 2}


def test_states_that_nobody_knows_are_left_out() -> None:
    layers = Layers(image_map(bits("0110")), preserved=bits("0100"))
    assert layers.counts(0, 4) == {State.PRESERVED: 1, State.USED: 1, State.FREE: 2}


def test_a_layer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="one bit per block"):
        Layers(image_map(bits("0110")), owed=bits("01"))


def test_totals_add_up_to_an_image_that_ends_inside_a_block() -> None:
    layers = Layers(image_map(bits("0110 0001"), size_bytes=7 * BLOCK_BYTES + 100))
    totals = total_bytes(layers, make_grid(layers, 3, 1))
    assert totals == {State.USED: 2 * BLOCK_BYTES + 100, State.FREE: 5 * BLOCK_BYTES}


@pytest.mark.parametrize(
    ("blocks", "columns", "rows", "blocks_per_cell"), [(16, 4, 4, 1), (17, 4, 4, 2), (1, 4, 4, 1), (1000, 8, 2, 64)]
)
def test_cells_are_as_fine_as_possible(blocks: int, columns: int, rows: int, blocks_per_cell: int) -> None:
    grid = make_grid(Layers(image_map(zeros(blocks, "little"))), columns, rows)
    assert grid.cell_bytes == blocks_per_cell * BLOCK_BYTES
    assert sum(sum(cell.values()) for cell in grid.cells) == blocks
    assert grid.rows <= rows


def test_one_used_block_among_thousands_can_be_seen() -> None:
    colour = mixed_colour({State.USED: 1, State.FREE: 4095})
    assert max(abs(a - b) for a, b in zip(colour, State.FREE.colour, strict=True)) > 20


def test_cells_of_one_state_have_its_colour() -> None:
    for state in State:
        cell = dict.fromkeys(State, 0)
        cell[state] = 9
        assert mixed_colour(cell) == state.colour


def test_more_of_a_state_is_more_of_its_colour() -> None:
    reds = [mixed_colour({State.USED: used, State.FREE: 100 - used})[0] for used in (0, 1, 30, 60, 100)]
    assert reds == sorted(reds, reverse=True)
    assert len(set(reds)) == 5


def test_a_cell_belongs_to_the_partition_in_its_middle() -> None:
    layers = Layers(two_partitions())
    found = owners(layers.image_map, make_grid(layers, 4, 4))
    assert [region.kind if region else None for region in found] == [None] + ["ext4"] * 7 + ["ntfs"] * 8


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (4096, "4 KiB"), (1500, "1.46 KiB"), (1000 * KIB, "0.98 MiB"), (1 << 40, "1 TiB")],
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (1, 10**6, "< 0.1 %"),
        (1, 40, "2.5 %"),
        (1, 3, "33 %"),
        (10**6 - 1, 10**6, "> 99.9 %"),
        (7, 7, "100 %"),
        (0, 0, "0 %"),
    ],
)
def test_shares_never_hide_a_remainder(part: int, whole: int, text: str) -> None:
    assert percent_text(part, whole) == text


def centre_of_cell(index: int) -> tuple[int, int]:
    row, column = divmod(index, 128)
    return ((LEFT + column * PITCH + 3) * PNG_SCALE, (TOP + row * PITCH + 3) * PNG_SCALE)


def test_png_shows_the_states(tmp_path: Path) -> None:
    draw_png(tmp_path / "map.png", layers_of_all_states(), "disk.img")
    with Image.open(tmp_path / "map.png") as picture:
        seen = [picture.getpixel(centre_of_cell(index)) for index in range(8)]
    expected = [
        State.FREE,
        State.USED,
        State.PRESERVED,
        State.CHANGED,
        State.RELEASED,
        State.CHANGED,
        State.FREE,
        State.USED,
    ]
    assert seen == [state.colour for state in expected]


def test_png_has_a_border_between_partitions(tmp_path: Path) -> None:
    draw_png(tmp_path / "map.png", Layers(two_partitions()), "disk.img")
    with Image.open(tmp_path / "map.png") as picture:
        # 4096 cells of one block: the second partition begins with row 16.
        x, y = centre_of_cell(16 * 128 + 5)
        dark = [sum(picture.getpixel((x, at))) < 200 for at in range(y - PITCH, y)]
    assert any(dark)


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_png(tmp_path / f"{name}.png", layers_of_all_states(), "disk.img")
        draw_svg(tmp_path / f"{name}.svg", layers_of_all_states(), "disk.img")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def svg_texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_svg_names_partitions_scale_and_totals(tmp_path: Path) -> None:
    draw_svg(tmp_path / "map.svg", Layers(two_partitions()), "a <b> & c.img")
    texts = svg_texts(tmp_path / "map.svg")
    assert "a <b> & c.img" in texts
    assert "16 MiB, blocks of 4 KiB" in texts
    assert "1  ext4  <root> & more" in texts
    assert "7 MiB, 57 % used" in texts
    assert "8 MiB, counts as used" in texts
    assert "one cell is 4 KiB, a row is 512 KiB" in texts
    assert "13 MiB, 81 %" in texts
    assert "3 MiB, 19 %" in texts


def test_svg_has_every_cell(tmp_path: Path) -> None:
    draw_svg(tmp_path / "map.svg", Layers(two_partitions()))
    fills = [element.get("fill") for element in ElementTree.parse(tmp_path / "map.svg").iter(f"{SVG}rect")]
    free, used = ("#{:02x}{:02x}{:02x}".format(*state.colour) for state in (State.FREE, State.USED))
    assert (fills.count(free), fills.count(used)) == (768 + 1, 3328 + 1)


def test_names_of_many_partitions_do_not_overlap(tmp_path: Path) -> None:
    regions = [
        Region("ext4", number * 8 * KIB, 8 * KIB, partition_number=number, label="x" * 200) for number in range(40)
    ]
    draw_svg(tmp_path / "map.svg", Layers(image_map(zeros(4096, "little"), regions)))
    root = ElementTree.parse(tmp_path / "map.svg").getroot()
    texts = [element for element in root.iter(f"{SVG}text") if re.match(r"\d+  ext4", element.text or "")]
    heights = [float(element.get("y", "0")) for element in texts]
    assert len(heights) == 40
    assert all(second - first >= 30 for first, second in itertools.pairwise(heights))
    assert max(heights) < float(root.get("height", "0"))
    assert all((element.text or "").endswith("…") for element in texts)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (132, 50)])
def test_terminal_map_fits(width: int, height: int, colour: bool) -> None:
    lines = terminal_map(Layers(two_partitions()), width, height, colour=colour).split("\n")
    assert max(line.cell_len for line in lines) <= width
    assert len(lines) <= height


def test_terminal_map_without_colours_says_it_by_letters() -> None:
    text = terminal_map(layers_of_all_states(), 80, 24, colour=False).plain
    assert text.splitlines()[0] == "     0 B ·█PCRC·█"
    assert "P preserved 4 KiB (12 %)" in text


def test_terminal_map_shows_two_cells_in_one_character() -> None:
    text = terminal_map(layers_of_all_states(), 25, 24)
    styles = [str(span.style) for span in text.spans if text.plain[span.start : span.end] == "▀"]
    assert styles[1] == "#3462a6"
    assert styles[2] == "#e67e22"


def test_terminal_map_lists_partitions_and_totals() -> None:
    text = terminal_map(Layers(two_partitions()), 80, 24).plain
    assert "   1 MiB 1  ext4  <root> & more  7 MiB, 57 % used" in text
    assert "used 13 MiB (81 %)" in text


def test_an_empty_image_can_be_drawn(tmp_path: Path) -> None:
    layers = Layers(ImageMap(BLOCK_BYTES, 0, zeros(0, "little")))
    draw_png(tmp_path / "map.png", layers)
    draw_svg(tmp_path / "map.svg", layers)
    assert "used 0 B (0 %)" in terminal_map(layers, 80, 24).plain
