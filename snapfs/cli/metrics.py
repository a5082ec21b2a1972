"""`snapfs metrics`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.output import note, put
from snapfs.cli.types import PATH
from snapfs.errors import ExitCode


@click.command("metrics", short_help="What Prometheus reads of instances and backups.")
@click.argument("directories", metavar="[BACKUPS]...", nargs=-1, type=PATH)
@click.option("--output", type=PATH, default=None, metavar="FILE.prom", help="Write there, in one step.")
def metrics_command(directories: tuple[Path, ...], output: Path | None) -> int:
    """Say in the text format of Prometheus how all instances are, and the backups in the directories BACKUPS.

    With --output for the node exporter: FILE.prom is one of its textfile directory, and is replaced. Exit code 4 when
    an instance does not answer, or a directory cannot be read.
    """
    from snapfs.commands.metrics import metrics, output_place, write_metrics

    place = None if output is None else output_place(output)
    made = metrics(directories)
    if place is None:
        put(made.text.decode().rstrip("\n"))
    else:
        write_metrics(place, made.text)
    for sentence in made.problems:
        note(sentence)
    return ExitCode.PROBLEM if made.problems else ExitCode.DONE
