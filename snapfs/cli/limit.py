"""`snapfs limit`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.types import PATH
from snapfs.options import parse_size


@click.command("limit", short_help="Set the limit of the side buffer.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=PATH)
@click.argument("size", metavar="SIZE|none")
def limit_command(path: Path, size: str) -> None:
    """Let the side buffer take SIZE on disk at most; live writes that wait for room go on."""
    from snapfs.commands.limit import limit

    limit(path, None if size == "none" else parse_size(size))
