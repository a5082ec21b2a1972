"""NTFS with shadow copies: what only they hold is free in $Bitmap, so the volume counts as wholly used."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest
from foreign_images import copy_image, read_map
from ntfs_images import MIB, make_ntfs, refusal, write_at

from snapfs.usedmap.ntfs import read_free_map


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ntfs(tmp_path_factory.mktemp("ntfs") / "plain.img", 8 * MIB)


def shadow_header(
    *,
    catalog: int = 0,
    version: int = 1,
    record_type: int = 1,
    storage: uuid.UUID | None = None,
) -> bytes:
    """The header of shadow copies as Windows leaves it at 0x1E00."""
    volume = uuid.UUID("600f0b64-5bdf-11e3-9d6c-005056c00008").bytes_le
    identifier = uuid.UUID("3808876b-c176-4e48-b7ae-04046e6cc752").bytes_le
    numbers = struct.pack("<IIQQQQQ", version, record_type, 0x1E00, 0x1E00, 0, catalog, 0)
    return identifier + numbers + volume + (storage.bytes_le if storage else volume)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (shadow_header(catalog=0x6E30000), "has shadow copies (VSS), and what only they hold"),
        (shadow_header(catalog=0x6E30000, version=2), "has shadow copies (VSS), and what only they hold"),
        (shadow_header(storage=uuid.UUID(int=7)), "has shadow copies (VSS) kept on another volume"),
        (shadow_header(version=3), "has a header of shadow copies (VSS) that is not understood"),
        (shadow_header(record_type=2), "has a header of shadow copies (VSS) that is not understood"),
    ],
    ids=["shadow copies", "of Windows 8", "on another volume", "unknown version", "unknown type"],
)
def test_shadow_copies_are_refused(plain: Path, tmp_path: Path, header: bytes, reason: str) -> None:
    copy = copy_image(plain, tmp_path / "shadow.img")
    write_at(copy, 0x1E00, header)
    assert refusal(copy).startswith(reason)


def test_a_header_whose_shadow_copies_are_gone_says_nothing(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "shadow.img")
    write_at(copy, 0x1E00, shadow_header())
    assert read_map(read_free_map, copy).free == read_map(read_free_map, plain).free
