"""`snapfs diff`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from snapfs.cli.output import OUTPUT_VERSION, note, output_options, put_lines, writing
from snapfs.cli.progress import ask
from snapfs.cli.types import READABLE_PATH, mode_option
from snapfs.options import format_size


@click.command("diff", short_help="What was written since a snapshot, or between two.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.argument("since", metavar="[A", required=False)
@click.argument("until", metavar="[B]]", required=False)
@output_options
@click.option("--domain", type=READABLE_PATH, metavar="FILE", help="Write a ddrescue domain map.")
@click.option("--force", is_flag=True, help="Overwrite the file without asking.")
@mode_option
def diff_command(
    path: Path,
    since: str | None,
    until: str | None,
    as_json: bool,
    quiet: bool,
    domain: Path | None,
    force: bool,
    mode: int | None,
) -> None:
    """Print the extents (start and length in bytes) that were written to since the newest snapshot was taken, or
    since A, or between A and B, a later one: names or ids, as of snapfs list.

    They are whole blocks, and may hold the same bytes as before. What a filesystem on the live view has not yet
    written out is not among what was written since: sync first.
    """
    from snapfs.commands.diff import changes_json, read_changes
    from snapfs.commands.map import new_results
    from snapfs.destination.consent import Consent
    from snapfs.usedmap.domain import write_domain

    with new_results(path, {"--domain": domain}, Consent(force, ask, note, quiet), mode) as files:
        changes = read_changes(path, since, until)
        if "--domain" in files:
            with files["--domain"].open("w") as file:
                write_domain(file, changes.blocks)
    if as_json:
        with writing():
            sys.stdout.writelines(changes_json(changes, OUTPUT_VERSION))
    elif domain is None and not quiet:
        size = format_size(changes.blocks.size_bytes)
        when = f"since {changes.since.taken_at}"
        if changes.until is not None:
            when = f"between {changes.since.taken_at} and {changes.until.taken_at}"
        put_lines([f"{format_size(changes.changed_bytes)} of {size} written {when}"])
        with writing():
            sys.stdout.writelines(f"{start:>16} {length:>14}\n" for start, length in changes.extents())
