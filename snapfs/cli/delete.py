"""`snapfs delete`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.output import output_options, show


@click.command("delete", short_help="Let go of snapshots.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=click.Path(path_type=Path))
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@output_options
def delete_command(path: Path, names: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Delete the snapshots with these names, or ids, as snapfs list shows them; not the newest.

    Files that are open on them fail with ESTALE. The room of what no other snapshot needs comes back in a while.
    """
    from snapfs.commands.snapshots import delete

    delete(path, names)
    show({"deleted": list(names)}, *(f"{name}  deleted" for name in names), as_json=as_json, quiet=quiet)
