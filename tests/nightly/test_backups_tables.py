"""Tables on top of each other: the image that they say is the one that a naive model says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bitarray import bitarray
from bitarray.util import zeros
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from nightly_rig import CELL

from snapfs.backups.overlay import Overlay
from snapfs.backups.table import Table, write_table
from snapfs.errors import BackupDamagedError
from snapfs.imager.extents import Extent
from snapfs.imager.hashing import CellHasher, cell_hasher
from snapfs.imager.unread import Ranges

# More than one span of sums.
COUNT = 9000


def digest(number: int) -> bytes:
    return blake3(number.to_bytes(8, "little")).digest()


@contextmanager
def table(cells: dict[int, int | None], count: int = COUNT) -> Iterator[Table]:
    """A table that holds these cells: the number that its digest is made of, or None for zeros."""
    data, hidden = zeros(count, "little"), zeros(count, "little")
    for cell, number in cells.items():
        (hidden if number is None else data)[cell] = 1
    digests = (digest(number) for _, number in sorted(cells.items()) if number is not None)
    fd, name = tempfile.mkstemp(prefix="snapfs-table-")
    try:
        maps, whole = write_table(fd, count * CELL, data, hidden, digests)
        opened = Table(Path(name), count * CELL, maps)
        try:
            opened.check_whole(whole)
            yield opened
        finally:
            opened.close()
    finally:
        os.close(fd)
        os.unlink(name)


CELLS = st.dictionaries(
    st.integers(0, COUNT - 1) | st.integers(4090, 4100), st.none() | st.integers(0, 3), max_size=20
)


@given(st.lists(CELLS, max_size=5), st.integers(0, COUNT - 1), st.integers(1, 600))
def test_an_overlay_is_what_the_newest_word_on_each_cell_says(
    chain: list[dict[int, int | None]], first: int, length: int
) -> None:
    with ExitStack() as stack:
        overlay = Overlay(COUNT * CELL, [stack.enter_context(table(cells)) for cells in chain])
        model: dict[int, int | None] = {}
        for cells in chain:
            model |= cells
        end = min(first + length, COUNT)
        wanted = [digest(n) if (n := model.get(cell)) is not None else bytes(32) for cell in range(first, end)]
        assert [row.tobytes() for row in overlay.digests(first, end)] == wanted
        assert list(overlay.held.search(bitarray("1"))) == sorted(c for c, n in model.items() if n is not None)


def test_the_manifest_of_an_overlay_has_the_digests_of_its_cells() -> None:
    with table({0: 1, 1: 2, 5: 3}, count=8) as one:
        manifest = Overlay(8 * CELL, [one]).manifest(Ranges())
    assert [hashed.extent for hashed in manifest.extents] == [Extent(0, 2 * CELL), Extent(5 * CELL, CELL)]
    assert manifest.extents[0].digest == blake3(digest(1) + digest(2)).digest()


@given(st.lists(st.integers(0, 100_000), max_size=8))
def test_digests_do_not_depend_on_how_the_bytes_come(lengths: list[int]) -> None:
    data = b"".join(bytes([number % 3]) * length for number, length in enumerate(lengths))
    hasher, at = cell_hasher(Extent(0, max(len(data), 1))), 0
    for length in lengths:
        hasher.update(data[at : at + length])
        at += length
    cells = [data[start : start + CELL] for start in range(0, len(data), CELL)]
    wanted = b"".join(blake3(cell).digest() if any(cell) else bytes(32) for cell in cells)
    assert hasher.digest() == blake3(wanted).digest()
    assert isinstance(hasher, CellHasher)
    assert bytes(hasher.cells) == wanted


@pytest.mark.parametrize("place", [0, 12, 30, 70, 300, -1])
def test_a_damaged_table_is_found_out(tmp_path: Path, place: int) -> None:
    """Magic, sizes, maps: when it is opened; digests: when all of it is looked at."""
    path = tmp_path / "cells"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    data = bitarray("1" * 2000, endian="little")
    maps, whole = write_table(fd, 2000 * CELL, data, zeros(2000, "little"), (digest(n) for n in range(2000)))
    os.close(fd)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(BackupDamagedError, match="not the table that was written"):
        Table(path, 2000 * CELL, maps).check_whole(whole)


@pytest.mark.parametrize("length", [0, 10, 64, 400, 10_000])
def test_a_table_that_was_cut_short_is_found_out(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cells"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    data = bitarray("1" * 2000, endian="little")
    maps, _ = write_table(fd, 2000 * CELL, data, zeros(2000, "little"), (digest(n) for n in range(2000)))
    os.truncate(fd, length)
    os.close(fd)
    with pytest.raises(BackupDamagedError):
        Table(path, 2000 * CELL, maps)
