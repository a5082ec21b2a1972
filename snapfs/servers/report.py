"""What status shows, as data: the keys are stable, programs read them."""

from __future__ import annotations

from typing import Any

from cow import Counter, Cut, CutCounter, CutHeader, LiveEngine, Protect, State
from snapfs.servers.instance import LIVE, SNAPSHOT, Instance
from snapfs.servers.notes import read_facts
from snapfs.stamps import id_text, utc_text

STATUS_VERSION = 1


def status_of(
    instance: Instance, engine: LiveEngine, image_state: str, cut_facts: dict[str, Any], error: str | None
) -> dict[str, Any]:
    """The status object of a running instance; sizes in bytes, counts in blocks, times in UTC.

    `cut_facts` go into its `snapshot` part.
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
        "snapshot": _snapshot(instance) | cut_facts,
        "snapshots": _snapshots(instance),
        "buffer": _buffer(instance, engine),
        "error": error,
    }


def _device(instance: Instance, view: str) -> str | None:
    """The number of the view's filesystem as mountinfo shows it; None when the view is not mounted."""
    view_id = instance.places.view(view)
    return None if view_id is None else view_id.device


def _snapshot(instance: Instance) -> dict[str, Any]:
    store = instance.store
    numbers, header = store.cut.numbers, store.header
    count = store.geometry.block_count
    settled, preserved = numbers[CutCounter.SETTLED_BLOCKS], numbers[CutCounter.PRESERVED_BLOCKS]
    state = numbers.state
    return {
        "name": header.cut.name,
        "id": id_text(header.cut.snapshot_id),
        "state": state.name.lower(),
        "taken_at": utc_text(header.cut.taken_at_ns),
        "freeze_ms": None,
        "protect": "used" if header.protect is Protect.USED else "all",
        "used_blocks": count - numbers[CutCounter.FREE_BLOCKS],
        "owed_blocks": count - settled if state in (State.ACTIVE, State.DAMAGED) else 0,
        "preserved_blocks": preserved,
        "lost_blocks": numbers.lost_blocks,
        "released_blocks": numbers[CutCounter.RELEASED_BLOCKS],
        "changed_blocks": numbers[CutCounter.CHANGED_BLOCKS],
    }


def _snapshots(instance: Instance) -> list[dict[str, Any]]:
    """All that are shown, oldest first."""
    store = instance.store
    facts = {one.generation: one for one in store.header.cuts if not one.is_hidden}
    return [_listed(cut, facts[cut.generation]) for cut in store.cuts if cut.generation in facts]


def _listed(cut: Cut, facts: CutHeader) -> dict[str, Any]:
    noted = read_facts(cut.path)
    group = None if noted is None or noted.group is None else noted.group.id
    numbers = cut.numbers
    return {
        "name": facts.name,
        "id": id_text(facts.snapshot_id),
        "taken_at": utc_text(facts.taken_at_ns),
        "state": numbers.state.name.lower(),
        "freeze_ms": None if noted is None else noted.freeze_ms,
        "changed_blocks": numbers[CutCounter.CHANGED_BLOCKS],
        "stored_bytes": max(0, numbers[CutCounter.STORED_BYTES] - numbers[CutCounter.RETURNED_BYTES]),
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
    }
