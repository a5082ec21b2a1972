"""The manifest beside a backup, DEST.json: what the backup is, and how to tell that it still is that.

JSON, one object:

    version, program   1, "snapfs"
    image              path of the image;  image_bytes  its size;  block_bytes  of the map
    cut                {"id", "taken_at", "freeze_ms"} of the snapshot, with --cut also "frozen" and
                       "not_frozen"; null for an unmounted image
    created_at         when the backup was finished, UTC
    format             "raw" or "qcow2"
    used_bytes         bytes in blocks that the image's filesystems use
    data_bytes         bytes in extents that were read
    regions            partitions and filesystems as the map of used blocks found them
    file               {"inode", "size_bytes", "mtime_ns"} of the backup when it was made: after a crash they tell
                       which of two manifests is its own
    device             of a backup that is on a block device: which disk that is, by what it says of itself (see
                       `device_identity`); null when nothing tells
    update             {"holder", "used"} of a backup that was made with --update: the id by which the checkpoint of
                       its cut is held, and BLAKE3 of the map of used blocks that it was made by
    extents            [{"offset", "length", "blake3"}] in ascending order; blake3 null: zeros, nothing to read
    unread             [{"offset", "length"}] of what could not be read, in ascending order
    blake3             over everything: the size, then offset, length and hash of each extent (see `overall_hash`)

Bytes in no extent are free: nobody needs them, a backup shows them as zeros. What could not be read was written as
zeros and counts as zeros in the hash of its extent, so that somebody may put there later what another tool can read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from snapfs.destination.pair import manifest_to_read
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import Extent, read_extent, read_range, read_size
from snapfs.imager.hashing import DIGEST_BYTES, ZEROS_DIGEST, NewHasher, plain_hasher
from snapfs.imager.unread import Ranges
from snapfs.system.file_kinds import check_readable, read_small
from snapfs.system.mounts import canonical_path

VERSION = 1
_NUMBERS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Hashed:
    """An extent and the BLAKE3 of its bytes; no digest for zeros that nobody read."""

    extent: Extent
    digest: bytes | None


@dataclass(frozen=True)
class Manifest:
    """The facts of one backup. `facts` are those that only people and programs read."""

    image_bytes: int
    format: str
    extents: tuple[Hashed, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    unread: Ranges = field(default_factory=Ranges)
    # How the digests were made; a manifest in a file has plain ones.
    new_hasher: NewHasher = plain_hasher

    @property
    def data_bytes(self) -> int:
        """Bytes that have to be read."""
        return sum(hashed.extent.length for hashed in self.extents if hashed.digest is not None)


def overall_hash(image_bytes: int, extents: Iterable[Hashed], unread: Iterable[tuple[int, int]] = ()) -> bytes:
    """BLAKE3 over the little-endian 64-bit size, then offset, length and digest (zeros: 32 zero bytes) of each, then
    offset and length of each unread range."""
    hasher = blake3(_NUMBERS.pack(image_bytes, 0))
    for hashed in extents:
        hasher.update(_NUMBERS.pack(hashed.extent.offset, hashed.extent.length))
        hasher.update(hashed.digest or ZEROS_DIGEST)
    for offset, length in unread:
        hasher.update(_NUMBERS.pack(offset, length))
    return hasher.digest()


def manifest_path(backup: Path) -> Path:
    """Where the manifest of `backup` is when no other place is named."""
    return backup.with_name(backup.name + ".json")


def file_of_manifest(backup: Path, file: Path | None = None) -> Path:
    """Where that manifest is: for a backup named by a symbolic link also beside what the link leads to."""
    try:
        check_readable(backup, backup.stat().st_mode, "name a backup")
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise SnapfsError(f"{backup} {reason}; name a backup.", path=backup) from error
    if file is not None:
        return manifest_to_read(backup, file)
    places = [manifest_to_read(name, manifest_path(name)) for name in (backup, canonical_path(backup))]
    return next((place for place in places if place.exists()), places[0])


def describe_unread(manifest: Manifest) -> str:
    """How much could not be read, for people."""
    return describe_ranges(manifest.unread)


def describe_ranges(ranges: Ranges) -> str:
    """How much they are, and where."""
    first, _ = next(iter(ranges))
    count = len(ranges)
    places = f"at {first}" if count == 1 else f"in {count} ranges, the first at {first},"
    return f"{ranges.total_bytes} bytes {places}"


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write it under `path`, durably."""
    data = {
        "version": VERSION,
        "program": "snapfs",
        **manifest.facts,
        "image_bytes": manifest.image_bytes,
        "format": manifest.format,
        "data_bytes": manifest.data_bytes,
        "unread": [{"offset": offset, "length": length} for offset, length in manifest.unread],
        "blake3": overall_hash(manifest.image_bytes, manifest.extents, manifest.unread).hex(),
    }
    lines = ",\n    ".join(json.dumps(_as_json(hashed)) for hashed in manifest.extents)
    head = json.dumps(data, indent=2)[:-2]
    with path.open("w") as file:
        file.write(f'{head},\n  "extents": [\n    {lines}\n  ]\n}}\n')
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; SnapfsError when it is missing, or is not what was written."""
    try:
        data = json.loads(read_small(path, "name the manifest of a backup"))
    except FileNotFoundError as error:
        raise SnapfsError(
            f"{path} is missing, and without it nobody knows whether the backup is whole; say --manifest.",
            path=path,
        ) from error
    except OSError as error:
        raise SnapfsError(f"{path} cannot be read: {error.strerror}.", path=path) from error
    except (ValueError, RecursionError) as error:
        raise BackupDamagedError(
            f"{path} is no manifest of snapfs, not even JSON; take another.", path=path
        ) from error
    try:
        return _parsed(data)
    except (KeyError, TypeError, ValueError) as error:
        raise BackupDamagedError(
            f"{path} is no whole manifest of snapfs: {error}; take another.", path=path
        ) from error


def _parsed(data: dict[str, Any]) -> Manifest:
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']}, this snapfs knows {VERSION}")
    extents = tuple(map(_hashed, data["extents"]))
    image_bytes = read_size(data["image_bytes"])
    end = 0
    for hashed in extents:
        if hashed.extent.offset < end or hashed.extent.length <= 0:
            raise ValueError("its extents are not in order")
        end = hashed.extent.end
    if end > image_bytes:
        raise ValueError("its extents reach past the image")
    unread = read_unread(data.get("unread", []), image_bytes)
    if overall_hash(image_bytes, extents, unread).hex() != data["blake3"]:
        raise ValueError("its hash over everything does not fit its extents")
    facts = {key: value for key, value in data.items() if key not in ("extents", "unread", "version", "program")}
    return Manifest(image_bytes, str(data["format"]), extents, facts, unread)


def read_unread(items: list[dict[str, Any]], image_bytes: int) -> Ranges:
    """What could not be read of an image, as a file of somebody else lists it; ValueError when that cannot be."""
    ranges = [read_range(item["offset"], item["length"]) for item in items]
    end = 0
    for offset, length in ranges:
        if offset < end:
            raise ValueError("its unread ranges are not in order")
        end = offset + length
    if end > image_bytes:
        raise ValueError("its unread ranges reach past the image")
    return Ranges(ranges)


def _as_json(hashed: Hashed) -> dict[str, Any]:
    digest = hashed.digest.hex() if hashed.digest is not None else None
    return {"offset": hashed.extent.offset, "length": hashed.extent.length, "blake3": digest}


def _hashed(item: dict[str, Any]) -> Hashed:
    digest = None if item["blake3"] is None else bytes.fromhex(item["blake3"])
    if digest is not None and len(digest) != DIGEST_BYTES:
        raise ValueError("a hash has the wrong length")
    return Hashed(read_extent(item["offset"], item["length"], is_zeros=digest is None), digest)
