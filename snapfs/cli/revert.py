"""`snapfs revert`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import output_options, show
from snapfs.cli.progress import ask
from snapfs.cli.types import READABLE_PATH
from snapfs.options import format_size


@click.command("revert", short_help="Bring the live image back to a snapshot.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.argument("name", metavar="NAME")
@click.option("--discard", is_flag=True, help="Keep no snapshot of what was written since.")
@click.option("--force", is_flag=True, help="With --discard: do not ask.")
@output_options
def revert_command(path: Path, name: str, discard: bool, force: bool, as_json: bool, quiet: bool) -> None:
    """Make the live image what the snapshot with this name, or id, shows. Nobody may use the live view meanwhile: it
    is refused while anything has it open or mounted, and nothing can open it before the revert is done.

    What was since is kept as a snapshot, before-revert-TIME, to which one can revert again. Other snapshots stay what
    they are; one without a name that is reverted to is called taken-TIME from then on, or the new one would take its
    place.

    What was begun is brought to its end also when this command is interrupted. When the machine or snapfs itself ends
    before that, or the side buffer has no room, snapfs status says so and LIVE stays closed until the same command,
    or a revert to another snapshot, has come to its end.
    """
    from snapfs.commands.revert import revert

    end_as_interrupted()
    done = revert(path, name, lambda question: force or ask(question), discard=discard)
    lines = [f"{done.image}  reverted to {done.name or done.id}, {format_size(done.written_bytes)} written"]
    if done.kept is not None:
        lines.append(f"what was since is {done.kept}")
    show(asdict(done), *lines, as_json=as_json, quiet=quiet)
