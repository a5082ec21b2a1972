"""`snapfs snapshot`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapfs.cli.keep import keep_last_option, keep_of, match_option
from snapfs.cli.output import note, output_options, show
from snapfs.cli.types import READABLE_PATH, SECONDS
from snapfs.errors import ExitCode
from snapfs.options import SnapshotOptions, check_name

if TYPE_CHECKING:
    from snapfs.commands.snapshot import Taken, TakenTogether


@click.command("snapshot", short_help="Take a new cut, of one image or of several.")
@click.argument("paths", metavar="LIVE|SNAP|IMAGE...", type=READABLE_PATH, nargs=-1, required=True)
@output_options
@click.option("--no-freeze", is_flag=True, help="Freeze nothing: the snapshot is as after a power failure.")
@click.option("--hooks", type=READABLE_PATH, metavar="DIR", help="Run the executables in DIR around the freeze.")
@click.option(
    "--hook-timeout",
    type=SECONDS,
    default=SnapshotOptions.hook_timeout_s,
    show_default=True,
    metavar="S",
    help="For each hook.",
)
@click.option(
    "--freeze-timeout",
    type=SECONDS,
    default=SnapshotOptions.freeze_timeout_s,
    show_default=True,
    metavar="S",
    help="Thaw after this time, whatever happens.",
)
@click.option("--name", metavar="NAME", help="Keep it under this name; else the next cut replaces it.")
@keep_last_option
@match_option
@click.option("--quiesce", metavar="qga:SOCKET", help="Have the QEMU guest agent freeze the guest's filesystems.")
def snapshot_command(
    paths: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    no_freeze: bool,
    hooks: Path | None,
    hook_timeout: float,
    freeze_timeout: float,
    name: str | None,
    quiesce: str | None,
    keep_last: int | None,
    match: str | None,
) -> int:
    """Have the snapshot view show this instant from now on, while everything stays mounted and in use.

    The filesystems that are mounted from the live view are synced, and frozen for some milliseconds. Files that
    are open on the previous snapshot fail with ESTALE, unless that has a name: then it is in
    SNAP/.snapshots/NAME/ until it is deleted.

    Of several images, such as the disks of one machine, all snapshots are of one instant: everything is frozen, all
    are cut, everything is thawed.

    With --keep-last all that have a name are deleted afterwards but the last N, the new one among them; with --match
    only of those with such names.

    Hooks are called with freeze and thaw; the SNAPFS_ variables of their environment say more.

    Exit code 4: the cut was taken, but not all is as asked for; stderr says what.
    """
    from snapfs.commands.snapshot import snapshot_together

    if name is not None:
        # An empty one is a variable that was not set, and the next cut would replace what was to stay.
        check_name(name)
    keep = keep_of({"keep_last": keep_last})
    options = SnapshotOptions(not no_freeze, hooks, hook_timeout, freeze_timeout, quiesce, name or "", keep, match)
    together = snapshot_together(paths, options)
    problems = together.cuts[-1].problems
    show(_object(together), *_lines(together), as_json=as_json, quiet=quiet)
    for sentence in problems:
        note(sentence)
    return ExitCode.PROBLEM if problems else ExitCode.DONE


def _object(together: TakenTogether) -> dict[str, object]:
    if together.group is None:
        return _facts(together.cuts[0])
    return {"group": together.group, "cuts": [{"image": taken.image, **_facts(taken)} for taken in together.cuts]}


def _facts(taken: Taken) -> dict[str, object]:
    return {
        "id": taken.id,
        "taken_at": taken.taken_at,
        "freeze_ms": None if taken.freeze_ms is None else round(taken.freeze_ms, 3),
        "cut_ms": round(taken.cut_ms, 3),
        "frozen": list(taken.frozen),
        "not_frozen": [
            {"mount_point": one.mount_point, "reason": one.reason, "offset": one.offset} for one in taken.not_frozen
        ],
        "writers": [asdict(writer) for writer in taken.writers],
        "deleted": list(taken.deleted),
    }


def _lines(together: TakenTogether) -> list[str]:
    if together.group is None:
        return _lines_of(together.cuts[0])
    lines = [f"{'group':<12} {together.group}, one instant"]
    for taken in together.cuts:
        lines += ["", f"{'image':<12} {taken.image}", *_lines_of(taken)]
    return lines


def _lines_of(taken: Taken) -> list[str]:
    rows = [("snapshot", f"{taken.id}, taken {taken.taken_at}")]
    rows += [("frozen", mount_point) for mount_point in taken.frozen]
    rows += [("not frozen", f"{one.mount_point}: {one.reason}") for one in taken.not_frozen]
    rows += [("written by", f"{name}, unfrozen") for name in dict.fromkeys(one.name for one in taken.writers)]
    if taken.freeze_ms is not None:
        rows.append(("freeze", f"{taken.freeze_ms:.1f} ms"))
    rows.append(("cut", f"{taken.cut_ms:.2f} ms"))
    rows += [("deleted", name) for name in taken.deleted]
    return [f"{name:<12} {text}" for name, text in rows]
