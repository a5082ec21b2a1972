"""The status of an instance as people read it."""

from __future__ import annotations

from typing import Any

from snapfs.chosen import file_of, is_newest
from snapfs.options import format_size
from snapfs.system.image_state import describe_image_state

# What every partitioned disk has, and nobody asks about.
_PLAIN_REGIONS = frozenset({"gap", "dos", "gpt", "extended"})


def all_lines(found: list[dict[str, Any]]) -> list[str]:
    """One instance after the other, an empty line between them."""
    return [line for status in found for line in ("", *_lines(status))][1:]


def _lines(status: dict[str, Any]) -> list[str]:
    return [f"{name:<12} {text}" for name, text in rows(status)]


def rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Of one instance: what it is about, and what is so; a name that is empty goes on with the one before."""
    snapshot, size = status["snapshot"], status["block_bytes"]
    found = [
        ("image", f"{status['image']}  {format_size(status['image_bytes'])}, blocks of {format_size(size)}"),
        *([("", trouble)] if (trouble := describe_image_state(status["image_state"], status["image"])) else []),
        ("live", status["live"]),
        ("snapshot", _snapshot_text(status)),
        ("store", status["store"]),
        ("used", _used_text(snapshot, size)),
        *(("", _region_text(region)) for region in snapshot["regions"] if region["kind"] not in _PLAIN_REGIONS),
        ("owed", format_size(snapshot["owed_blocks"] * size)),
        ("preserved", format_size(snapshot["preserved_blocks"] * size)),
        *(
            [("lost", f"{format_size(snapshot['lost_blocks'] * size)}, reads as errors")]
            if snapshot["lost_blocks"]
            else []
        ),
        ("released", format_size(snapshot["released_blocks"] * size)),
        ("changed", format_size(snapshot["changed_blocks"] * size)),
        ("side buffer", _buffer_text(status["buffer"])),
        *(("checkpoint", _checkpoint_text(one)) for one in status.get("checkpoints", ())),
    ]
    revert = status.get("revert")
    if revert and revert["is_running"]:
        share = 100 * revert["done_blocks"] // revert["blocks"] if revert["blocks"] else 0
        found.append(("revert", f"to {revert['name'] or revert['id']}, {share} % done"))
    if status.get("no_holes"):
        found.append(("holes", f"not shown: {status['no_holes']}"))
    if status["error"]:
        found.append(("error", status["error"]))
    return found


def _snapshot_text(status: dict[str, Any]) -> str:
    snapshot = status["snapshot"]
    if snapshot["id"] is None:
        return f"{status['snap']}  none; take one with snapfs snapshot"
    frozen = "" if snapshot["freeze_ms"] is None else f", frozen for {snapshot['freeze_ms']:.0f} ms"
    shown_in = status["snap"] if is_newest(status) else file_of(status).path.parent
    return f"{shown_in}  {snapshot['state']}, taken {snapshot['taken_at']}{frozen}"


def _checkpoint_text(checkpoint: dict[str, Any]) -> str:
    """What a backup has left behind, so that the next one has less to read."""
    void = checkpoint["void"]
    written = f"void ({void})" if void else f"{format_size(checkpoint['changed_bytes'])} written since"
    return f"{checkpoint['id']}, taken {checkpoint['taken_at']}, {written}"


def _used_text(snapshot: dict[str, Any], block_bytes: int) -> str:
    if snapshot["protect"] == "all":
        return "every block is protected"
    if snapshot["map"] == "computing":
        return "every block, until the map is known"
    if snapshot["map"] == "failed":
        return "every block, because the map failed; the log of the store says why"
    return format_size(snapshot["used_blocks"] * block_bytes)


def _region_text(region: dict[str, Any]) -> str:
    """One filesystem: how much of it is used, or why all of it counts as used."""
    name = f"{region['kind']} at {format_size(region['offset'])}"
    if region["state"] == "trusted":
        used_bytes = region["length"] - region["free_bytes"]
        return f"{name}: {format_size(used_bytes)} of {format_size(region['length'])}"
    return f"{name}: all {format_size(region['length'])} ({region['reason'] or 'it is not looked into'})"


def _buffer_text(buffer: dict[str, Any]) -> str:
    raw, stored, limit = buffer["raw_bytes"], buffer["stored_bytes"], buffer["limit_bytes"]
    share = f" ({100 * stored // raw} % of {format_size(raw)})" if raw else ""
    of_limit = f"of {format_size(limit)}, then {buffer['on_overflow']}" if limit else "no limit"
    return f"{format_size(stored)}{share}, {of_limit}"
