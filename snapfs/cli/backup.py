"""`snapfs backup`"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli.interrupts import end_as_interrupted
from snapfs.cli.output import note, output_options, show, sizes
from snapfs.cli.progress import ask, progress_options, shown_progress
from snapfs.cli.types import (
    ADDRESS,
    RATE,
    READABLE_PATH,
    CommandWithCompress,
    compress_option,
    mode_option,
    one_of,
    snapshot_option,
)
from snapfs.errors import ExitCode
from snapfs.options import BackupOptions, Format, OnReadError, SnapshotOptions, format_size

if TYPE_CHECKING:
    from snapfs.commands.backup import Made
    from snapfs.commands.backup_chain import Linked
    from snapfs.commands.backup_pool import Pooled
    from snapfs.commands.backup_repository import Kept


@click.command(
    "backup", cls=CommandWithCompress, short_help="Image the used blocks of a snapshot, or of an unmounted image."
)
@click.argument("source", metavar="LIVE|SNAP|IMAGE", type=READABLE_PATH)
@click.argument("dest", metavar="DEST|DIR/|rbd:POOL/IMAGE|restic:REPOSITORY|-", type=ADDRESS)
@click.option(
    "--format", type=one_of(Format), default=None, help="Of DEST; raw by default. In DIR: one that stands alone."
)
@compress_option
@click.option("--manifest", type=READABLE_PATH, metavar="FILE", help="Instead of DEST.json.")
@snapshot_option
@click.option("--cut", is_flag=True, help="Make a new cut first, release all of it afterwards.")
@click.option("--release", is_flag=True, help="The snapshot keeps nothing that is safely in DEST.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted backup of the same cut.")
@click.option("--verify", is_flag=True, help="Read DEST back and compare before it gets its name.")
@click.option("--force", is_flag=True, help="Overwrite DEST without asking, and what an interrupted backup left.")
@click.option("--rate", type=RATE, default=None, metavar="SIZE", help="Read at most so much a second.")
@click.option(
    "--on-read-error",
    type=one_of(OnReadError),
    default=BackupOptions.on_read_error,
    show_default=True,
    help="With skip, unreadable sectors become zeros and are listed in DEST.json and DEST.map; exit code 4.",
)
@click.option(
    "--skip-swap",
    is_flag=True,
    help="Of an image that is not mounted: leave out what swap space, page files and the file of hibernation hold.",
)
@click.option("--update", is_flag=True, help="DEST is a raw backup: write there only what has changed since.")
@click.option("--full", is_flag=True, help="In DIR: a full one, whatever is there.")
@click.option(
    "--max-increments",
    type=click.IntRange(0, 10_000),
    default=BackupOptions.max_increments,
    show_default=True,
    metavar="N",
    help="In DIR: so many after a full one, then a full one again.",
)
@click.option(
    "--on-event",
    type=READABLE_PATH,
    default=None,
    metavar="DIR",
    help="Run the executables in DIR when it is done or has failed.",
)
@mode_option
@progress_options
@output_options
def backup_command(
    dest: str, cut: bool, force: bool, rate: int | None, progress: str, quiet: bool, as_json: bool, **facts: Any
) -> int:
    """Copy the used blocks to DEST, a file, a block device, or - for the standard output (raw).

    DEST.json beside it says what the backup is and has a hash of each part. DEST has its name only when it is
    whole; until then it is DEST.partial.

    With --update, a DEST that such a backup wrote is brought up to date where it is.

    In a directory, DIR/, each backup is called by the time of its cut: first a full one, then increments, each a
    qcow2 that is backed by the one before. With --format each of them stands alone.

    With rbd:POOL/IMAGE each is a snapshot of that image in a Ceph pool; only what has changed is sent.

    Into restic:REPOSITORY (what restic takes as -r; restic: alone for RESTIC_REPOSITORY) restic copies what has
    changed; its password and the like come from RESTIC_PASSWORD and its other variables.
    """
    from snapfs.commands.backup_chain import Linked
    from snapfs.commands.backup_events import backup_told
    from snapfs.commands.backup_pool import Pooled
    from snapfs.commands.backup_repository import Kept
    from snapfs.destination.consent import Consent

    options = BackupOptions(
        dest=Path(dest),
        address=dest,
        in_directory=dest.endswith("/"),
        cut=SnapshotOptions() if cut else None,
        rate_bytes_per_s=rate,
        **facts,
    )
    end_as_interrupted()
    try:
        with shown_progress(progress, quiet) as report:
            made = backup_told(options, report, Consent(force, ask, note, quiet))
    except KeyboardInterrupt:
        note("Interrupted; nothing is left behind.")
        return ExitCode.INTERRUPTED
    if isinstance(made, Linked):
        show(_linked_result(made), *_linked_lines(made), as_json=as_json, quiet=quiet)
        return ExitCode.PROBLEM if made.facts.unread else ExitCode.DONE
    if isinstance(made, Pooled):
        show(_pooled_result(made), *_pooled_lines(made), as_json=as_json, quiet=quiet)
        return ExitCode.PROBLEM if made.unread else ExitCode.DONE
    if isinstance(made, Kept):
        show(_kept_result(made), _kept_line(made), as_json=as_json, quiet=quiet)
        return ExitCode.DONE
    manifest = made.manifest
    if not options.is_stream:
        used = f"{format_size(manifest.data_bytes)} of {format_size(manifest.image_bytes)}"
        result = {"backup": str(made.dest), "cut": manifest.facts["cut"], **sizes(manifest)}
        if options.update:
            result |= _updated_result(made)
        show(result, *_made_lines(made, used), as_json=as_json, quiet=quiet)
    return ExitCode.PROBLEM if manifest.unread else ExitCode.DONE


def _updated_result(made: Made) -> dict[str, Any]:
    if (updated := made.updated) is None:
        return {"kind": "full", "why": "all of it was made", "base": None, "read_bytes": made.manifest.data_bytes}
    return {
        "kind": "update",
        "why": updated.why,
        "base": None,
        "read_bytes": updated.read_bytes,
        "written_bytes": updated.written_bytes,
    }


def _made_lines(made: Made, used: str) -> Iterator[str]:
    updated = made.updated
    if updated is None:
        yield f"{made.dest}  {used}, {made.manifest.format}"
        return
    read, written = format_size(updated.read_bytes), format_size(updated.written_bytes)
    yield f"{made.dest}  {used}, brought up to date, {read} read, {written} written"
    if updated.why:
        yield _all_read(updated.why)


def _all_read(why: str) -> str:
    return f"{why[0].upper()}{why[1:]}, so everything was read and compared."


def _pooled_result(made: Pooled) -> dict[str, Any]:
    return {
        "backup": f"{made.image}@{made.snapshot}",
        "cut": made.cut,
        "format": "rbd",
        "image_bytes": made.image_bytes,
        "data_bytes": made.sent_bytes,
        "unread_bytes": made.unread.total_bytes,
        "why": made.why,
        "base": made.base,
    }


def _pooled_lines(made: Pooled) -> Iterator[str]:
    yield f"{made.image}@{made.snapshot}  {format_size(made.sent_bytes)} of {format_size(made.image_bytes)} sent"
    if made.why and made.base is not None:
        yield f"{made.why[0].upper()}{made.why[1:]}, so everything was sent."


def _kept_result(made: Kept) -> dict[str, Any]:
    summary = made.summary
    return {
        "backup": made.name,
        "cut": made.cut,
        "format": "restic",
        "image_bytes": made.image_bytes,
        "data_bytes": made.used_bytes,
        "unread_bytes": 0,
        "files_new": summary.files_new,
        "files_changed": summary.files_changed,
        "files_unmodified": summary.files_unmodified,
        "added_bytes": summary.added_bytes,
    }


def _kept_line(made: Kept) -> str:
    summary = made.summary
    read = summary.files_new + summary.files_changed
    count = read + summary.files_unmodified
    return f"{made.name}  {format_size(summary.added_bytes)} added, {read} of {count} files read"


def _linked_result(made: Linked) -> dict[str, Any]:
    facts = made.facts
    return {
        "backup": str(made.dest),
        "cut": facts.cut,
        "format": "qcow2",
        "image_bytes": facts.image_bytes,
        "data_bytes": facts.data_bytes,
        "unread_bytes": facts.unread.total_bytes,
        "kind": facts.kind,
        "why": facts.why,
        "base": None if facts.base is None else facts.base.name,
        "read_bytes": facts.read_bytes,
    }


def _linked_lines(made: Linked) -> Iterator[str]:
    facts = made.facts
    held, read = format_size(facts.data_bytes), format_size(facts.read_bytes)
    yield f"{made.dest}  {held} of {format_size(facts.image_bytes)}, {facts.kind}, {read} read"
    if facts.why and facts.kind == "full":
        yield f"It is a full one because {facts.why}."
    elif facts.why:
        yield _all_read(facts.why)
