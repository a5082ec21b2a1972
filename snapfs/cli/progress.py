"""Progress on stderr: a bar on a terminal, JSON lines for programs, or nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from snapfs.imager.progress import Progress, Report, silent
from snapfs.options import format_size
from snapfs.shown import shown

_PHASES = {"backup": "backing up", "restore": "restoring", "verify": "verifying"}


def progress_options(command: Any) -> Any:
    """--progress; -q is about it too."""
    return click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "json", "none"]),
        default="auto",
        show_default=True,
        help="On stderr; auto is a bar on a terminal.",
    )(command)


def ask(question: str) -> bool:
    """Ask on the terminal; without one the answer is no."""
    return sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(shown(question), err=True)


@contextmanager
def shown_progress(kind: str, quiet: bool) -> Iterator[Report]:
    """The report to give to whoever works."""
    if quiet or kind == "none" or (kind == "auto" and not sys.stderr.isatty()):
        yield silent
    elif kind == "json":
        yield _print_json
    else:
        with _bar() as report:
            yield report


def _print_json(progress: Progress) -> None:
    facts = asdict(progress)
    facts["bytes_per_s"] = round(progress.bytes_per_s)
    facts["left_s"] = None if progress.left_s is None else round(progress.left_s, 1)
    print(json.dumps(facts), file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[buffer]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(_PHASES[progress.phase], total=progress.total_bytes, buffer="")
            buffer = progress.buffer_bytes
            text = "" if buffer is None else f"side buffer {format_size(buffer)}"
            bars.update(tasks[progress.phase], completed=progress.done_bytes, buffer=text)

        yield report
