"""`snapfs verify`"""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli.output import note, output_options, show, sizes
from snapfs.cli.progress import progress_options, shown_progress
from snapfs.cli.types import READABLE_PATH, at_option
from snapfs.options import format_size


@click.command("verify", short_help="Compare a backup with its hashes.")
@click.argument("backup", metavar="BACKUP|DIR", type=READABLE_PATH)
@click.option("--manifest", type=READABLE_PATH, metavar="FILE", help="Instead of BACKUP.json.")
@at_option
@click.option("--all", "everything", is_flag=True, help="Of DIR: every backup, not the newest alone.")
@click.option(
    "--against",
    type=READABLE_PATH,
    metavar="LIVE",
    help="Compare with the snapshot that the backup of DIR was made of, while it is there.",
)
@progress_options
@output_options
def verify_command(progress: str, quiet: bool, as_json: bool, **facts: Any) -> None:
    """Read all of BACKUP and say what is not as it was written.

    Of a directory of backups all files are read that the newest needs, or that of --at, or all.
    """
    from snapfs.commands.backups import Verified
    from snapfs.commands.verify import VerifyOptions, verify
    from snapfs.imager.manifest import describe_unread

    options = VerifyOptions(**facts)
    backup = options.backup
    with shown_progress(progress, quiet) as report:
        found = verify(options, report, note)
    if isinstance(found, Verified):
        proof = found.proof
        result = {"directory": str(backup), "good": proof.good, "read_bytes": proof.read_bytes}
        names = f"all {len(proof.good)} backups" if options.everything else found.entry.name
        text = f"{backup}  {names}, {format_size(proof.read_bytes)} verified"
        show(result, text, as_json=as_json, quiet=quiet)
        return
    unread = f", but {describe_unread(found)} could not be read when it was made" if found.unread else ""
    text = f"{backup}  {format_size(found.data_bytes)} verified{unread}"
    show({"backup": str(backup), **sizes(found)}, text, as_json=as_json, quiet=quiet)
