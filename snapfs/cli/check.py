"""`snapfs check`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.output import output_options, put_lines, show
from snapfs.cli.types import PATH
from snapfs.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from cow import Report


@click.command("check", short_help="Verify a store, or print what is in it.")
@click.argument("path", metavar="STORE|LIVE|SNAP|IMAGE", type=PATH)
@output_options
@click.option("--dump", is_flag=True, help="Print the whole store readably first.")
def check_command(path: Path, dump: bool, as_json: bool, quiet: bool) -> int:
    """Verify a store, in use or not, and say what is damaged. Exit code 3 when something is; nothing is changed."""
    from snapfs.commands.check import check_store, dump_store

    if dump and (as_json or quiet):
        raise UsageError("A dump is text for people; leave out --json and -q, or --dump.")
    if dump:
        for line in dump_store(path):
            put_lines([line])
    store, report = check_store(path)
    show(_object(store, report), *_lines(store, report), as_json=as_json, quiet=quiet)
    return ExitCode.DONE if report.is_whole else ExitCode.LOST


def _object(store: Path, report: Report) -> dict[str, Any]:
    return {
        "store": str(store),
        "is_whole": report.is_whole,
        "preserved_blocks": report.blocks,
        "damaged_blocks": report.damaged,
        "records": report.records,
        "problems": list(report.problems),
    }


def _lines(store: Path, report: Report) -> list[str]:
    counts = f"{report.blocks} preserved blocks, {report.records} records"
    whole = f"{store} is whole: {counts}."
    damaged = f"{store} is damaged: {report.damaged} of {counts}."
    return [*(f"damaged: {problem}" for problem in report.problems), whole if report.is_whole else damaged]
