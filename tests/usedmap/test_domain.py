"""Maps for other programs: ddrescue's mapfile, qemu-img's extents."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from bitarray import bitarray
from foreign_images import make_image, run, used_by_partclone

from snapfs.usedmap.domain import json_extents, write_domain
from snapfs.usedmap.result import ImageMap
from snapfs.usedmap.scan import scan

BLOCK_BYTES = 4096
MIB = 1 << 20


def make_map(used: str, size_bytes: int | None = None) -> ImageMap:
    bits = bitarray(used, endian="little")
    return ImageMap(BLOCK_BYTES, size_bytes or len(bits) * BLOCK_BYTES, bits)


def extents(image_map: ImageMap) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads("".join(json_extents(image_map)))
    return found


def domain(image_map: ImageMap) -> list[tuple[int, int, str]]:
    """The lines of a domain map: (offset, length, status)."""
    file = io.StringIO()
    write_domain(file, image_map)
    lines = [line for line in file.getvalue().splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"0x\w+\s+\?\s+1", lines[0])
    found = [re.fullmatch(r"0x([0-9A-F]+)  0x([0-9A-F]+)  ([+?])", line) for line in lines[1:]]
    return [(int(match[1], 16), int(match[2], 16), match[3]) for match in found if match]


@pytest.mark.parametrize(
    ("used", "size_bytes", "expected"),
    [
        ("1100", None, [(0, 8192, True), (8192, 8192, False)]),
        ("0", None, [(0, 4096, False)]),
        ("1", 100, [(0, 100, True)]),
        ("101", 3 * 4096 - 1, [(0, 4096, True), (4096, 4096, False), (8192, 4095, True)]),
    ],
)
def test_extents_cover_the_image_once(
    used: str, size_bytes: int | None, expected: list[tuple[int, int, bool]]
) -> None:
    found = extents(make_map(used, size_bytes))
    assert found == [{"start": start, "length": length, "data": data} for start, length, data in expected]


def test_extents_are_json_as_qemu_img_prints_it(tmp_path: Path) -> None:
    image_map = make_map("1" * 16 + "0" * 32 + "1" * 16)
    path = make_image(tmp_path / "image", image_map.size_bytes)
    with path.open("r+b") as file:
        for extent in extents(image_map):
            if extent["data"]:
                file.seek(extent["start"])
                file.write(b"x" * extent["length"])
    theirs = json.loads(run("qemu-img", "map", "--force-share", "-f", "raw", "--output=json", path))
    ours = extents(image_map)
    assert [{key: row[key] for key in ("start", "length", "data")} for row in theirs] == ours


def test_domain_map_says_the_same(tmp_path: Path) -> None:
    assert domain(make_map("1001", 4 * 4096 - 7)) == [(0, 4096, "+"), (4096, 8192, "?"), (12288, 4089, "+")]


def test_domain_map_equals_partclones(tmp_path: Path) -> None:
    path = make_image(tmp_path / "exfat.img", 16 * MIB)
    run("mkfs.exfat", "-c", "4K", path)
    with path.open("rb") as file:
        lines = domain(scan(file.fileno(), 16 * MIB, BLOCK_BYTES))
    assert [line[:2] for line in lines if line[2] == "+"] == used_by_partclone("exfat", path, tmp_path)
    assert sum(length for _, length, _ in lines) == 16 * MIB
