"""`snapfs list`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from snapfs.cli.output import output_options, show
from snapfs.options import format_size


@click.command("list", short_help="The snapshots of an image.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=click.Path(path_type=Path))
@output_options
def list_command(path: Path, as_json: bool, quiet: bool) -> None:
    """Say which snapshots there are, oldest first; the last is the one that SNAP shows.

    The others are in SNAP/.snapshots/NAME/. Of each the size of what was preserved from it to the next, and after
    it how much of that it alone holds: about what would come back if it were deleted, for older ones read the rest.
    """
    from snapfs.commands.snapshots import listed

    snapshots = listed(path)
    show(
        {"snapshots": snapshots},
        *(map(_line, snapshots) if snapshots else ["There is no snapshot."]),
        as_json=as_json,
        quiet=quiet,
    )


def _line(one: dict[str, Any]) -> str:
    name = one["name"] or "-"
    sizes = f"{format_size(one['stored_bytes']):>10} {format_size(one['alone_bytes']):>10}"
    return f"{name:<24} {one['taken_at']}  {one['state']:<10} {sizes}  {one['id']}"
