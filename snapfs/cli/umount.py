"""`snapfs umount`"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.types import PATH


@click.command("umount", short_help="End both views.")
@click.argument("path", metavar="LIVE|SNAP|IMAGE", type=PATH)
@click.option(
    "--force",
    is_flag=True,
    help="Also when the live view is all that is left of a deleted image, or a revert is not done.",
)
def umount_command(path: Path, force: bool) -> None:
    """Unmount both views, whichever is named, and end the snapshot. When somebody uses one, nothing changes.

    Exit code 4: they are unmounted, but the image was changed, or its store removed, meanwhile, or not all could be
    written; stderr says what.
    """
    from snapfs.commands.umount import umount

    umount(path, force=force)
