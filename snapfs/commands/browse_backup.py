"""`snapfs browse` of a backup in a directory: its files, read-only.

    the backup and those below it  ->  one raw file, by QEMU  ->  as the file of a snapshot

Nobody changes the directory as long as they are shown: whoever keeps the file has its lock.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from snapfs.backups.reading import open_link
from snapfs.commands.backups import chain_named, chain_to_read
from snapfs.commands.browse import Browsed, BrowsedSnapshot, check_root, show_files, taken
from snapfs.destination.consent import Note
from snapfs.export.raw_file import shown_as_file
from snapfs.system.mounts import SNAPFS_TYPE, canonical_path, find_mount
from snapfs.system.place import check_empty_directory
from snapfs.system.signals import Signals


def backups_named(path: Path) -> tuple[Path, str | None] | None:
    """The directory of backups that a user means, and which of them, where he names its file; None: neither."""
    mount = find_mount(canonical_path(path))
    return None if mount is not None and mount.fstype == SNAPFS_TYPE else chain_named(path)


def browse_backup(backups: Path, name: str | None, at: str | None, directory: Path, note: Note) -> Browsed:
    """Show the files of that backup, the newest without a name or a time, on an empty `directory`. SnapfsError:
    nothing is mounted."""
    check_root("mount")
    check_empty_directory("DIR", directory)
    with Signals.handled() as signals, taken(directory), chain_to_read(backups, note) as (chain, _):
        facts = chain.links(chain.find(at or name).name)
        top = facts[-1]
        snapshot = BrowsedSnapshot(
            file=chain.names(top.name).qcow2,
            look="snapfs map, after a restore",
            image=top.image,
            id=top.cut_id,
            taken_at=top.taken_at,
            name=top.name,
            is_backup=True,
        )
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(open_link(chain.names(one.name).qcow2, one)) for one in reversed(facts)]
            fd = stack.enter_context(shown_as_file(links))
            return show_files(fd, snapshot, directory, signals)
