"""`snapfs join`: an image put together from the files of SNAP/.chunks, or of any copy of them.

All files are looked at before anything is written: that none is missing, and that each has the size that it must
have.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.commands.whole_image import Words, write_image
from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import look_at
from snapfs.errors import SnapfsError
from snapfs.imager.chunk_files import AGAIN, Chunk, arranged
from snapfs.imager.target import FileTarget
from snapfs.serving.chunk_names import parse_chunk_name

_WORDS: Final = Words("join", "written", "the chunks")
_PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Joined:
    """What was put together. `data_bytes` of it had to be written: the rest is zeros."""

    chunks: int
    image_bytes: int
    data_bytes: int


def join(directory: Path, image: Path, consent: Consent, mode: int | None = None) -> Joined:
    """Write the image. SnapfsError: a new image has not got its name; of one that was there it says what is left."""
    chunks = find_chunks(directory)
    size_bytes, first = chunks[-1].end, directory / chunks[0].path.name
    place = look_at(image, {first.name: first}, takes_devices=True)
    data_bytes = 0

    def fill(target: FileTarget) -> None:
        nonlocal data_bytes
        data_bytes = sum(_copy(chunk, target) for chunk in chunks)

    write_image(place, size_bytes, Access.of(first), consent, mode, _WORDS, fill)
    return Joined(len(chunks), size_bytes, data_bytes)


def find_chunks(directory: Path) -> list[Chunk]:
    """Those of an image, in order. SnapfsError: they are not all there, or one has not the size that it must have."""
    try:
        found = [path for path in directory.iterdir() if parse_chunk_name(path.name)]
    except OSError as error:
        raise SnapfsError(
            f"{directory} cannot be read: {error.strerror}; name the directory with the chunks.", path=directory
        ) from error
    return arranged([(path, _size_of(path)) for path in found], str(directory))


def _size_of(path: Path) -> int:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise SnapfsError(f"{path} is no file; {AGAIN}.", path=path)
    return status.st_size


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
                    raise SnapfsError(f"{chunk.path} has become shorter; look who changes it.")
                target.write(buffer[:count], chunk.offset + done)
                done += count
                copied_bytes += count
    except OSError as error:
        raise SnapfsError(f"{chunk.path} cannot be read: {error.strerror}; {AGAIN}.") from error
    return copied_bytes


def _is_hole(fd: int) -> bool:
    """The blocks that it takes would not tell: a filesystem may give them late."""
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    os.lseek(fd, 0, os.SEEK_SET)
    return False
