"""`snapfs status`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from snapfs.cli.output import note, output_options, put, put_lines
from snapfs.cli.status_text import all_lines
from snapfs.cli.types import PATH, SECONDS, snapshot_option, with_value
from snapfs.errors import ExitCode, UsageError
from snapfs.shown import shown

_LOST_STATES = frozenset({"overflowed", "damaged"})
_WATCH = "--watch"
_EVERY_S = 2.0


class _StatusCommand(click.Command):
    """--watch may be alone: what comes after it is its time only if it is a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(with_value(args, _WATCH, f"{_EVERY_S:g}", _is_number)))


def _use(status: dict[str, Any]) -> list[str]:
    return [shown(line) for line in all_lines([status])]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@click.command(
    "status", cls=_StatusCommand, short_help="What is mounted, and how the snapshot and its side buffer are."
)
@click.argument("path", metavar="[LIVE|SNAP|IMAGE]", required=False, type=PATH)
@snapshot_option
@click.option(
    _WATCH,
    "every_s",
    type=SECONDS,
    default=None,
    metavar="[SECONDS]",
    help=f"Look again and again, every {_EVERY_S:g} seconds or as often as is said, until Ctrl-C or the end.",
)
@output_options
def status_command(path: Path | None, snapshot: str | None, every_s: float | None, as_json: bool, quiet: bool) -> int:
    """Show one instance, or all. Exit code 3 when a snapshot is overflowed or damaged, 4 when one does not answer.

    With --watch it is shown how fast things go as well, in the terminal, or as a line for each look; its exit code
    is 0.
    """
    from snapfs.commands.status import statuses

    if path is None and snapshot is not None:
        raise UsageError("A snapshot is one of an image; name LIVE, SNAP or IMAGE beside --snapshot.")
    if every_s is not None:
        if quiet and not as_json:
            raise UsageError("With -q there is nothing to watch; leave out one of the two.")
        from snapfs.cli.watch import watch

        return watch(path, snapshot, every_s, as_json=as_json)
    found, silent = statuses(path, snapshot, _use)
    if as_json:
        put(json.dumps(found[0] if path is not None else found))
    elif not quiet:
        put_lines(all_lines(found) or ([] if silent else ["Nothing is mounted with snapfs."]))
    is_lost = any(status["snapshot"]["state"] in _LOST_STATES for status in found)
    for error in silent:
        note(error.sentence)
    return ExitCode.LOST if is_lost else ExitCode.PROBLEM if silent else ExitCode.DONE
