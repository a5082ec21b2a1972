"""`snapfs export`: a snapshot over NBD, as long as the command runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.commands.changes import changes_until
from snapfs.errors import UsageError
from snapfs.export.address import Address, parse_address
from snapfs.export.dirty_bitmap import qemu_nbd
from snapfs.export.nbdkit import nbdkit
from snapfs.export.process import Server
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.system.descriptors import path_of
from snapfs.system.discovery import find_store

_LOOK_S: Final = 1.0


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, where, and with whose certificates."""

    path: Path
    uri: str
    snapshot: str | None = None
    since: str | None = None
    certificates: Path | None = None


def export(options: ExportOptions, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted, which is a KeyboardInterrupt; `on_ready` is told where, once it answers.

    SnapfsError: the snapshot is over, or whoever serves it has ended.
    """
    address = parse_address(options.uri)
    if address.is_tls != (options.certificates is not None):
        raise UsageError("nbds:// and --tls-certificates belong together; give both, or neither.")
    address.check_free()
    source = SnapshotSource(find_store(options.path), options.snapshot)
    try:
        with _server(options, source, address) as server:
            server.await_ready()
            on_ready(address.uri)
            server.watch(source.check, _LOOK_S)
    finally:
        source.close()


@contextlib.contextmanager
def _server(options: ExportOptions, source: SnapshotSource, address: Address) -> Iterator[Server]:
    # Not past the page cache: that reads ahead for whoever reads in order.
    fd = os.open(path_of(source.fd), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if options.since is None:
            with nbdkit(fd, source.size_bytes, source.used_extents(), address, options.certificates) as server:
                yield server
        else:
            changes = changes_until(source, options.path, options.since)
            with qemu_nbd(
                fd, source.size_bytes, source.block_bytes, changes.extents(), address, options.certificates
            ) as server:
                yield server
    finally:
        os.close(fd)
