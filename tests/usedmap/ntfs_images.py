"""NTFS volumes for tests: made by mkfs.ntfs, and where their system files are."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from foreign_images import make_image, mounted, read_map, run

from snapfs.usedmap.ntfs import read_free_map
from snapfs.usedmap.ntfs_mft import open_records
from snapfs.usedmap.ntfs_records import Stream, Volume, data_stream, open_mft, open_volume
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


def fragment(path: Path, directory: Path) -> Path:
    """Fill a volume to the last cluster: spread MFT, file and directory; streams, holes, packed text."""
    dice = random.Random(1)
    with mounted(path, "ntfs-3g", directory, "-o", "streams_interface=windows,compression"):
        packed, many = directory / "packed", directory / "many"
        packed.mkdir()
        many.mkdir()
        os.setxattr(packed, "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
        (packed / "text").write_bytes(b"a line of text\n" * 20_000)
        (directory / "streams").write_bytes(bytes(5000))
        (directory / "streams:other").write_bytes(bytes(7000))
        with (directory / "sparse").open("wb") as file:
            file.write(bytes(3000))
            file.seek(2_000_000)
            file.write(bytes(3000))
        small = _until_full(lambda number: (many / f"small-{number}").write_bytes(bytes(1500)))
        for number in range(0, small, 2):
            (many / f"small-{number}").unlink()
        (many / "pieces").write_bytes(dice.randbytes(2_000_000))
        _until_full(lambda number: (many / f"new-{number}").touch())
    return path


def _until_full(make: Callable[[int], object]) -> int:
    number = 0
    try:
        while True:
            make(number)
            number += 1
    except OSError:
        return number


@contextmanager
def opened(path: Path) -> Iterator[tuple[Volume, Stream]]:
    """The volume and all of its MFT."""
    with path.open("rb") as file:
        volume = open_volume(Source(file.fileno(), path.stat().st_size))
        yield volume, open_records(volume, open_mft(volume)).records


def record_offset(path: Path, number: int) -> int:
    """Where an MFT record is on the volume."""
    with opened(path) as (volume, mft):
        return next(volume.pieces(mft, number * RECORD_BYTES, RECORD_BYTES))[0]


def read_record(path: Path, number: int) -> bytes:
    """A base record as it is without its update sequence."""
    with opened(path) as (volume, mft):
        return volume.record(mft, number)


def record_numbers(path: Path, wanted: Callable[[bytes], bool]) -> list[int]:
    """Numbers of the records that are in use and wanted."""
    with opened(path) as (volume, mft):
        raw = volume.read(mft, 0, mft.initialised_bytes)
    records = [raw[at : at + RECORD_BYTES] for at in range(0, len(raw), RECORD_BYTES)]
    return [no for no, record in enumerate(records) if record[:4] == b"FILE" and record[22] & 1 and wanted(record)]


def number_of(path: Path, file: str) -> int:
    """The base record of a file."""
    return int(run("ntfsinfo", "-f", "-F", file, path).split("Dumping Inode ")[1].split()[0])


def is_extension(record: bytes) -> bool:
    return record[32:40] != bytes(8)


def attribute_offset(record: bytes, type_code: int) -> int:
    """Where the first attribute of that type begins in a record."""
    at = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, at)[0] != type_code:
        at += struct.unpack_from("<I", record, at + 4)[0]
    return int(at)
