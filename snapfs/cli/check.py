"""``snapfs check``"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.types import PATH

_DAMAGED = 3


@click.command("check", short_help="Verify a store, or print what is in it.")
@click.argument("path", metavar="STORE|LIVE|SNAP|IMAGE", type=PATH)
@click.option("--dump", is_flag=True, help="Print the whole store readably first.")
def check_command(path: Path, dump: bool) -> int:
    """Verify a store, in use or not, and say what is damaged. Exit code 3 when something is; nothing is changed."""
    from snapfs.commands.check import check_store, dump_store

    if dump:
        for line in dump_store(path):
            click.echo(line)
    store, report = check_store(path)
    for problem in report.problems:
        click.echo(f"damaged: {problem}")
    counts = f"{report.blocks} preserved blocks, {report.records} records"
    if report.is_whole:
        click.echo(f"{store} is whole: {counts}.")
        return 0
    click.echo(f"{store} is damaged: {report.damaged} of {counts}.")
    return _DAMAGED
