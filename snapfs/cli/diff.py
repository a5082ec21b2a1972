"""`snapfs diff`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from snapfs.cli.output import OUTPUT_VERSION, note, output_options, put_lines, writing
from snapfs.cli.progress import ask
from snapfs.cli.types import mode_option
from snapfs.options import format_size


@click.command("diff", short_help="What was written since the snapshot.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=click.Path(path_type=Path))
@output_options
@click.option("--domain", type=click.Path(path_type=Path), metavar="FILE", help="Write a ddrescue domain map.")
@click.option("--force", is_flag=True, help="Overwrite the file without asking.")
@mode_option
def diff_command(path: Path, as_json: bool, quiet: bool, domain: Path | None, force: bool, mode: int | None) -> None:
    """Print the extents (start and length in bytes) that were written to since the snapshot was taken.

    They are whole blocks, and may hold the same bytes as before. What a filesystem on the live view has not yet
    written out is not among them: sync first.
    """
    from snapfs.commands.diff import changes_json, read_changes
    from snapfs.commands.map import new_results
    from snapfs.destination.consent import Consent
    from snapfs.usedmap.domain import write_domain

    with new_results(path, {"--domain": domain}, Consent(force, ask, note, quiet), mode) as files:
        changes = read_changes(path)
        if "--domain" in files:
            with files["--domain"].open("w") as file:
                write_domain(file, changes.blocks)
    if as_json:
        with writing():
            sys.stdout.writelines(changes_json(changes, OUTPUT_VERSION))
    elif domain is None and not quiet:
        size = format_size(changes.blocks.size_bytes)
        put_lines([f"{format_size(changes.changed_bytes)} of {size} written since {changes.taken_at}"])
        with writing():
            sys.stdout.writelines(f"{start:>16} {length:>14}\n" for start, length in changes.extents())
