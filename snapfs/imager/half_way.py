"""DEST.update: what a backup that is brought up to date where it is may hold otherwise than its manifest says.

JSON, one object:

    version, program   1, "snapfs"
    manifest           BLAKE3 of the file of the manifest that tells what DEST was before
    begun_at           when writing to it began, of several that were interrupted the first, UTC
    image, cut         path of the image, and id of the cut that was being written; null for an unmounted image
    image_bytes        size of the image
    ranges             [[offset, length], ...] of all that may have been written since, in ascending order
    blake3             of the canonical JSON (sorted keys, no spaces) of all the rest

Rules
- It is on the disk under its name before anything is written to DEST, and goes when the new manifest has its name.
  What an earlier one lists, the next one lists as well.
- With another manifest than the one it names it is over: it says nothing any more.
- One that is damaged says that nothing is known of DEST. What is not of snapfs is somebody else's file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.names import partial_path, update_path
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import read_range, read_size
from snapfs.imager.unread import Ranges
from snapfs.stamps import utc_time
from snapfs.system.file_kinds import read_small
from snapfs.system.mounts import canonical_path
from snapfs.whole import put_whole

_VERSION: Final = 1
# By which a note is known that has lost its end.
_BEGINNING: Final = json.dumps({"version": _VERSION, "program": "snapfs"})[:-1].encode()
WAY_OUT: Final = "say --update again"


@dataclass(frozen=True)
class HalfWay:
    """`backup` is neither what its manifest says nor what it was to become. `ranges` None: nobody knows where.

    `begun_at` is an empty string when that is not known either.
    """

    backup: Path
    begun_at: str
    ranges: Ranges | None

    @property
    def state(self) -> str:
        """The beginning of a sentence."""
        since = f" since {self.begun_at}" if self.begun_at else ""
        return f"{self.backup} is half brought up to date{since}"

    def refuse(self) -> BackupDamagedError:
        """What to say to who wants to use it."""
        return BackupDamagedError(f"{self.state}; finish that first with snapfs backup --update.", path=self.backup)


@dataclass(frozen=True)
class Note:
    """What is written to DEST.update."""

    manifest_blake3: str
    begun_at: str
    image: str
    cut_id: str | None
    image_bytes: int
    ranges: Ranges

    def text(self) -> str:
        """As it is in the file."""
        data = {
            "version": _VERSION,
            "program": "snapfs",
            "manifest": self.manifest_blake3,
            "begun_at": self.begun_at,
            "image": self.image,
            "cut": self.cut_id,
            "image_bytes": self.image_bytes,
            "ranges": list(self.ranges),
        }
        return json.dumps({**data, "blake3": _self_hash(data)}) + "\n"


def note_path(backup: Path, manifest: Path, *, is_device: bool) -> Path:
    """Where it is: beside the backup, of a block device beside its manifest. Both as canonical names."""
    return update_path(manifest if is_device else backup)


def half_way(backup: Path, manifest_file: Path) -> HalfWay | None:
    """Whether the backup whose manifest is in that file is half brought up to date. None: no, or nothing tells."""
    try:
        is_device = stat.S_ISBLK(backup.stat().st_mode)
        path = note_path(canonical_path(backup), canonical_path(manifest_file), is_device=is_device)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        hashed = manifest_hash(manifest_file)
    except OSError:
        return None
    try:
        data = _note_in(path)
        if data is None:
            return None
        if data["blake3"] != _self_hash({key: value for key, value in data.items() if key != "blake3"}):
            raise ValueError("its hash does not fit what it says")
        if data["version"] == _VERSION and data["manifest"] != hashed:
            return None
        return _parsed(backup, data)
    except (OSError, KeyError, TypeError, ValueError):
        return HalfWay(backup, "", None)


def _note_in(path: Path) -> dict[str, Any] | None:
    """None: it is not of snapfs. Of one that is, but cannot be read any more, nothing."""
    text = read_small(path, "", flags=os.O_NOFOLLOW)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {} if text.startswith(_BEGINNING) else None
    return data if isinstance(data, dict) and data.get("program") == "snapfs" and "ranges" in data else None


def manifest_hash(file: Path) -> str:
    """By which a note names the manifest in `file`."""
    return blake3(read_small(file, "name the manifest of a backup")).hexdigest()


def write_note(path: Path, note: Note, access: Access, owners: set[int | None]) -> None:
    """Put it in the place of an older one; it is on the disk when this returns. `owners`: see `open_left`."""
    partial = partial_path(path)
    with write_errors(str(path), WAY_OUT):
        if _is_there(path, owners) and _note_in(path) is None:
            raise SnapfsError(f"{path} is not what snapfs has noted; remove it, or name another place.", path=path)
        if _is_there(partial, owners):
            os.unlink(partial)
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, NEW_MODE)
        try:
            put_whole(fd, memoryview(note.text().encode()))
            access.give_to(fd)
            os.fsync(fd)
            os.rename(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        finally:
            os.close(fd)
        sync_directory(path.parent)


def remove_note(path: Path, owners: set[int | None]) -> None:
    """It is over. What is not of snapfs stays."""
    with write_errors(str(path), WAY_OUT):
        if os.path.lexists(path) and _note_in(path) is not None and _is_there(path, owners):
            os.unlink(path)
            sync_directory(path.parent)


def _is_there(path: Path, owners: set[int | None]) -> bool:
    """SnapfsError when it is somebody else's."""
    fd = open_left(path, owners)
    if fd is None:
        return False
    os.close(fd)
    return True


def _parsed(backup: Path, data: Mapping[str, Any]) -> HalfWay:
    if data["version"] != _VERSION:
        raise ValueError(f"its version is {data['version']!r:.40}")
    utc_time(data["begun_at"])
    size_bytes, end = read_size(data["image_bytes"]), 0
    ranges = [read_range(offset, length) for offset, length in data["ranges"]]
    for offset, length in ranges:
        if offset < end:
            raise ValueError("its ranges are not in order")
        end = offset + length
    if end > size_bytes:
        raise ValueError("its ranges reach past the image")
    return HalfWay(backup, str(data["begun_at"]), Ranges(ranges))


def _self_hash(data: Mapping[str, Any]) -> str:
    return blake3(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
