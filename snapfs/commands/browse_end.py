"""`snapfs browse --end`: what shows the files of a snapshot or a backup on a directory is unmounted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapfs.commands.browse import await_turn, check_root
from snapfs.errors import BusyError, NotMountedError
from snapfs.system.browses import Browse, browses
from snapfs.system.holders import describe
from snapfs.system.mounts import canonical_path, read_mounts
from snapfs.system.open_files import Holder, processes_using
from snapfs.system.view_mounts import unmount_this

_KEEPER_S: Final = 10.0


def end_browse(directory: Path) -> list[Path]:
    """Unmount all of it; what was unmounted. BusyError names who uses it: nothing was changed."""
    check_root("unmount")
    browse = _browse_on(directory)
    holders = _holders(browse)
    if holders:
        raise BusyError(
            f"{directory} is in use: {describe(holders)}; end that and try again (nothing was unmounted).",
            path=directory,
            holders=[holder.description for holder in holders],
        )
    for mount in reversed(browse.mounts):
        unmount_this(mount)
    _await_keeper(browse.directory)
    return [mount.mount_point for mount in reversed(browse.mounts)]


def _await_keeper(directory: Path) -> None:
    """Whoever kept a backup to be shown there has the directory until it has let go of that."""
    with suppress(OSError):  # a directory that is gone has nobody
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await_turn(fd, _KEEPER_S)
        finally:
            os.close(fd)


def _browse_on(directory: Path) -> Browse:
    canonical = canonical_path(directory)
    for browse in reversed(browses()):
        if browse.directory == canonical:
            return browse
    raise NotMountedError(
        f"{directory} shows no files of a snapshot that is mounted; name the directory that was given to snapfs "
        "browse, or unmount it with umount -R.",
        path=directory,
    )


def _holders(browse: Browse) -> list[Holder]:
    """Who uses one of its mounts: processes, and what others have mounted inside."""
    own = {mount.mount_id for mount in browse.mounts}
    inside = [mount for mount in read_mounts() if mount.parent_id in own and mount.mount_id not in own]
    found = [Holder("mount", f"{mount.source} is mounted on {mount.mount_point}") for mount in inside]
    return found + [holder for mount in browse.mounts for holder in processes_using(mount)]
