"""`snapfs join`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import note, output_options, show
from snapfs.cli.progress import ask
from snapfs.cli.types import PATH, mode_option
from snapfs.errors import ExitCode
from snapfs.options import format_size


@click.command("join", short_help="Put an image together from the files of SNAP/.chunks.")
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("image", metavar="IMAGE", type=PATH)
@click.option("--force", is_flag=True, help="Overwrite IMAGE without asking.")
@mode_option
@output_options
def join_command(directory: Path, image: Path, force: bool, mode: int | None, quiet: bool, as_json: bool) -> int:
    """Write the chunks in DIR, a copy of a directory in SNAP/.chunks, to IMAGE: a new file, or one of the same size,
    or a block device that is large enough.

    Zeros become holes. Nothing is written unless all chunks are there.
    """
    from snapfs.commands.join import join
    from snapfs.destination.consent import Consent

    end_as_interrupted()
    joined = join(directory, image, Consent(force, ask, note, quiet), mode)
    result = {
        "directory": str(directory),
        "image": str(image),
        "chunks": joined.chunks,
        "image_bytes": joined.image_bytes,
        "data_bytes": joined.data_bytes,
    }
    show(
        result,
        f"{image}  {joined.chunks} chunks, {format_size(joined.image_bytes)}",
        as_json=as_json,
        quiet=quiet,
    )
    return ExitCode.DONE
