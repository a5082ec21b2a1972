"""`snapfs backups`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.output import note, output_options, show
from snapfs.cli.types import READABLE_PATH
from snapfs.options import format_size

if TYPE_CHECKING:
    from snapfs.commands.backups import Listed


@click.command("backups", short_help="The backups in a directory.")
@click.argument("directory", metavar="DIR", type=READABLE_PATH)
@output_options
def backups_command(directory: Path, as_json: bool, quiet: bool) -> None:
    """Say which backups are in DIR, oldest first: each has the image as it was at its time.

    Of each its time, whether it is a full one or an increment, the size of its file, how many files a restore of it
    reads, and when it was verified.
    """
    from snapfs.commands.backups import listed

    found = listed(directory, note)
    show({"backups": [_result(one) for one in found]}, *map(_line, found), as_json=as_json, quiet=quiet)


def _result(one: Listed) -> dict[str, Any]:
    return {**one.entry.as_json(), "files": one.files}


def _line(one: Listed) -> str:
    entry = one.entry
    verified = f"verified {entry.verified_at}" if entry.verified_at else "not verified yet"
    size = format_size(entry.file_bytes)
    files = "1 file " if one.files == 1 else f"{one.files} files"
    return f"{entry.taken_at}  {entry.kind:<9} {size:>10}  {files:>8}  {verified:<29}  {entry.name}"
