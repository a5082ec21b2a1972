"""`snapfs restore`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import note, output_options, show, sizes
from snapfs.cli.progress import ask, progress_options, shown_progress
from snapfs.cli.types import ADDRESS, RATE, READABLE_PATH, at_option, mode_option
from snapfs.errors import ExitCode
from snapfs.options import format_size


@click.command("restore", short_help="Write a backup back to an image.")
@click.argument("backup", metavar="BACKUP|DIR|rbd:POOL/IMAGE[@SNAP]|restic:REPOSITORY[@ID]|-", type=ADDRESS)
@click.argument("image", metavar="IMAGE", type=READABLE_PATH)
@click.option("--manifest", type=READABLE_PATH, metavar="FILE", help="Instead of BACKUP.json.")
@at_option
@click.option("--force", is_flag=True, help="Overwrite IMAGE without asking.")
@click.option("--keep-free", is_flag=True, help="Leave alone what is free in the backup.")
@click.option("--verify", is_flag=True, help="Read IMAGE back and compare.")
@click.option("--rate", type=RATE, default=None, metavar="SIZE", help="Read at most so much a second.")
@click.option(
    "--check-first/--no-check-first",
    default=None,
    help="Read all of BACKUP before IMAGE is overwritten; of a qcow2 by default.",
)
@click.option(
    "--fit-gpt", "fits_gpt", is_flag=True, help="IMAGE may have another size: the GPT is moved to the end of it."
)
@mode_option
@progress_options
@output_options
def restore_command(
    backup: str, force: bool, rate: int | None, progress: str, quiet: bool, as_json: bool, **facts: Any
) -> int:
    """Write BACKUP to IMAGE, a new file, or one of the same size, or a block device that is large enough: for all
    that is used, not for what is free at the end.

    What is free becomes holes. All data are compared with the hashes of the backup. Of a directory of backups it
    is the newest, or that of --at.

    Of a repository of restic it is the newest backup that snapfs made into it, or the snapshot ID.

    From the standard input, -, comes a raw stream, as it is or as zstd. Only with --manifest is it compared, and
    known whether it is whole.
    """
    from snapfs.commands.restore import RestoreOptions, restore
    from snapfs.destination.consent import Consent
    from snapfs.imager.manifest import describe_unread

    options = RestoreOptions(Path(backup), address=backup, rate_bytes_per_s=rate, **facts)
    end_as_interrupted()
    with shown_progress(progress, quiet) as report:
        manifest = restore(options, report, Consent(force, ask, note, quiet))
    used = f"{format_size(manifest.data_bytes)} of {format_size(manifest.image_bytes)}"
    result = {
        "backup": manifest.facts.get("backup", str(options.backup)),
        "image": str(options.image),
        **sizes(manifest),
    }
    show(result, f"{options.image}  {used} restored", as_json=as_json, quiet=quiet)
    if not manifest.unread:
        return ExitCode.DONE
    note(
        f"{describe_unread(manifest)} of the image could not be read when {options.backup} was made; "
        f"{options.image} has there what the backup has, which is zeros unless somebody has rescued it since."
    )
    return ExitCode.PROBLEM
