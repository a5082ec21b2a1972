"""What status shows, as data: the keys are stable, programs read them."""

from __future__ import annotations

from typing import Any

from cow import Counter, CutCounter, LiveEngine, Protect, State, Store, stored_in
from snapfs.fuse import session
from snapfs.fuse.view import IMAGE_INODE
from snapfs.servers.checkpoints import told_of
from snapfs.servers.instance import LIVE, SNAPSHOT, Instance
from snapfs.servers.notes import read_facts
from snapfs.servers.shown_cuts import ShownCut, shown_cuts
from snapfs.stamps import utc_text

STATUS_VERSION = 1
_OWING_STATES = (State.ACTIVE, State.DAMAGED)


def status_of(
    instance: Instance,
    engine: LiveEngine,
    image_state: str,
    snapshot: dict[str, Any],
    revert: dict[str, Any] | None,
    error: str | None,
) -> dict[str, Any]:
    """The status object of a running instance; sizes in bytes, counts in blocks, times in UTC.

    `snapshot` is the newest, as of `snapshot_of`; `revert` as of `Reverts.status`.
    """
    header = instance.store.header
    return {
        "version": STATUS_VERSION,
        "image": str(instance.present_image_path),
        "image_state": image_state,
        "view_name": instance.view_name,
        "image_bytes": header.image_bytes,
        "block_bytes": header.block_bytes,
        "live": str(instance.point(LIVE)),
        "snap": str(instance.point(SNAPSHOT)),
        "live_device": _device(instance, LIVE),
        "snap_device": _device(instance, SNAPSHOT),
        "store": str(instance.store_path),
        "pid": instance.supervisor_pid,
        "snapshot": snapshot,
        "snapshots": [listed(shown) for shown in shown_cuts(instance.store)],
        "checkpoints": told_of(instance.store),
        "buffer": _buffer(instance, engine),
        "revert": revert,
        "no_holes": session.why_no_holes(),
        "error": error,
    }


def _device(instance: Instance, view: str) -> str | None:
    """The number of the view's filesystem as mountinfo shows it; None when the view is not mounted."""
    view_id = instance.places.view(view)
    return None if view_id is None else view_id.device


def snapshot_of(store: Store, shown: ShownCut, known: dict[str, Any]) -> dict[str, Any]:
    """All that is told of a snapshot: what is told of each in the list, its counts, and what is `known` of its map
    and what was frozen for it (`Maps.report`)."""
    numbers, count = shown.cut.numbers, store.geometry.block_count
    state = numbers.state
    return (
        listed(shown)
        | {
            "inode": IMAGE_INODE + shown.facts.generation,
            "protect": _protect(store),
            "used_blocks": count - numbers[CutCounter.FREE_BLOCKS],
            "owed_blocks": count - numbers[CutCounter.SETTLED_BLOCKS] if state in _OWING_STATES else 0,
            "preserved_blocks": numbers[CutCounter.PRESERVED_BLOCKS],
            "lost_blocks": numbers.lost_blocks,
            "released_blocks": numbers[CutCounter.RELEASED_BLOCKS],
        }
        | known
    )


def no_snapshot(store: Store) -> dict[str, Any]:
    """The same when there is none."""
    return {
        "name": "",
        "id": None,
        "taken_at": None,
        "state": State.NONE.name.lower(),
        "freeze_ms": None,
        "changed_blocks": 0,
        "stored_bytes": 0,
        "group": None,
        "inode": None,
        "protect": _protect(store),
        "used_blocks": store.geometry.block_count,
        "owed_blocks": 0,
        "preserved_blocks": 0,
        "lost_blocks": 0,
        "released_blocks": 0,
        "map": "none",
        "regions": [],
    }


def _protect(store: Store) -> str:
    return "used" if store.header.protect is Protect.USED else "all"


def listed(shown: ShownCut) -> dict[str, Any]:
    """What is told of each where all are listed."""
    facts, numbers = shown.facts, shown.cut.numbers
    noted = read_facts(shown.cut.path)
    group = None if noted is None or noted.group is None else noted.group.id
    return {
        "name": facts.name,
        "id": shown.id,
        "taken_at": utc_text(facts.taken_at_ns),
        "state": numbers.state.name.lower(),
        "freeze_ms": None if noted is None else noted.freeze_ms,
        "changed_blocks": numbers[CutCounter.CHANGED_BLOCKS],
        "stored_bytes": stored_in(shown.cut),
        "group": group,
    }


def _buffer(instance: Instance, engine: LiveEngine) -> dict[str, Any]:
    store = instance.store
    size = engine.size.shown()
    return {
        "raw_bytes": size.raw_bytes,
        "stored_bytes": size.stored_bytes,
        "staged_bytes": size.staged_bytes,
        "limit_bytes": store.control[Counter.LIMIT_BYTES] or None,
        "on_overflow": instance.options.on_overflow,
        "writes_wait": bool(store.control[Counter.PRESSED]),
    }
