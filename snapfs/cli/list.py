"""`snapfs list`"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from snapfs.cli.output import output_options, show
from snapfs.cli.types import READABLE_PATH
from snapfs.options import format_size

_LEAST_WIDTH: Final = 16


@click.command("list", short_help="The snapshots of an image.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@output_options
def list_command(path: Path, as_json: bool, quiet: bool) -> None:
    """Say which snapshots there are, oldest first; the last is the one that SNAP shows.

    The others are in SNAP/.snapshots/NAME/. Of each the size of what was preserved from it to the next, and after
    it how much of that it alone holds: about what would come back if it were deleted, for older ones read the rest.
    """
    from snapfs.commands.snapshots import listed

    snapshots = listed(path)
    width = max((len(one["name"]) for one in snapshots), default=0)
    lines = [_line(one, max(width, _LEAST_WIDTH)) for one in snapshots] or ["There is no snapshot."]
    show({"snapshots": snapshots}, *lines, as_json=as_json, quiet=quiet)


def _line(one: dict[str, Any], width: int) -> str:
    name = one["name"] or "-"
    sizes = f"{format_size(one['stored_bytes']):>10} {format_size(one['alone_bytes']):>10}"
    return f"{name:<{width}} {one['taken_at']}  {one['state']:<10} {sizes}  {one['id']}"
