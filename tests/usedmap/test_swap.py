"""Linux swap: everything but the header page, and nothing of a hibernated system."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from foreign_images import damaged_maps, make_image, read_map, run

from snapfs.usedmap.result import MapError
from snapfs.usedmap.swap import read_free_map

MIB = 1 << 20


def make_swap(path: Path, size: int, *options: str) -> Path:
    run("mkswap", *options, make_image(path, size))
    return path


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(read_free_map, path)
    return str(caught.value)


@pytest.mark.parametrize("page_bytes", [4096, 8192, 16384, 65536])
def test_all_but_the_header_page_is_free(tmp_path: Path, page_bytes: int) -> None:
    path = make_swap(tmp_path / "swap.img", 4 * MIB, "-p", str(page_bytes))
    free_map = read_map(read_free_map, path)
    assert (free_map.unit_bytes, free_map.data_offset) == (page_bytes, page_bytes)
    assert free_map.free.all()
    assert len(free_map.free) == 4 * MIB // page_bytes - 1


def test_what_follows_the_last_page_stays_used(tmp_path: Path) -> None:
    path = make_swap(tmp_path / "swap.img", MIB)
    with path.open("r+b") as file:
        file.truncate(3 * MIB + 17)
    assert len(read_map(read_free_map, path).free) == MIB // 4096 - 1


def test_header_of_the_other_byte_order(tmp_path: Path) -> None:
    path = make_swap(tmp_path / "swap.img", MIB)
    write_at(path, 1024, struct.pack(">III", 1, 99, 0))
    assert len(read_map(read_free_map, path).free) == 99


@pytest.mark.parametrize(
    "mark",
    [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"],
)
def test_hibernated_system_is_refused(tmp_path: Path, mark: bytes) -> None:
    path = make_swap(tmp_path / "swap.img", MIB)
    write_at(path, 4086, mark.ljust(10, b"\0"))
    assert refusal(path) == "holds a hibernated system"


def test_hibernation_mark_at_another_page_size_is_seen(tmp_path: Path) -> None:
    path = make_swap(tmp_path / "swap.img", MIB, "-p", "65536")
    write_at(path, 4086, b"S1SUSPEND\0")
    assert refusal(path) == "holds a hibernated system"


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (4086, b"SWAP-SPACE", "has no swap signature, or more than one"),
        (8182, b"SWAPSPACE2", "has no swap signature, or more than one"),
        (1024, b"\2\0\0\0", "has a swap header of an unknown version"),
        (1028, b"\0\0\0\0", "has a swap header of an unknown version"),
        (1028, b"\0\1\0\0", "is larger than its place"),
    ],
)
def test_header_that_makes_no_sense_is_refused(tmp_path: Path, offset: int, content: bytes, reason: str) -> None:
    path = make_swap(tmp_path / "swap.img", MIB)
    write_at(path, offset, content)
    assert refusal(path) == reason


def test_damage_never_frees_the_header_nor_what_is_outside(tmp_path: Path) -> None:
    path = make_swap(tmp_path / "swap.img", MIB)
    for _, free_map in damaged_maps(
        read_free_map, path.read_bytes(), [range(1024, 1036), range(4080, 4096)], range(200)
    ):
        assert free_map.data_offset >= 4096
        assert free_map.data_offset + len(free_map.free) * free_map.unit_bytes <= MIB
