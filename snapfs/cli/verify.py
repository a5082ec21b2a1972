"""`snapfs verify`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.output import output_options, show, sizes
from snapfs.cli.progress import progress_options, shown_progress
from snapfs.options import format_size


@click.command("verify", short_help="Compare a backup with its hashes.")
@click.argument("backup", metavar="BACKUP", type=click.Path(path_type=Path))
@click.option("--manifest", type=click.Path(path_type=Path), metavar="FILE", help="Instead of BACKUP.json.")
@progress_options
@output_options
def verify_command(backup: Path, manifest: Path | None, progress: str, quiet: bool, as_json: bool) -> None:
    """Read all of BACKUP and say what is not as it was written."""
    from snapfs.commands.verify import verify
    from snapfs.imager.manifest import describe_unread

    with shown_progress(progress, quiet) as report:
        found = verify(backup, manifest, report)
    unread = f", but {describe_unread(found)} could not be read when it was made" if found.unread else ""
    text = f"{backup}  {format_size(found.data_bytes)} verified{unread}"
    show({"backup": str(backup), **sizes(found)}, text, as_json=as_json, quiet=quiet)
