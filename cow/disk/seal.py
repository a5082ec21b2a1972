"""The seal: what every map of a cut held when the store was closed cleanly.

A text file: one line `map NAME XXH3-128` for each map, over the parts of the file that are not holes, then
one line `number NAME VALUE` for each number that the maps do not tell, then a checksum of the lines above.
It exists only while nobody has the store open; it is removed, durably, before the first change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cow.disk.codec import checksum, checksum_stream
from cow.disk.cut import Cut
from cow.disk.directory import BITMAP_NAMES, FREE_SEAL_NAME, INDEX_NAME, SEAL_NAME, TOUCHED_NAME, cut_path
from cow.disk.files import Files
from cow.disk.layout import Trait, numbers_with
from cow.disk.mapped_file import MappedFile
from cow.disk.plain import open_plain, read_plain
from cow.disk.store import Store

MAP_NAMES = (*BITMAP_NAMES, INDEX_NAME, TOUCHED_NAME)
_PIECE_BYTES = 1 << 20

_MTIME = "image_mtime_ns"


@dataclass(frozen=True, slots=True)
class Seal:
    """Digest of each map by name, numbers by name, and the image's modification time in ns."""

    digests: dict[str, str]
    numbers: dict[str, int]

    @property
    def image_mtime_ns(self) -> int:
        return self.numbers[_MTIME]

    def restore(self, store: Store) -> None:
        """Store the sealed numbers in their pages."""
        for number in numbers_with(Trait.SEALED):
            store.page_of(number)[number] = self.numbers[number.name.lower()]


def digest_of(file: MappedFile) -> str:
    """XXH3-128 over offsets and contents of everything that is not all zeros."""
    digest = checksum_stream()
    for offset, piece in _pieces(file):
        if any(piece):
            digest.update(offset.to_bytes(8, "little"))
            digest.update(piece)
    file.trim()
    return digest.hexdigest()


def _pieces(file: MappedFile) -> Iterator[tuple[int, bytes]]:
    """The file's data, cut at fixed places so that the holes' exact borders make no difference."""
    done = -1
    for offset, length in file.data_ranges():
        for number in range(offset // _PIECE_BYTES, -(-(offset + length) // _PIECE_BYTES)):
            if number > done:
                done = number
                yield number, file.map[number * _PIECE_BYTES : (number + 1) * _PIECE_BYTES]


def write_seal(store: Store, image_mtime_ns: int) -> None:
    """Make the whole cut durable, then say so."""
    cut, files = store.cut, store.files
    lines = []
    for name, file in map_files(store).items():
        files.sync(file.fd)
        lines.append(f"map {name} {digest_of(file)}")
    sync_segments(store)
    lines += [
        f"number {number.name.lower()} {store.page_of(number)[number]}" for number in numbers_with(Trait.SEALED)
    ]
    lines.append(f"number {_MTIME} {image_mtime_ns}")
    text = "\n".join(lines) + "\n"
    files.write_whole(cut.path / SEAL_NAME, f"{text}checksum {checksum(text.encode()):016x}\n".encode())


def map_files(store: Store) -> dict[str, MappedFile]:
    """The mapped files of the cut by name."""
    cut = store.cut
    files = *(bitmap.file for bitmap in cut.bitmaps), cut.index.file
    # The last only where there is one.
    return dict(zip(MAP_NAMES, files if cut.touched is None else (*files, cut.touched.file), strict=False))


def sync_segments(store: Store) -> None:
    """Make all records durable."""
    segments = store.cut.segments
    for number in segments.numbers():
        with open(open_plain(segments.find(number), os.O_RDONLY), "rb") as segment:
            store.files.sync(segment.fileno())
    store.files.sync_directory(segments.directory)


def seal_free(cut: Cut, files: Files) -> None:
    """Note what the map of free blocks holds, durably: after its last change, before any of them is settled.

    A block wrongly taken for free reads as zeros, so the map counts only while it is what was noted.
    """
    files.sync(cut.free.file.fd)
    files.write_whole(cut.path / FREE_SEAL_NAME, digest_of(cut.free.file).encode())


def free_is_noted(cut: Cut) -> bool:
    """Whether the map of free blocks is known; until then what is in it counts for nothing."""
    return (cut.path / FREE_SEAL_NAME).exists()


def free_is_proven(cut: Cut) -> bool:
    """Whether the map of free blocks is what was noted."""
    try:
        return read_plain(cut.path / FREE_SEAL_NAME) == digest_of(cut.free.file).encode()
    except OSError:
        return False


def read_seal(store: Path, generation: int) -> Seal | None:
    """The cut's seal; None without one, or with one that is damaged itself."""
    try:
        text = read_plain(cut_path(store, generation) / SEAL_NAME).decode("ascii")
        body, _, last = text.rstrip("\n").rpartition("\n")
        if last != f"checksum {checksum((body + chr(10)).encode()):016x}":
            return None
        rows = [line.split() for line in body.splitlines()]
        digests = {name: value for kind, name, value in rows if kind == "map"}
        numbers = {name: int(value) for kind, name, value in rows if kind == "number"}
        return Seal(digests, numbers) if {_MTIME, *_names()} <= numbers.keys() else None
    except (OSError, ValueError):
        return None


def _names() -> set[str]:
    return {number.name.lower() for number in numbers_with(Trait.SEALED)}


def broken_maps(store: Store, seal: Seal) -> list[str]:
    """Names of the maps that are not what was sealed."""
    return [name for name, file in map_files(store).items() if digest_of(file) != seal.digests.get(name)]


def break_seal(store: Path, generation: int, files: Files) -> None:
    """From here on the maps change; the seal must not outlive that, not even a power loss."""
    path = cut_path(store, generation)
    (path / SEAL_NAME).unlink(missing_ok=True)
    files.sync_directory(path)
