"""`snapfs revert`: the live image becomes what a snapshot shows.

    close-live        nobody uses the live view, and from here on nobody can; the target can be read, and stays
    name              a target without one, which the next cut would replace
    prepare-cut, cut  what was since is a snapshot of its own, unless it is discarded; there is nothing to freeze
    cut-facts
    revert            may take long

All of it over one connection: see `servers.reverts`. Of an image that is half-way back to a snapshot already no other
one is taken: what was since was kept when that revert began, or was discarded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapfs.chosen import read_chosen
from snapfs.commands.cut_instance import CutInstance
from snapfs.commands.status import read_status
from snapfs.cut_facts import NOTHING_FROZEN
from snapfs.errors import InterruptedByUserError, SnapfsError, UsageError
from snapfs.protocol import CloseLive, NameSnapshot, NoteFacts, RevertTo, TakeCut, deadline_in
from snapfs.system.discovery import find_store
from snapfs.system.holders import check_unused
from snapfs.system.view_mounts import view_on

_CLOSE_TIMEOUT_S, _CUT_TIMEOUT_S = 60.0, 60.0
# A revert takes as long as it takes; a server that has died is noticed by its socket.
_REVERT_TIMEOUT_S: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Done:
    """The image is what the snapshot `id` shows; `kept` and `kept_id` are of the snapshot of what was since, None
    when there is none."""

    image: str
    name: str
    id: str
    taken_at: str
    written_bytes: int
    kept: str | None
    kept_id: str | None


def revert(path: Path, name: str, confirm: Callable[[str], bool], *, discard: bool = False) -> Done:
    """Of the instance behind `path`, to the snapshot with that name or id. `confirm` is asked before what was since
    is discarded.

    SnapfsError: nothing was changed, or the sentence says what was.
    """
    store = find_store(path)
    status = read_chosen(store, name)
    target, is_half_way = status["snapshot"], status["revert"] is not None
    if discard and not is_half_way:
        _check_consent(status, confirm)
    check_unused(view_on(status["live_device"]), "nothing was changed")
    instance = CutInstance(store)
    if not is_half_way:
        instance.check_live()
    with ExitStack() as stack:
        instance.connect(stack)
        instance.server.ask(CloseLive(id=target["id"], deadline_s=deadline_in(_CLOSE_TIMEOUT_S)))
        # From here on it is what it is.
        status = read_status(store)
        if is_half_way and status["revert"] is None:
            raise SnapfsError(
                f"{instance.image} was half-way back to a snapshot when this began, and by now that has come to its "
                "end; nothing was done: revert again if it is still meant.",
                path=instance.image,
            )
        kept = kept_id = None
        if not discard and not is_half_way:
            if not target["name"]:
                target["name"] = _name(instance, target, status)
            kept = _unused(time.strftime("before-revert-%Y%m%dT%H%M%SZ", time.gmtime()), status)
            kept_id = _keep(instance, kept)
        written_bytes = _revert(instance, target["id"])
    return Done(str(instance.image), target["name"], target["id"], target["taken_at"], written_bytes, kept, kept_id)


def _check_consent(status: dict[str, Any], confirm: Callable[[str], bool]) -> None:
    image = status["image"]
    shown = status["snapshot"]["name"] or status["snapshot"]["id"]
    if not confirm(f"What was written to {image} since {shown} will be gone. Go on?"):
        raise UsageError(
            f"What was written to {image} since {shown} would be gone; say --force, or revert without --discard, "
            "which keeps it as a snapshot."
        )


def _unused(name: str, status: dict[str, Any]) -> str:
    """That one, or with a number: times are of whole seconds."""
    taken = {one["name"] for one in status["snapshots"]}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def _name(instance: CutInstance, target: dict[str, Any], status: dict[str, Any]) -> str:
    """Of its time."""
    name = _unused(f"taken-{target['taken_at'].replace('-', '').replace(':', '')}", status)
    instance.server.ask(NameSnapshot(id=target["id"], name=name, deadline_s=deadline_in(_CUT_TIMEOUT_S)))
    return name


def _keep(instance: CutInstance, name: str) -> str:
    """The id of the new snapshot of what is now."""
    instance.prepare(name)
    message = TakeCut(generation=instance.generation, deadline_s=deadline_in(_CUT_TIMEOUT_S))
    taken = instance.server.ask(message)
    # That the view does not show it in time harms nothing.
    instance.server.ask(
        NoteFacts(generation=instance.generation, facts=NOTHING_FROZEN, deadline_s=deadline_in(_CUT_TIMEOUT_S))
    )
    return taken.id


def _revert(instance: CutInstance, snapshot_id: str) -> int:
    try:
        answer = instance.server.ask(RevertTo(id=snapshot_id), time.monotonic() + _REVERT_TIMEOUT_S)
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            f"The revert of {instance.image} goes on without this command; snapfs status says how far it is.",
            path=instance.image,
        ) from None
    return answer.written_bytes
