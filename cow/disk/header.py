"""The header: what a store is for. Written whole under a new name and renamed, so it is never half there.

Renaming the header in is the commit point of a new store and of a new cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cow.disk.codec import checksum
from cow.disk.files import Files
from cow.disk.image import Image
from cow.disk.layout import (
    FORMAT_VERSION,
    HEADER,
    HEADER_CHECKSUM,
    HEADER_CUT,
    HEADER_MAGIC,
    HEADER_START,
    HOLDER_BYTES,
    MAX_HOLDERS,
    MAX_PATH_BYTES,
    Durability,
    Protect,
)
from cow.disk.plain import open_plain, read_plain
from cow.errors import StoreDamaged, StoreError
from cow.geometry import Geometry

HEADER_NAME = "header"
# Room for the longest header, which is given up when the disk has none: to delete a snapshot takes one, too.
SPARE_NAME = "header.spare"
SPARE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class CutHeader:
    """The facts of one cut: when it was taken, and what the image's file was then. Times in ns since 1970.

    `name` is "" for one that the next cut replaces. A hidden one is over for its users; cuts before it still read
    through it. `holders`, 32 hex digits each, ask for what was written since: it is their checkpoint, hidden or not.
    """

    generation: int
    taken_at_ns: int
    image_atime_ns: int
    image_mtime_ns: int
    image_mode: int
    image_uid: int
    image_gid: int
    snapshot_id: bytes
    name: str = ""
    is_hidden: bool = False
    holders: tuple[str, ...] = ()

    @property
    def is_going(self) -> bool:
        """Whether it is to be merged into the one before it, or goes at once."""
        return self.is_hidden and not self.holders


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of a store: what image it is for, how it keeps, and its cuts, oldest first. Sizes in bytes."""

    block_bytes: int
    image_bytes: int
    image_dev: int
    image_ino: int
    staging_slots: int
    durability: Durability
    protect: Protect
    is_device: bool
    store_id: bytes
    boot_id: bytes
    image_path: str
    device_id: str
    cuts: tuple[CutHeader, ...]

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.image_bytes, self.block_bytes)

    @property
    def record_seed(self) -> int:
        """What the checksums of all records of the store start from."""
        return int.from_bytes(self.store_id[:8], "little")

    @property
    def cut(self) -> CutHeader:
        """The present cut: the newest, which live writes preserve into, also when it is hidden."""
        return self.cuts[-1]

    @property
    def shown(self) -> tuple[CutHeader, ...]:
        """The snapshots that there are for users, oldest first."""
        return tuple(cut for cut in self.cuts if not cut.is_hidden)

    @property
    def has_checkpoints(self) -> bool:
        """Whether anybody asks for what is written to the image."""
        return any(cut.holders for cut in self.cuts)

    def gives_nothing(self, facts: CutHeader) -> bool:
        """Whether the cut is over for its users and stays all the same, for what it notes of the writes: it holds
        nothing for readers of its own, so it counts as wholly released. So does a newest one behind a checkpoint, as
        long as there is no newer one to merge it."""
        return facts.is_hidden and (bool(facts.holders) or (facts is self.cuts[-1] and self.has_checkpoints))

    def cut_of(self, generation: int) -> CutHeader | None:
        """The facts of a cut that is listed."""
        return next((cut for cut in self.cuts if cut.generation == generation), None)

    def next_of(self, generation: int) -> CutHeader | None:
        """The facts of the oldest cut after that one."""
        return next((cut for cut in self.cuts if cut.generation > generation), None)

    def end_of(self, generation: int) -> int | None:
        """The generation from which on records neither are nor will be that cut's: of the next that is not going."""
        later = (cut.generation for cut in self.cuts if cut.generation > generation and not cut.is_going)
        return next(later, None)

    def owner_of(self, generation: int) -> int | None:
        """The cut that has the records of `generation`: that one itself, or the one that it was merged into. None:
        nobody needs them any more."""
        older = [cut.generation for cut in self.cuts if cut.generation <= generation]
        return older[-1] if older else None


def cut_header(image: Image, generation: int, name: str = "") -> CutHeader:
    """Of a cut that is taken now."""
    info = os.fstat(image.fd)
    return CutHeader(
        generation=generation,
        taken_at_ns=time.time_ns(),
        image_atime_ns=info.st_atime_ns,
        image_mtime_ns=info.st_mtime_ns,
        image_mode=stat.S_IMODE(info.st_mode),
        image_uid=info.st_uid,
        image_gid=info.st_gid,
        snapshot_id=uuid.uuid4().bytes,
        name=name,
    )


def check_holder(holder: str) -> None:
    """ValueError unless it can be one of `CutHeader.holders`."""
    if len(holder) != 2 * HOLDER_BYTES or set(holder) - set("0123456789abcdef"):
        raise ValueError(f"{2 * HOLDER_BYTES} hex digits are a holder, not {holder[:100]!r}")


def with_holder(facts: CutHeader, holder: str) -> CutHeader:
    """The same, held by him too. ValueError: no holder, or one too many."""
    check_holder(holder)
    if holder in facts.holders:
        return facts
    if len(facts.holders) >= MAX_HOLDERS:
        raise ValueError(f"{MAX_HOLDERS} hold it already, and there can be no more")
    return replace(facts, holders=(*facts.holders, holder))


def encode_header(header: Header) -> bytes:
    path, device_id = os.fsencode(header.image_path), os.fsencode(header.device_id)
    body = HEADER.pack(
        HEADER_MAGIC,
        FORMAT_VERSION,
        header.block_bytes,
        header.image_bytes,
        header.image_dev,
        header.image_ino,
        header.staging_slots,
        header.durability,
        header.protect,
        header.is_device,
        len(device_id),
        len(path),
        len(header.cuts),
        header.store_id,
        header.boot_id,
    )
    body += path + device_id + b"".join(map(_encode_cut, header.cuts))
    return body + HEADER_CHECKSUM.pack(checksum(body))


def _encode_cut(cut: CutHeader) -> bytes:
    raw, held = os.fsencode(cut.name), b"".join(map(bytes.fromhex, cut.holders))
    # By name, not by `astuple`, which copies: a cut waits for this, and there may be two hundred of them.
    facts = HEADER_CUT.pack(
        cut.generation,
        cut.taken_at_ns,
        cut.image_atime_ns,
        cut.image_mtime_ns,
        cut.image_mode,
        cut.image_uid,
        cut.image_gid,
        cut.is_hidden,
        len(raw),
        len(cut.holders),
        cut.snapshot_id,
    )
    return facts + raw + held


def _decode_cuts(data: bytes, count: int) -> Iterator[CutHeader]:
    """ValueError, struct.error: they are not `count`."""
    at = 0
    for _ in range(count):
        *facts, is_hidden, name_bytes, holder_count, snapshot_id = HEADER_CUT.unpack_from(data, at)
        start = at + HEADER_CUT.size
        held = start + name_bytes
        at = held + holder_count * HOLDER_BYTES
        holders = tuple(data[low : low + HOLDER_BYTES].hex() for low in range(held, at, HOLDER_BYTES))
        values = [*facts, snapshot_id, os.fsdecode(data[start:held]), bool(is_hidden), holders]
        yield CutHeader(*values)
    if at != len(data):
        raise ValueError("the list of cuts has another length")


def decode_header(data: bytes, store: str) -> Header:
    """Inverse of `encode_header`; StoreError says what is wrong with the bytes."""
    if len(data) < HEADER_START.size or not data.startswith(HEADER_MAGIC):
        raise StoreDamaged(store, "has a damaged header")
    _check_version(HEADER_START.unpack_from(data)[1], store)
    if len(data) < HEADER.size:
        raise StoreDamaged(store, "has a damaged header")
    _magic, _version, *facts, device_id_bytes, path_bytes, cut_count, store_id, boot_id = HEADER.unpack_from(data)
    path_end = HEADER.size + path_bytes
    cuts_start = path_end + device_id_bytes
    end = len(data) - HEADER_CHECKSUM.size
    if path_bytes > MAX_PATH_BYTES or not 0 < cut_count <= (end - cuts_start) // HEADER_CUT.size:
        raise StoreDamaged(store, "has a damaged header")
    if HEADER_CHECKSUM.unpack_from(data, end)[0] != checksum(data[:end]):
        raise StoreDamaged(store, "has a damaged header")
    *numbers, durability, protect, is_device = facts
    path, device_id = os.fsdecode(data[HEADER.size : path_end]), os.fsdecode(data[path_end:cuts_start])
    try:
        cuts = tuple(_decode_cuts(data[cuts_start:end], cut_count))
    except (ValueError, struct.error) as error:
        raise StoreDamaged(store, "has a damaged header") from error
    kinds = (Durability(durability), Protect(protect), bool(is_device))
    values = [*numbers, *kinds, store_id, boot_id, path, device_id, cuts]
    return Header(*values)


def _check_version(version: int, store: str) -> None:
    if version > FORMAT_VERSION:
        raise StoreError(store, f"was written by a newer snapfs (format {version}, this one knows {FORMAT_VERSION})")
    if version < FORMAT_VERSION:
        raise StoreError(
            store,
            f"was written by an older snapfs (format {version}, this one knows {FORMAT_VERSION}), which alone can "
            "read its snapshot",
        )


def read_header(store: Path) -> Header | None:
    """The store's header, None when there is none (the store was never finished)."""
    try:
        data = read_plain(store / HEADER_NAME)
    except FileNotFoundError:
        return None
    return decode_header(data, str(store))


def write_header(store: Path, header: Header, files: Files, *, durable: bool = True) -> None:
    """Rename the header in; not `durable`: killed processes leave the old or the new one, a power loss perhaps none,
    so `flush_header` follows as soon as nobody waits."""
    data = encode_header(header)
    try:
        files.write_whole(store / HEADER_NAME, data, durable=durable)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _give_up_spare(store):
            raise
        files.write_whole(store / HEADER_NAME, data, durable=durable)
    keep_spare(store, files)


def keep_spare(store: Path, files: Files) -> None:
    """Have the room, as far as the disk has it."""
    with contextlib.suppress(OSError):
        fd = os.open(store / SPARE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            files.allocate(fd, 0, SPARE_BYTES)
        except OSError:
            os.unlink(store / SPARE_NAME)
        finally:
            os.close(fd)


def _give_up_spare(store: Path) -> bool:
    try:
        os.unlink(store / SPARE_NAME)
    except OSError:
        return False
    return True


def flush_header(store: Path, files: Files) -> None:
    """Make a header durable that was renamed in without it: after a power loss it must not read as damaged."""
    fd = open_plain(store / HEADER_NAME, os.O_RDONLY)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
    files.sync_directory(store)
