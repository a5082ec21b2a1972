"""What a name leads to, before anything is written there.

Rules
- A symbolic link is followed: the place is what it leads to, the unfinished file is made beside that, and the
  link stays. One that leads to nothing is refused: nobody can tell what was meant.
- A file or a block device, or nothing yet in a directory that is there. Anything else is refused, not opened.
- Never what is being read, nor what is in use (see `in_use`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snapfs.destination.in_use import lies_on_same, refuse_in_use, refuse_views_and_stores
from snapfs.destination.names import temporary_paths
from snapfs.errors import SnapfsError, UsageError
from snapfs.options import format_size
from snapfs.stamps import utc_text
from snapfs.system.block_devices import block_device_of_number, device_text
from snapfs.system.file_kinds import holds_data, kind_name
from snapfs.system.mounts import canonical_path


@dataclass(frozen=True)
class Place:
    """Where to write: `named` for sentences, `real` for system calls; `status` of what is there, None for nothing."""

    named: Path
    real: Path
    status: os.stat_result | None

    @property
    def is_new(self) -> bool:
        return self.status is None

    @property
    def is_device(self) -> bool:
        return self.status is not None and stat.S_ISBLK(self.status.st_mode)

    @property
    def text(self) -> str:
        """What is there, for people: "a file of 64 MiB, changed 2026-01-31T12:00:00Z"."""
        if self.status is None:
            return "nothing"
        if not self.is_device:
            return f"a file of {format_size(self.status.st_size)}, changed {utc_text(self.status.st_mtime_ns)}"
        device = block_device_of_number(self.status.st_rdev)
        return "a block device" if device is None else f"a block device of {device_text(device)}"

    def check_unchanged(self) -> None:
        """SnapfsError when something else is there now, or somebody has come to use it."""
        status = _status_or_none(self.real)
        if (status is None) != (self.status is None):
            raise SnapfsError(
                f"{self.named} has {'vanished' if status is None else 'appeared'} meanwhile; look at it."
            )
        if status is not None and self.status is not None:
            if not os.path.samestat(status, self.status):
                raise SnapfsError(f"{self.named} is another file than before; look at it.", path=self.named)
            refuse_in_use(self.named, self.real, status)


def look_at(named: Path, reading: Mapping[str, Path] | None = None, *, takes_devices: bool = False) -> Place:
    """The place that `named` is; SnapfsError when nothing may be written there.

    `reading`: what is being read, by what a sentence calls it, as {"the image": path}.
    """
    real = canonical_path(named)
    if not real.name:
        raise UsageError(f"{named} is a directory; name a file.")
    refuse_views_and_stores(named, real)
    status = _status(named, real)
    if status is None:
        _check_parent(named, real)
        return Place(named, real, None)
    if not holds_data(status.st_mode):
        raise UsageError(f"{named} is {kind_name(status.st_mode)}, neither a file nor a block device; name a file.")
    for what, path in (reading or {}).items():
        if _leads_to(status, path):
            raise UsageError(f"{named} is {what} itself, which is read; name another place.")
    refuse_in_use(named, real, status)
    if stat.S_ISBLK(status.st_mode) and not takes_devices:
        raise UsageError(f"{named} is a block device; name a file.")
    return Place(named, real, status)


def check_apart(places: Mapping[str, Path | None]) -> None:
    """UsageError when two results, by what a sentence calls them, would be one file, or one would be
    what is only for a while beside another."""
    names: dict[Path, str] = {}
    for what, path in places.items():
        if path is None:
            continue
        real = canonical_path(path)
        taken = (real, *temporary_paths(real))
        for name in taken:
            if name in names:
                raise UsageError(f"{what} and {names[name]} are the same file, {path}; name two.")
        names |= dict.fromkeys(taken, what)


def _leads_to(status: os.stat_result, path: Path) -> bool:
    other = _status_or_none(canonical_path(path))
    return other is not None and lies_on_same(status, other)


def _status_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _status(named: Path, real: Path) -> os.stat_result | None:
    """Of what is at `real`, None when nothing is; SnapfsError when the name does not lead there."""
    try:
        status = os.stat(named)
    except (FileNotFoundError, NotADirectoryError):
        if not named.is_symlink():
            return None
        reason = f"is a symbolic link to {os.readlink(named)}, which does not exist"
        raise UsageError(f"{named} {reason}; remove it, or name the file itself.") from None
    except OSError as error:
        raise SnapfsError(
            f"{named} cannot be looked at: {error.strerror}; name another place.", path=named
        ) from error
    if not holds_data(status.st_mode):
        return status
    found = _status_or_none(real)
    if found is None or not os.path.samestat(found, status):
        raise UsageError(f"{named} leads to a file that has no name any more; name one that has.")
    return status


def _check_parent(named: Path, real: Path) -> None:
    if not real.parent.is_dir():
        raise SnapfsError(f"{named.parent} is no directory; make it, or name another place.", path=named)
