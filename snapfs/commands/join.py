"""`snapfs join`: an image put together from the files of SNAP/.chunks, or of any copy of them.

A new image is IMAGE.partial until it is whole. One that is there, or a block device, is overwritten in place; however
it ends, it is said whether the image is half written. All files are looked at before anything is written: that none
is missing, and that each has the size that it must have.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import open_in_place
from snapfs.destination.place import Place, look_at
from snapfs.destination.result import claimed, finish
from snapfs.errors import InterruptedByUserError, SnapfsError, UsageError
from snapfs.imager.target import FileTarget
from snapfs.options import format_size
from snapfs.serving.chunk_names import MIN_CHUNK_BYTES, parse_chunk_name
from snapfs.system.image_lock import lock_image

_WAY_OUT: Final = "join again"
_AGAIN: Final = "get it again from where it was copied"
_PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Chunk:
    """A file, and which bytes of the image it has."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Joined:
    """What was put together. `data_bytes` of it had to be written: the rest is zeros."""

    chunks: int
    image_bytes: int
    data_bytes: int


def join(directory: Path, image: Path, consent: Consent, mode: int | None = None) -> Joined:
    """Write the image. SnapfsError: a new image has not got its name; of one that was there it says what is left."""
    chunks = find_chunks(directory)
    size_bytes = chunks[-1].offset + chunks[-1].length
    place = look_at(image, {chunk.path.name: chunk.path for chunk in chunks[:1]}, takes_devices=True)
    if place.is_new:
        data_bytes = _join_new(chunks, place, size_bytes, consent, mode)
    else:
        data_bytes = _join_over(chunks, place, size_bytes, consent, mode)
    return Joined(len(chunks), size_bytes, data_bytes)


def find_chunks(directory: Path) -> list[Chunk]:
    """Those of an image, in order. SnapfsError: they are not all there, or one has not the size that it must have."""
    try:
        entries = list(directory.iterdir())
    except OSError as error:
        raise SnapfsError(
            f"{directory} cannot be read: {error.strerror}; name the directory with the chunks.", path=directory
        ) from error
    named = [(name, path) for path in entries if (name := parse_chunk_name(path.name))]
    found = sorted((name.offset, name.image_bytes or 0, path) for name, path in named)
    if not found:
        raise SnapfsError(
            f"There are no chunks in {directory}; name a directory with files called like 0000M.", path=directory
        )
    chunks: list[Chunk] = []
    ends = [offset for offset, *_ in found[1:]] + [found[-1][1]]
    for (offset, _, path), end in zip(found, ends, strict=True):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise SnapfsError(f"{path} is no file; {_AGAIN}.", path=path)
        chunk = Chunk(path, offset, status.st_size)
        _check_follows(chunk, chunks, end)
        chunks.append(chunk)
    return chunks


def _check_follows(chunk: Chunk, before: list[Chunk], end: int) -> None:
    """Nothing is missing between it and those before, and it goes up to `end`; 0: it is not the last one."""
    if not before and chunk.offset:
        raise SnapfsError(f"The first chunk is missing before {chunk.path}; {_AGAIN}.", path=chunk.path)
    usual = before[0].length if before else chunk.length
    if not end:
        raise SnapfsError(f"The last chunk is missing after {chunk.path}; {_AGAIN}.", path=chunk.path)
    length = end - chunk.offset
    if chunk.length == length:
        return
    if chunk.length == usual < length and usual and usual % MIN_CHUNK_BYTES == 0:
        raise SnapfsError(f"The chunk after {chunk.path} is missing; {_AGAIN}.", path=chunk.path)
    raise SnapfsError(
        f"{chunk.path} has {chunk.length} bytes, and must have {min(length, usual) if before else length}; {_AGAIN}.",
        path=chunk.path,
    )


def _join_new(chunks: list[Chunk], place: Place, size_bytes: int, consent: Consent, mode: int | None) -> int:
    access = Access.of(chunks[0].path).with_mode(mode)
    try:
        with claimed(place, consent) as unfinished:
            lock_image(unfinished.fd)
            data_bytes = _write(chunks, unfinished.fd, unfinished.path, size_bytes, str(place.named), is_new=True)
            finish(unfinished, access)
            return data_bytes
    except KeyboardInterrupt:
        raise InterruptedByUserError("Interrupted; nothing is left behind.") from None


def _join_over(chunks: list[Chunk], place: Place, size_bytes: int, consent: Consent, mode: int | None) -> int:
    if place.is_device and mode is not None:
        raise UsageError(f"{place.named} is a device, and keeps its mode; leave out --mode.")
    if place.status is not None and not place.is_device and place.status.st_size != size_bytes:
        raise SnapfsError(
            f"{place.named} has {format_size(place.status.st_size)}, the chunks {format_size(size_bytes)}; name an "
            "image of that size, or a new one.",
            path=place.named,
        )
    consent.ask_for(place)
    fd = open_in_place(place, consent, size_bytes)
    try:
        with _saying_that_it_is_half_written(place.named):
            data_bytes = _write(chunks, fd, place.real, size_bytes, str(place.named), is_new=False)
        if mode is not None:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return data_bytes


@contextlib.contextmanager
def _saying_that_it_is_half_written(image: Path) -> Iterator[None]:
    state = f"{image} is half written now"
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(f"Interrupted, and {state}; join again before it is used.") from None
    except SnapfsError as error:
        what, _, way_out = error.sentence.rstrip(".").partition("; ")
        error.sentence = f"{what}, and {state}; {way_out or 'see why'}, and join again before it is used."
        raise


def _write(chunks: list[Chunk], fd: int, path: Path, size_bytes: int, name: str, *, is_new: bool) -> int:
    target = FileTarget(fd, path, size_bytes, is_new=is_new, way_out=_WAY_OUT, name=name)
    try:
        data_bytes = sum(_copy(chunk, target) for chunk in chunks)
        target.sync()
    finally:
        target.close()
    return data_bytes


def _copy(chunk: Chunk, target: FileTarget) -> int:
    """How much of it is no hole."""
    buffer, copied_bytes = memoryview(bytearray(_PIECE_BYTES)), 0
    try:
        # Whoever changes the directory meanwhile gives us no other kind of file to wait for or to read.
        fd = os.open(chunk.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            if _is_hole(file.fileno()):
                target.write_zeros(chunk.offset, chunk.length)
                return 0
            done = 0
            while done < chunk.length:
                count = file.readinto(buffer[: min(_PIECE_BYTES, chunk.length - done)])
                if not count:
                    raise SnapfsError(f"{chunk.path} has become shorter; look who changes it.", path=chunk.path)
                target.write(buffer[:count], chunk.offset + done)
                done += count
                copied_bytes += count
    except OSError as error:
        raise SnapfsError(f"{chunk.path} cannot be read: {error.strerror}; {_AGAIN}.", path=chunk.path) from error
    return copied_bytes


def _is_hole(fd: int) -> bool:
    """The blocks that it takes would not tell: a filesystem may give them late."""
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    os.lseek(fd, 0, os.SEEK_SET)
    return False
