"""A finished backup, read back: whole or damaged, as its manifest tells."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, get_args

from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.holder import is_noted
from snapfs.imager.manifest import Manifest
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Meter, Report
from snapfs.imager.qcow2 import Qcow2Reader
from snapfs.imager.qemu import Link
from snapfs.imager.stages import Stages, Write
from snapfs.options import Format, format_size
from snapfs.system.block_ioctl import size_bytes_of
from snapfs.system.file_kinds import open_readable
from snapfs.whole import read_whole

_MAX_NAMED: Final = 3
_WAY_OUT: Final = "take another copy or back up again"


class Reader(Protocol):
    """The content of a backup, open."""

    size_bytes: int

    def read_into(self, view: memoryview, offset: int) -> None: ...

    def close(self) -> None: ...


class RawReader:
    """A raw backup, open: a file or a block device. Closes `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = size_bytes_of(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, view: memoryview, offset: int) -> None:
        read_whole(self._fd, view, offset)
        os.posix_fadvise(self._fd, offset, len(view), os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._fd)


class BackupReader:
    """A backup and its manifest; what is read is checked extent by extent."""

    def __init__(
        self, path: Path, manifest: Manifest, reader: Reader, way_out: str = _WAY_OUT, name: str = ""
    ) -> None:
        """Closes `reader`, also when it raises. `way_out`: what to do if it is damaged; `name`: if it is no file."""
        self.path, self.manifest, self._reader, self._way_out = path, manifest, reader, way_out
        self._name = name or str(path)
        if self._reader.size_bytes < manifest.image_bytes:
            self._reader.close()
            raise BackupDamagedError(
                f"{self._name} has {self._reader.size_bytes} bytes, its manifest {manifest.image_bytes}: the end of "
                "it is missing; take another copy.",
                path=path,
            )

    def run(
        self, phase: str, write: Write, on_damage: Callable[[int], None], report: Report, pace: Pace | None = None
    ) -> None:
        """Read all extents in order into `write`; `on_damage` gets the index of each that is not what it was."""

        def finished(index: int, digest: bytes) -> None:
            if digest != self.manifest.extents[index].digest:
                on_damage(index)

        meter = Meter(phase, self.manifest.data_bytes, report)
        stages = Stages(
            self.read_into,
            write,
            finished,
            meter.advance,
            pace or Pace(None),
            self.manifest.unread,
            self.manifest.new_hasher,
        )
        stages.run((i, hashed.extent) for i, hashed in enumerate(self.manifest.extents) if hashed.digest is not None)
        meter.finish()

    def verify(self, report: Report) -> None:
        """BackupDamagedError names the extents that are not what they were."""
        damaged: list[int] = []
        self.run("verify", lambda view, offset: None, damaged.append, report)
        if damaged:
            raise self.damage(damaged)

    def damage(self, indices: list[int]) -> BackupDamagedError:
        """What to say of damaged extents."""
        extents = [self.manifest.extents[index].extent for index in indices]
        places = ", ".join(f"{format_size(extent.length)} at {extent.offset}" for extent in extents[:_MAX_NAMED])
        more = f" and {len(extents) - _MAX_NAMED} more" if len(extents) > _MAX_NAMED else ""
        return BackupDamagedError(
            f"{self._name} is damaged: {places}{more} is not what was written; {self._way_out}.",
            path=self.path,
        )

    def close(self) -> None:
        self._reader.close()

    def read_into(self, view: memoryview, offset: int) -> None:
        """What it has there, not compared with anything. SnapfsError when it cannot be read."""
        try:
            self._reader.read_into(view, offset)
        except OSError as error:
            raise SnapfsError(
                f"{self._name} cannot be read at {offset}: {error.strerror}; check the disk it is on.", path=self.path
            ) from error


@contextlib.contextmanager
def open_backup(path: Path, manifest: Manifest) -> Iterator[BackupReader]:
    """The backup at `path`, which need not have its final name yet.

    One that can be brought up to date where it is stays as it is meanwhile, unless its reader does that itself.
    """
    fd = _open_file(path, manifest.format)
    if is_noted(manifest):
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    reader = BackupReader(path, manifest, _content(fd, path, manifest.format))
    try:
        yield reader
    finally:
        reader.close()


def _open_file(path: Path, image_format: str) -> int:
    if image_format not in get_args(Format):
        raise SnapfsError(f"{path} is of the format {image_format}, which this snapfs does not know.", path=path)
    try:
        return open_readable(path, "name a backup")
    except OSError as error:
        raise SnapfsError(f"{path} cannot be opened: {error.strerror}; name a backup.", path=path) from error


def _content(fd: int, path: Path, image_format: str) -> Reader:
    try:
        return RawReader(fd) if image_format == "raw" else Qcow2Reader(Link(fd, path))
    except BaseException:
        os.close(fd)
        raise
