"""`snapfs browse`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.output import note, output_options, show
from snapfs.cli.types import PATH
from snapfs.errors import ExitCode, UsageError
from snapfs.usedmap.result import partition_name

if TYPE_CHECKING:
    from snapfs.commands.browse import Browsed, NotShown, ShownFiles

# The last of the words, behind a NAME that may be left out.
_DIRECTORY = click.Argument(["directory"], metavar="DIR", type=PATH)


@click.command("browse", short_help="Show the files of a snapshot or of a backup in DIR, read-only.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE|BACKUPS", type=PATH, required=False)
@click.argument("words", metavar="[NAME] DIR", nargs=-1)
@click.option(
    "--at", metavar="TIME|NAME", help="Of BACKUPS: the newest that is not after this time, or the one of this name."
)
@click.option("--end", type=PATH, metavar="DIR", help="Unmount what is shown in DIR.")
@output_options
def browse_command(
    path: Path | None, words: tuple[str, ...], at: str | None, end: Path | None, as_json: bool, quiet: bool
) -> int:
    """Mount the filesystems of the snapshot, read-only, in the empty directory DIR: an image that is one filesystem
    on DIR itself, the partitions of a disk on DIR/p1, DIR/p2 and so on. It takes root. With NAME, a name or an id of
    snapfs list, it is that snapshot, else the newest.

    BACKUPS is a directory of backups, or a NAME.qcow2 in one: then it is the newest backup, or that of --at. As long
    as it is shown nothing in that directory is changed.

    What holds no files (swap, LVM, what is encrypted) is named on stderr. End it with --end or with umount -R, before
    the snapshot is over (one without a name with the next cut, others when they are deleted): then reading its files
    fails (Input/output error).

    Exit code 4: some are shown, but the kernel refuses a filesystem that should have files; stderr says why.
    """
    if end is not None and path is None and not words and at is None:
        from snapfs.commands.browse_end import end_browse

        unmounted = end_browse(end)
        show({"unmounted": [str(point) for point in unmounted]}, as_json=as_json, quiet=True)
        return ExitCode.DONE
    if end is not None or path is None or not 0 < len(words) < 3:
        raise UsageError("It takes LIVE (and a NAME) and DIR, or --end and DIR alone; see snapfs browse --help.")
    from snapfs.commands.browse import browse
    from snapfs.commands.browse_backup import backups_named, browse_backup

    *name, last = words
    directory: Path = _DIRECTORY.type_cast_value(click.get_current_context(), last)
    if backups := backups_named(path):
        if name:
            raise UsageError(f"{path} has backups; say which one with --at {name[0]}.")
        browsed = browse_backup(*backups, at, directory, note)
    elif at is not None:
        raise UsageError(f"{path} is no directory of backups; leave out --at.")
    else:
        browsed = browse(path, name[0] if name else None, directory)
    show(_object(browsed), *map(_line, browsed.shown), as_json=as_json, quiet=quiet)
    for sentence in _notes(browsed, quiet):
        note(sentence)
    return ExitCode.PROBLEM if any(one.is_refused for one in browsed.not_shown) else ExitCode.DONE


def _object(browsed: Browsed) -> dict[str, Any]:
    snapshot = browsed.snapshot
    return {
        "image": snapshot.image,
        "snapshot": {"name": snapshot.name, "id": snapshot.id, "taken_at": snapshot.taken_at},
        **({"backup": str(snapshot.file)} if snapshot.is_backup else {}),
        "directory": str(browsed.directory),
        "mounted": [
            {
                "mount_point": str(one.mount_point),
                **_facts(one),
                "options": one.mounted.options,
                "is_behind": one.mounted.is_behind,
            }
            for one in browsed.shown
        ],
        "not_mounted": [{**_facts(one), "reason": one.reason} for one in browsed.not_shown],
    }


def _facts(one: ShownFiles | NotShown) -> dict[str, Any]:
    region = one.region
    return {
        "partition_number": region.partition_number,
        "offset": region.offset,
        "kind": region.kind,
        "label": region.label,
        "uuid": region.uuid,
    }


def _line(one: ShownFiles) -> str:
    label = f' "{one.region.label}"' if one.region.label else ""
    return f"{one.mount_point}  {one.region.kind}{label} ({one.mounted.options})"


def _notes(browsed: Browsed, quiet: bool) -> list[str]:
    behind = [
        f"{one.mount_point} is shown without what its {one.region.kind} had still to replay, so the last moments "
        "before the cut may be missing; a cut that freezes it (snapfs snapshot) has them."
        for one in browsed.shown
        if one.mounted.is_behind and not quiet
    ]
    return behind + [
        f"{partition_name(one.region)} is not mounted: {one.reason}."
        for one in browsed.not_shown
        if one.is_refused or not quiet
    ]
