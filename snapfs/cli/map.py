"""`snapfs map`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from snapfs.cli.output import note, output_options, writing
from snapfs.cli.progress import ask
from snapfs.cli.types import READABLE_PATH, SIZE, mode_option, snapshot_option


@click.command("map", short_help="Partitions, filesystems, used and free blocks of an image.")
@click.argument("path", metavar="IMAGE|LIVE|SNAP", type=READABLE_PATH)
@output_options
@snapshot_option
@click.option("--domain", type=READABLE_PATH, metavar="FILE", help="Write a ddrescue domain map.")
@click.option("--png", type=READABLE_PATH, metavar="FILE", help="Draw the image as a PNG.")
@click.option("--svg", type=READABLE_PATH, metavar="FILE", help="Draw the image as an SVG.")
@click.option("--block-size", type=SIZE, default=None, help="Of an image that is not mounted; 4K by default.")
@click.option(
    "--skip-swap", is_flag=True, help="Of an image that is not mounted: count swap space and swap files as free."
)
@click.option("--force", is_flag=True, help="Overwrite the files without asking.")
@mode_option
def map_command(
    path: Path,
    as_json: bool,
    snapshot: str | None,
    domain: Path | None,
    png: Path | None,
    svg: Path | None,
    block_size: int | None,
    skip_swap: bool,
    quiet: bool,
    force: bool,
    mode: int | None,
) -> None:
    """Show what IMAGE consists of and which blocks are used; without options as a picture in the terminal."""
    from rich.console import Console

    from snapfs.commands.map import image_name, map_json, new_results, read_map
    from snapfs.destination.consent import Consent
    from snapfs.usedmap.domain import write_domain
    from snapfs.usedmap.draw import draw_png, draw_svg
    from snapfs.usedmap.terminal import terminal_map

    wanted = {"--domain": domain, "--png": png, "--svg": svg}
    with new_results(path, wanted, Consent(force, ask, note, quiet), mode) as files:
        layers = read_map(path, block_size, snapshot, skip_swap=skip_swap)
        if "--domain" in files:
            with files["--domain"].open("w") as file:
                write_domain(file, layers.image_map)
        if "--png" in files:
            draw_png(files["--png"], layers, image_name(path))
        if "--svg" in files:
            draw_svg(files["--svg"], layers, image_name(path))
    if as_json:
        with writing():
            sys.stdout.writelines(map_json(layers))
    elif domain is png is svg is None and not quiet:
        console = Console()
        with writing():
            console.print(terminal_map(layers, min(console.width, 120), 24, colour=console.is_terminal))
