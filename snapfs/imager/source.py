"""Where the imager reads: the snapshot view of a mounted image, or an image that nobody uses.

Rules
- A source is one cut: whatever is read belongs to the same instant, or an error says why it no longer can.
- An image that is not mounted is locked while it is read, and must be the same file, unchanged, at the end.
- Free blocks read as zeros from both, so that a backup never holds what was deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bitarray import bitarray

from snapfs.destination.access import Access
from snapfs.errors import NotMountedError, UsageError
from snapfs.imager.extents import Extent
from snapfs.imager.image_source import ImageSource
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.system.discovery import find_store


class Source(Protocol):
    """One cut of an image, open for reading. `identity` is the same only for the same cut."""

    path: Path
    size_bytes: int
    block_bytes: int
    used: bitarray  # a bit per block: whether anybody needs it
    used_bytes: int
    facts: dict[str, Any]
    access: Access  # of a copy

    @property
    def identity(self) -> dict[str, Any]: ...

    def holes(self) -> bitarray | None:
        """A bit per cell that holds nothing but zeros for certain; None when that cannot be told."""

    def extents(self) -> list[Extent]:
        """What is to be imaged."""

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view`. UnreadableError: only some bytes of it are bad; SnapfsError: why there is no more to read."""

    def will_read(self, offset: int, length: int) -> None:
        """That will be read soon, so the disk may begin; never fails."""

    def reread_into(self, view: memoryview, offset: int) -> None:
        """The same in a small piece: an UnreadableError is of these bytes and no others."""

    def reread_unit_bytes(self) -> int:
        """What can be unreadable by itself: a power of two."""

    def release(self, offset: int, length: int) -> None:
        """The range is durably somewhere else; nothing need be kept for it any more."""

    def check(self) -> None:
        """SnapfsError when what was read may not all be of one cut."""

    def buffer_bytes(self) -> int | None:
        """What the side buffer holds now; None without one."""

    def close(self) -> None: ...


@contextlib.contextmanager
def open_source(
    path: Path, snapshot: str | None = None, *, takes_damaged: bool = False, skip_swap: bool = False
) -> Iterator[Source]:
    """The source that `path` (LIVE, SNAP, IMAGE) names, and of a mounted one `snapshot`, the newest without it; with
    `takes_damaged` also a snapshot that has lost blocks; with `skip_swap` swap space and swap files of an image that
    is not mounted are free. UsageError: of one that is mounted its map says that."""
    try:
        store: Path | None = find_store(path)
    except NotMountedError:
        if snapshot is not None:
            raise
        store = None
    if store is not None and skip_swap:
        raise UsageError("What is skipped of a mounted image is said at the mount; give --skip-swap to snapfs mount.")
    source: Source = (
        ImageSource(path, skip_swap=skip_swap)
        if store is None
        else SnapshotSource(store, snapshot, takes_damaged=takes_damaged)
    )
    try:
        yield source
    finally:
        source.close()
