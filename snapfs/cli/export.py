"""`snapfs export`"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import output_options, show
from snapfs.cli.types import PATH, READABLE_PATH, snapshot_option
from snapfs.errors import ExitCode


@click.command("export", short_help="Serve a snapshot over NBD.")
@click.argument("path", metavar="LIVE|SNAP", type=READABLE_PATH)
@click.argument("uri", metavar="URI")
@snapshot_option
@click.option("--since", default=None, metavar="NAME", help="With a dirty bitmap of what changed since that one.")
@click.option("--tls-certificates", "certificates", type=PATH, default=None, metavar="DIR", help="For nbds://.")
@output_options
def export_command(path: Path, uri: str, as_json: bool, quiet: bool, **facts: Any) -> int:
    """Until it is interrupted, tools that speak NBD read the snapshot at URI, without what is free.

    URI is nbd+unix:///?socket=PATH or nbd://127.0.0.1:PORT. With --since the export has the dirty bitmap
    qemu:dirty-bitmap:changed.
    """
    from snapfs.commands.export import ExportOptions, export

    end_as_interrupted()

    def tell(where: str) -> None:
        show({"uri": where}, f"{where} is ready", as_json=as_json, quiet=quiet)

    with contextlib.suppress(KeyboardInterrupt):
        export(ExportOptions(path, uri, **facts), tell)
    return ExitCode.DONE
