"""`snapfs delete`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.keep import keep_of, keep_options, match_option
from snapfs.cli.output import output_options, show
from snapfs.cli.types import READABLE_PATH
from snapfs.errors import UsageError

if TYPE_CHECKING:
    from snapfs.commands.snapshots import Fate
    from snapfs.retention import Keep


@click.command("delete", short_help="Let go of snapshots.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.argument("names", metavar="[NAME...]", nargs=-1)
@keep_options
@match_option
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and what stays and why; change nothing.")
@output_options
def delete_command(
    path: Path,
    names: tuple[str, ...],
    match: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **counts: int | None,
) -> None:
    """Delete the snapshots with these names, or ids, as snapfs list shows them; with the id of a checkpoint (snapfs
    status) let go of that. Or, with --keep-...,
    all that have a name but those that one of these rules keeps.

    Each rule is on its own, and keeps the oldest of all too while there are fewer than its N periods. Hours and days
    are those of the local time zone.

    Files that are open on them fail with ESTALE. The room of what no other snapshot needs comes back in a while.
    """
    from snapfs.commands.snapshots import delete, thin_out

    keep = keep_of(counts)
    _check_usage(names, keep, match)
    if keep is None:
        fates = delete(path, names, dry_run=dry_run)
    else:
        fates = thin_out(path, keep, "*" if match is None else match, dry_run=dry_run)
    show(_object(fates, dry_run), *_lines(fates, dry_run), as_json=as_json, quiet=quiet)


def _check_usage(names: tuple[str, ...], keep: Keep | None, match: str | None) -> None:
    if names and keep is not None:
        raise UsageError("--keep-... says by itself which snapshots are deleted; give it or names, not both.")
    if keep is None and match is not None:
        raise UsageError("--match alone says nothing of what to keep; give --keep-last or the like too.")
    if not names and keep is None:
        raise UsageError("Nothing says which snapshots are to be deleted; give names, or --keep-last or the like.")


def _object(fates: list[Fate], dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "deleted": [fate.name or fate.id for fate in fates if not fate.stays],
        "kept": [
            {"name": fate.name, "id": fate.id, "taken_at": fate.taken_at, "reasons": list(fate.reasons)}
            for fate in fates
            if fate.stays
        ],
    }


def _lines(fates: list[Fate], dry_run: bool) -> list[str]:
    if dry_run:
        return [f"{fate.name or '-':<24} {fate.taken_at}  {_would(fate)}" for fate in fates]
    return [f"{fate.name or fate.id}  deleted" for fate in fates if not fate.stays] or ["nothing was to be deleted"]


def _would(fate: Fate) -> str:
    return f"stays: {', '.join(fate.reasons)}" if fate.stays else "would be deleted"
