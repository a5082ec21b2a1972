"""A tar of chunks, read as it comes: nothing of it is kept anywhere but in the image."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import IO, Final, cast

from snapfs.errors import BackupDamagedError
from snapfs.imager.chunk_files import Chunk

_PIECE_BYTES: Final = 4 << 20


def read_chunks(
    stream: IO[bytes], chunks: Sequence[Chunk], write: Callable[[memoryview, int], None], name: str
) -> None:
    """Give each piece to `write`, with its offset in the image. BackupDamagedError: not all came, in whole."""
    missing = {chunk.path.name: chunk for chunk in chunks}
    buffer = memoryview(bytearray(_PIECE_BYTES))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                chunk = missing.get(PurePosixPath(member.name).name)
                if chunk is None or not member.isreg():
                    continue
                file = cast("io.BufferedReader | None", archive.extractfile(member))
                if file is None or member.size != chunk.length:
                    break
                done = 0
                while done < chunk.length and (count := file.readinto(buffer[: chunk.length - done])):
                    write(buffer[:count], chunk.offset + done)
                    done += count
                if done < chunk.length:
                    break
                del missing[chunk.path.name]
    except tarfile.TarError as error:
        raise _cut_short(name) from error
    if missing:
        raise _cut_short(name)


def _cut_short(name: str) -> BackupDamagedError:
    return BackupDamagedError(f"{name} did not give all of its chunks; see what restic check says of it.")
