"""zstd, as far as a stream needs it: one frame written by all processors, frames read a block at a time.

Source: RFC 8878, "Zstandard Compression and the application/zstd Media Type", sections 3.1.1 and 3.1.2.

A block holds at most 128 KiB, however little it takes: read one by one they need no memory that a stranger decides
on. And the library does not say when its input ends within a frame; whoever counts blocks knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final

from snapfs.errors import BackupDamagedError, SnapfsError

MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LEVEL: Final = 3
# Frames that hold something else; their first byte is from 50 to 5F.
_SKIPPED: Final = b"\x2a\x4d\x18"
_DICTIONARY_ID_BYTES: Final = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES: Final = (0, 2, 4, 8)
_CHECKSUM_BYTES: Final = 4
_BLOCK_HEADER_BYTES: Final = 3
_SKIPPED_PIECE_BYTES: Final = 1 << 20
_RLE, _RESERVED = 1, 3


def compressor(size_bytes: int) -> Any:
    """One frame of `size_bytes`, with a checksum: an object with `compress` and `flush`."""
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True).compressobj(size=size_bytes)


def is_magic(head: bytes) -> bool:
    """Whether that is how zstd begins: with a frame, or as pzstd does, with one that holds something else."""
    return head == MAGIC or _is_skipped(head)


def pieces(file: IO[bytes], name: str, way_out: str) -> Iterator[bytes]:
    """What the frames of a file hold, a block at a time. BackupDamagedError: they are cut short, or damaged;
    SnapfsError: it would take more memory than the library gives. `name` and `way_out` are for the sentence."""
    import zstandard

    frames = _Frames(file, name, way_out)
    while head := file.read(len(MAGIC)):
        if _is_skipped(head):
            frames.skip(int.from_bytes(frames.exactly(4), "little"))
            continue
        if head != MAGIC:
            raise frames.damaged("holds something that is no zstd behind it")
        try:
            yield from frames.frame()
        except zstandard.ZstdError as error:
            if "memory" in str(error):
                raise SnapfsError(
                    f"{name} was compressed with a window that is too large; send it through zstd -d --long=31."
                ) from error
            raise frames.damaged("is damaged: what it holds is no zstd, or has another checksum") from error


def _is_skipped(head: bytes) -> bool:
    return head[1:] == _SKIPPED and head[0] >> 4 == 5


class _Frames:
    def __init__(self, file: IO[bytes], name: str, way_out: str) -> None:
        self._file, self._name, self._way_out = file, name, way_out

    def frame(self) -> Iterator[bytes]:
        """One, behind its magic number."""
        import zstandard

        header, has_checksum = self._header()
        content = zstandard.ZstdDecompressor().decompressobj()
        content.decompress(MAGIC + header)
        is_last = False
        while not is_last:
            head = self.exactly(_BLOCK_HEADER_BYTES)
            number = int.from_bytes(head, "little")
            is_last, kind, count = bool(number & 1), number >> 1 & 3, number >> 3
            if kind == _RESERVED:
                raise self.damaged("is damaged: it has a block of no kind")
            if piece := content.decompress(head + self.exactly(1 if kind == _RLE else count)):
                yield piece
        if has_checksum:
            content.decompress(self.exactly(_CHECKSUM_BYTES))

    def _header(self) -> tuple[bytes, bool]:
        """What stands before the first block, and whether a checksum is behind the last."""
        descriptor = self.exactly(1)
        flags = descriptor[0]
        is_single = flags >> 5 & 1
        count = _DICTIONARY_ID_BYTES[flags & 3] + _CONTENT_SIZE_BYTES[flags >> 6]
        # A single segment has no window, and always its size.
        count += (1 if is_single and not flags >> 6 else 0) + (0 if is_single else 1)
        return descriptor + self.exactly(count), bool(flags >> 2 & 1)

    def skip(self, count: int) -> None:
        for done in range(0, count, _SKIPPED_PIECE_BYTES):
            self.exactly(min(count - done, _SKIPPED_PIECE_BYTES))

    def exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise self.damaged("ends in the middle of what zstd has written")
        return data

    def damaged(self, how: str) -> BackupDamagedError:
        return BackupDamagedError(f"{self._name} {how}; {self._way_out}.")
