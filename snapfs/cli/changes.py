"""`snapfs changes`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from snapfs.cli.output import OUTPUT_VERSION, writing
from snapfs.cli.progress import progress_options, shown_progress
from snapfs.cli.types import READABLE_PATH, one_of, snapshot_option
from snapfs.options import ChangesFormat


@click.command("changes", short_help="What has changed between two snapshots, for programs.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.option("--since", default=None, metavar="NAME", help="An older snapshot, or a checkpoint; without it: all.")
@snapshot_option
@click.option("--format", "wanted", type=one_of(ChangesFormat), default="json", show_default=True, help="See below.")
@progress_options
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def changes_command(
    path: Path, since: str | None, snapshot: str | None, wanted: ChangesFormat, progress: str, quiet: bool
) -> None:
    """Say what has to be read of a snapshot by whoever has the older one: what was written since, and what is used
    now and was free then. What is free reads as zeros. Both snapshots are sealed, so the answer stays right.

    json: extents of data and of zeros. domain: a domain map for ddrescue of the data. borg: a map for borg create
    --map, with --reuse-from the archive of the older one (borg 2). rbd: a diff for rbd import-diff, with the data.
    """
    from snapfs.commands.changes import read_snapshot_changes, write_rbd_diff

    if wanted == "rbd":
        with shown_progress(progress, quiet) as report:
            write_rbd_diff(path, since, snapshot, report)
        return
    changes = read_snapshot_changes(path, since, snapshot)
    with writing():
        if wanted == "domain":
            changes.write_domain(sys.stdout)
        else:
            sys.stdout.writelines(changes.as_borg() if wanted == "borg" else changes.as_json(OUTPUT_VERSION))
