"""`snapfs status --watch`: one picture that changes in a terminal, elsewhere a line or an object for each look."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import note, put, put_lines
from snapfs.cli.status_text import rows
from snapfs.commands.watch import Look, Rates, looks
from snapfs.errors import ExitCode
from snapfs.options import format_size
from snapfs.shown import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

Show = Callable[[Look], None]
# Terminals of whose screen nothing can be overwritten.
_NO_PICTURES = ("dumb", "unknown")
_NOTHING = "Nothing is mounted with snapfs."
# By what a row of the status is called, which of the rates belongs there.
_RATED = {"preserved": "preserved", "released": "released", "changed": "changed", "side buffer": "stored"}


def watch(path: Path | None, snapshot: str | None, every_s: float, *, as_json: bool) -> int:
    """Show one look after the other until somebody ends it, or the instance has ended."""
    end_as_interrupted()
    try:
        with _showing(path, as_json) as show:
            for look in looks(path, snapshot, every_s, _use):
                show(look)
    except KeyboardInterrupt:
        # The way to end it, so it is none to fail.
        return ExitCode.DONE
    note(f"{path} is not mounted any more.")
    return ExitCode.DONE


def _use(status: dict[str, Any], rates: Rates) -> None:
    shown(line_of(status, rates))
    _drawn(Look("", [status], [], [rates]))


@contextmanager
def _showing(path: Path | None, as_json: bool) -> Iterator[Show]:
    if as_json:
        yield lambda look: _put_object(look, is_one=path is not None)
    elif sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in _NO_PICTURES:
        with _picture() as show:
            yield show
    else:
        yield lambda look: put_lines(_look_lines(look))


def _put_object(look: Look, *, is_one: bool) -> None:
    for error in look.silent:
        note(error.sentence)
    if look.found or not is_one:
        put(json.dumps(look.found[0] if is_one else look.found))


def _look_lines(look: Look) -> Iterator[str]:
    for status, rates in zip(look.found, look.rates, strict=True):
        yield f"{look.at}  {line_of(status, rates)}"
    for error in look.silent:
        yield f"{look.at}  {error.sentence}"
    if not look.found and not look.silent:
        yield f"{look.at}  {_NOTHING}"


def line_of(status: dict[str, Any], rates: Rates) -> str:
    """One instance at one look."""
    snapshot, size, buffer = status["snapshot"], status["block_bytes"], status["buffer"]
    counts = [
        f"{name} {format_size(snapshot[f'{name}_blocks'] * size)}{_in_brackets(getattr(rates, name, None))}"
        for name in ("used", "owed", "preserved", "released")
    ]
    limit = buffer["limit_bytes"]
    of_limit = f" of {format_size(limit)} ({100 * buffer['stored_bytes'] // limit} %)" if limit else ""
    stored = f"buffer {format_size(buffer['stored_bytes'])}{of_limit}{_in_brackets(rates.stored)}{_until(rates)}"
    number = len(status["snapshots"])
    parts = [status["live"], snapshot["state"], *counts, stored, f"{number} snapshot{'' if number == 1 else 's'}"]
    if snapshot["lost_blocks"]:
        parts.append(f"lost {format_size(snapshot['lost_blocks'] * size)}")
    if status["error"]:
        parts.append(f"error: {status['error']}")
    return "  ".join(parts)


def _rate_text(rate: float | None) -> str:
    return f"{format_size(round(rate))}/s" if rate is not None and round(rate) else ""


def _in_brackets(rate: float | None) -> str:
    text = _rate_text(rate)
    return f" ({text})" if text else ""


def _until(rates: Rates) -> str:
    if rates.full_in_s is None:
        return ""
    minutes, seconds = divmod(round(rates.full_in_s), 60)
    return f", full in {f'{minutes} min' if minutes else f'{seconds} s'}"


# --- in a terminal -------------------------------------------------------------------------------------------


@contextmanager
def _picture() -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    def draw(look: Look) -> None:
        if not sys.stdout.isatty():
            raise BrokenPipeError("the terminal was closed")
        live.update(_drawn(look), refresh=True)

    try:
        with Live(console=Console(), auto_refresh=False) as live:
            yield draw
    except OSError as error:
        if sys.stdout.isatty():
            raise
        # It is to be put in order again at the end, and answers nothing else.
        raise BrokenPipeError("the terminal was closed") from error


def _drawn(look: Look) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{look.at}  (Ctrl-C ends)", "dim")]
    for status, rates in zip(look.found, look.rates, strict=True):
        parts += [Text(""), _instance(status, rates)]
        if status["snapshots"]:
            parts += [Text(""), snapshots_table(status)]
    parts += [Text(shown(error.sentence), "red") for error in look.silent]
    if not look.found and not look.silent:
        parts.append(Text(_NOTHING))
    return Group(*parts)


def _instance(status: dict[str, Any], rates: Rates) -> RenderableType:
    """The rows of the status, how fast it goes beside them, and how full the side buffer is below it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, text in rows(status):
        rate = _rate_text(getattr(rates, _RATED.get(name, ""), None))
        table.add_row(name, Text(shown(text), "red" if name == "error" else ""), rate)
        limit, stored = status["buffer"]["limit_bytes"], status["buffer"]["stored_bytes"]
        if name == "side buffer" and limit:
            bar = ProgressBar(total=limit, completed=min(stored, limit), width=40)
            table.add_row("", bar, _until(rates).removeprefix(", "))
    return table


def snapshots_table(status: dict[str, Any]) -> RenderableType:
    """Newest first: what a small terminal has no room for is the oldest."""
    from rich.table import Table
    from rich.text import Text

    table = Table("snapshot", "taken", "state", "written since", "stored", box=None, padding=(0, 2, 0, 0))
    for one in reversed(status["snapshots"]):
        changed = format_size(one["changed_blocks"] * status["block_bytes"])
        names = (Text(shown(text)) for text in (one["name"] or one["id"], one["taken_at"], one["state"]))
        table.add_row(*names, changed, format_size(one["stored_bytes"]))
    return table
