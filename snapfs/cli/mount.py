"""`snapfs mount`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cow import Outcome
from snapfs.cli.output import note, output_options, show
from snapfs.cli.types import PATH, SIZE, one_of
from snapfs.options import (
    DEFAULT_BLOCK_BYTES,
    DEFAULT_CHUNK_BYTES,
    Cache,
    Durability,
    LogLevel,
    MountOptions,
    OnOverflow,
    Protect,
    split_fuse_options,
)

if TYPE_CHECKING:
    from snapfs.commands.mount import Mounted


@click.command("mount", short_help="Show IMAGE live at LIVE and frozen at SNAP.")
@click.argument("image", type=PATH)
@click.argument("live", type=PATH)
@click.argument("snap", type=PATH)
@click.option("--store", type=PATH, help="Keep the store in DIR, and at the end too.", metavar="DIR")
@click.option(
    "--block-size",
    type=SIZE,
    default=f"{DEFAULT_BLOCK_BYTES >> 10}K",
    show_default=True,
    help="What is preserved at a time.",
)
@click.option(
    "--protect",
    type=one_of(Protect),
    default=MountOptions.protect,
    show_default=True,
    help="Blocks to protect.",
)
@click.option(
    "--no-snapshot",
    "takes_snapshot",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Begin without one: nothing is preserved before the first snapfs snapshot.",
)
@click.option(
    "--skip-swap",
    is_flag=True,
    help="With --protect used: count swap space and swap files as free, but for the header.",
)
@click.option("--buffer-limit", type=SIZE, default=None, help="The most the side buffer may take on disk.")
@click.option(
    "--on-overflow",
    type=one_of(OnOverflow),
    default=MountOptions.on_overflow,
    show_default=True,
    help="Who gives way when the side buffer is full.",
)
@click.option(
    "--durability",
    type=one_of(Durability),
    default=MountOptions.durability,
    show_default=True,
    help="What the snapshot survives.",
)
@click.option(
    "--cache",
    type=one_of(Cache),
    default=MountOptions.cache,
    show_default=True,
    help="Whether the kernel may hold live writes back until they are synced.",
)
@click.option("--single-pass", is_flag=True, help="Release what has been read of the snapshot from its start on.")
@click.option(
    "--chunk-size",
    "chunk_bytes",
    type=SIZE,
    default=f"{DEFAULT_CHUNK_BYTES >> 20}M",
    show_default=True,
    help="Of the files in SNAP/.chunks.",
)
@click.option(
    "--on-event",
    type=PATH,
    default=None,
    metavar="DIR",
    help="Run the executables in DIR when the side buffer fills or the snapshot is lost or damaged.",
)
@click.option(
    "--log-level",
    type=one_of(LogLevel),
    default=MountOptions.log_level,
    show_default=True,
    help="How much is said in the log.",
)
@click.option("-o", "fuse_options", multiple=True, metavar="OPT,...", help="FUSE mount options, e.g. allow_other.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in front; log to stderr.")
@output_options
def mount_command(
    block_size: int,
    buffer_limit: int | None,
    fuse_options: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **facts: Any,
) -> int:
    """Show the raw disk IMAGE twice: live and writable in the directory LIVE, frozen at this instant in SNAP.

    Returns when both views can be used, and leaves a daemon. End it with snapfs umount.
    """
    options = MountOptions(
        block_bytes=block_size,
        buffer_limit_bytes=buffer_limit,
        fuse_options=split_fuse_options(fuse_options),
        **facts,
    )
    # Only mounting needs FUSE, so the other commands do not wait for it.
    from snapfs.commands.mount import mount

    def announce(mounted: Mounted) -> None:
        for sentence in mounted.notes:
            note(sentence)
        show(_object(mounted), *_lines(mounted), as_json=as_json, quiet=quiet)

    return mount(options, announce)


def _object(mounted: Mounted) -> dict[str, Any]:
    return {
        "live_file": str(mounted.live_file),
        "snap_file": str(mounted.snap_file),
        "store": str(mounted.store),
        "outcome": mounted.outcome.value,
        "snapshot": {"taken_at": mounted.taken_at, "state": mounted.state},
        "notes": list(mounted.notes),
    }


def _lines(mounted: Mounted) -> list[str]:
    state = "" if mounted.state == "active" else f", {mounted.state}"
    taken = "none yet" if mounted.taken_at is None else f"taken {mounted.taken_at}{state}"
    rows = [
        f"live      {mounted.live_file}",
        f"snapshot  {mounted.snap_file}  ({taken})",
        f"store     {mounted.store}",
    ]
    if mounted.outcome is Outcome.CARRIED_ON and mounted.taken_at is not None:
        rows.insert(0, "Carrying on with the same snapshot.")
    return rows
