"""`snapfs release`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.output import output_options, show
from snapfs.cli.types import READABLE_PATH, SIZE, snapshot_option
from snapfs.errors import UsageError
from snapfs.options import format_size


@click.command("release", short_help="Keep nothing more of a range of the snapshot.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.option("--offset", type=SIZE, default=None, help="Where the range begins.  [default: 0]")
@click.option("--length", type=SIZE, default=None, help="How long it is.  [default: to the end]")
@click.option("--all", "whole", is_flag=True, help="All of the snapshot.")
@snapshot_option
@output_options
def release_command(
    path: Path,
    offset: int | None,
    length: int | None,
    whole: bool,
    snapshot: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """For imagers of one's own: the range is safely elsewhere, and cannot be read from the snapshot any more."""
    from snapfs.commands.release import release

    if whole != (offset is None and length is None):
        raise UsageError("A range or all of it is released; say --offset and --length, or --all.")
    released_bytes = release(path, offset or 0, length, snapshot)
    text = f"{format_size(released_bytes)} released"
    if not released_bytes:
        text += ": no whole block of the range was still kept"
    show({"released_bytes": released_bytes}, text, as_json=as_json, quiet=quiet)
