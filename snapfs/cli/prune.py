"""`snapfs prune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.keep import keep_of, keep_options
from snapfs.cli.output import note, output_options, show
from snapfs.cli.progress import progress_options, shown_progress
from snapfs.cli.types import READABLE_PATH
from snapfs.errors import UsageError

if TYPE_CHECKING:
    from snapfs.commands.prune import BackupFate


@click.command("prune", short_help="Let go of backups in a directory.")
@click.argument("directory", metavar="DIR", type=READABLE_PATH)
@keep_options
@click.option("--dry-run", is_flag=True, help="Say what would go, and what stays and why; change nothing.")
@progress_options
@output_options
def prune_command(
    directory: Path, dry_run: bool, progress: str, as_json: bool, quiet: bool, **counts: int | None
) -> None:
    """All backups in DIR go but those that one of these rules keeps.

    What the others need of one is merged into the next, which takes time and room by what that holds. Interrupted,
    the next one goes on. The newest stays, and nothing changes unless it and all that is merged are whole. Each rule
    is on its own, and keeps the oldest of all too while there are fewer than its N periods.
    """
    from snapfs.commands.prune import prune

    keep = keep_of(counts)
    if keep is None:
        raise UsageError("Nothing says which backups are to stay; give --keep-last or the like.")
    end_as_interrupted()
    with shown_progress(progress, quiet) as report:
        fates = prune(directory, keep, report, note, dry_run=dry_run)
    show(_object(fates, dry_run), *_lines(fates, dry_run), as_json=as_json, quiet=quiet)


def _object(fates: list[BackupFate], dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "pruned": [fate.name for fate in fates if not fate.stays],
        "kept": [
            {"name": fate.name, "taken_at": fate.taken_at, "reasons": list(fate.reasons)}
            for fate in fates
            if fate.stays
        ],
    }


def _lines(fates: list[BackupFate], dry_run: bool) -> list[str]:
    if dry_run:
        return [f"{fate.taken_at}  {fate.name}  {_would(fate)}" for fate in fates]
    return [f"{fate.name}  gone" for fate in fates if not fate.stays] or ["nothing was to go"]


def _would(fate: BackupFate) -> str:
    return f"stays: {', '.join(fate.reasons)}" if fate.stays else "would go"
