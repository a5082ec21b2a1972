"""NTFS volumes for tests: made by mkfs.ntfs, and where their system files are."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_images import make_image, read_map, run

from snapfs.usedmap.ntfs import read_free_map
from snapfs.usedmap.ntfs_records import data_stream, open_mft, open_volume
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

MIB = 1 << 20
RECORD_BYTES = 1024


def make_ntfs(path: Path, size: int, *options: str) -> Path:
    run("mkfs.ntfs", "-F", "-Q", "-q", *options, make_image(path, size))
    return path


def system_file_offset(path: Path, number: int) -> int:
    """Where the content of a system file begins on the volume."""
    with path.open("rb") as file:
        volume = open_volume(Source(file.fileno(), path.stat().st_size))
        stream = data_stream(volume, volume.record(open_mft(volume), number))
        return stream.runs[0].start * volume.cluster_bytes


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(read_free_map, path)
    return str(caught.value)


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
