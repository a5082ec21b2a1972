"""The files that are an image together, in SNAP/.chunks or any copy of it: which bytes of it each of them has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.serving.chunk_names import MIN_CHUNK_BYTES, parse_chunk_name

AGAIN: Final = "get it again from where it was copied"


@dataclass(frozen=True)
class Chunk:
    """A file, and which bytes of the image it has."""

    path: PurePath
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def arranged(files: Iterable[tuple[PurePath, int]], where: str) -> list[Chunk]:
    """Those of an image that are among the files and their sizes, in order. SnapfsError: they are not all there, or
    one has not the size that it must have."""
    named = [(name, path, size) for path, size in files if (name := parse_chunk_name(path.name))]
    found = sorted((name.offset, name.image_bytes or 0, path, size) for name, path, size in named)
    if not found:
        raise SnapfsError(f"There are no chunks in {where}; name a directory with files called like 0000M.")
    chunks: list[Chunk] = []
    ends = [offset for offset, *_ in found[1:]] + [found[-1][1]]
    for (offset, _, path, size), end in zip(found, ends, strict=True):
        chunk = Chunk(path, offset, size)
        _check_follows(chunk, chunks, end)
        chunks.append(chunk)
    return chunks


def _check_follows(chunk: Chunk, before: list[Chunk], end: int) -> None:
    """Nothing is missing between it and those before, and it goes up to `end`; 0: it is not the last one."""
    if not before and chunk.offset:
        raise SnapfsError(f"The first chunk is missing before {chunk.path}; {AGAIN}.")
    usual = before[0].length if before else chunk.length
    if not end:
        raise SnapfsError(f"The last chunk is missing after {chunk.path}; {AGAIN}.")
    length = end - chunk.offset
    if chunk.length == length:
        return
    if chunk.length == usual < length and usual and usual % MIN_CHUNK_BYTES == 0:
        raise SnapfsError(f"The chunk after {chunk.path} is missing; {AGAIN}.")
    raise SnapfsError(
        f"{chunk.path} has {chunk.length} bytes, and must have {min(length, usual) if before else length}; {AGAIN}."
    )
