"""The header: what a store is for. Written whole under a new name and renamed, so it is never half there.

Renaming the header in is the commit point of a new store and of a new cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cow.disk.codec import checksum
from cow.disk.files import Files, open_plain, read_plain
from cow.disk.layout import (
    FORMAT_VERSION,
    HEADER,
    HEADER_CHECKSUM,
    HEADER_MAGIC,
    MAX_PATH_BYTES,
    Durability,
    Protect,
)
from cow.errors import StoreDamaged, StoreError
from cow.geometry import Geometry

HEADER_NAME = "header"


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of one cut of one image. Times in ns since 1970, sizes in bytes."""

    block_bytes: int
    image_bytes: int
    image_dev: int
    image_ino: int
    image_mode: int
    image_uid: int
    image_gid: int
    image_atime_ns: int
    image_mtime_ns: int
    taken_at_ns: int
    generation: int
    staging_slots: int
    durability: Durability
    protect: Protect
    is_device: bool
    store_id: bytes
    boot_id: bytes
    snapshot_id: bytes
    image_path: str
    device_id: str = ""

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.image_bytes, self.block_bytes)


def encode_header(header: Header) -> bytes:
    path, device_id = os.fsencode(header.image_path), os.fsencode(header.device_id)
    body = HEADER.pack(
        HEADER_MAGIC,
        FORMAT_VERSION,
        header.block_bytes,
        header.image_bytes,
        header.image_dev,
        header.image_ino,
        header.image_mode,
        header.image_uid,
        header.image_gid,
        header.image_atime_ns,
        header.image_mtime_ns,
        header.taken_at_ns,
        header.generation,
        header.staging_slots,
        header.durability,
        header.protect,
        header.is_device,
        len(device_id),
        len(path),
        header.store_id,
        header.boot_id,
        header.snapshot_id,
    )
    body += path + device_id
    return body + HEADER_CHECKSUM.pack(checksum(body))


def decode_header(data: bytes, store: str) -> Header:
    """Inverse of ``encode_header``; StoreError says what is wrong with the bytes."""
    if len(data) < HEADER.size or not data.startswith(HEADER_MAGIC):
        raise StoreDamaged(store, "has a damaged header")
    _magic, version, *facts, device_id_bytes, path_bytes, store_id, boot_id, snapshot_id = HEADER.unpack_from(data)
    if version > FORMAT_VERSION:
        raise StoreError(store, f"was written by a newer snapfs (format {version}, this one knows {FORMAT_VERSION})")
    if version < FORMAT_VERSION:
        raise StoreError(
            store,
            f"was written by an older snapfs (format {version}, this one knows {FORMAT_VERSION}), which alone can "
            "read its snapshot",
        )
    path_end = HEADER.size + path_bytes
    end = path_end + device_id_bytes
    if path_bytes > MAX_PATH_BYTES or len(data) != end + HEADER_CHECKSUM.size:
        raise StoreDamaged(store, "has a damaged header")
    if HEADER_CHECKSUM.unpack_from(data, end)[0] != checksum(data[:end]):
        raise StoreDamaged(store, "has a damaged header")
    *numbers, durability, protect, is_device = facts
    path, device_id = os.fsdecode(data[HEADER.size : path_end]), os.fsdecode(data[path_end:end])
    kinds = (Durability(durability), Protect(protect), bool(is_device))
    values = [*numbers, *kinds, store_id, boot_id, snapshot_id, path, device_id]
    return Header(*values)


def read_header(store: Path) -> Header | None:
    """The store's header, None when there is none (the store was never finished)."""
    try:
        data = read_plain(store / HEADER_NAME)
    except FileNotFoundError:
        return None
    return decode_header(data, str(store))


def write_header(store: Path, header: Header, files: Files, *, durable: bool = True) -> None:
    """Rename the header in; not ``durable``: killed processes leave the old or the new one, a power loss none."""
    files.write_whole(store / HEADER_NAME, encode_header(header), durable=durable)


def flush_header(store: Path, files: Files) -> None:
    """Make a header durable that was renamed in without it: after a power loss it must not read as damaged."""
    fd = open_plain(store / HEADER_NAME, os.O_RDONLY)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
    files.sync_directory(store)
