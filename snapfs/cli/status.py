"""``snapfs status``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from snapfs.cli.types import PATH
from snapfs.options import format_size

_LOST_STATES = frozenset({"overflowed", "damaged"})


@click.command("status", short_help="What is mounted, and how the snapshot and its side buffer are.")
@click.argument("path", metavar="[LIVE|SNAP|IMAGE]", required=False, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs; the keys are stable.")
def status_command(path: Path | None, as_json: bool) -> int:
    """Show one instance, or all. Exit code 3 when a snapshot is overflowed or damaged."""
    from snapfs.commands.status import statuses

    found = statuses(path)
    if as_json:
        click.echo(json.dumps(found[0] if path is not None else found))
    elif not found:
        click.echo("Nothing is mounted with snapfs.")
    else:
        click.echo("\n\n".join(_text(status) for status in found))
    return 3 if any(status["snapshot"]["state"] in _LOST_STATES for status in found) else 0


def _text(status: dict[str, Any]) -> str:
    snapshot, buffer, size = status["snapshot"], status["buffer"], status["block_bytes"]
    raw, stored, limit = buffer["raw_bytes"], buffer["stored_bytes"], buffer["limit_bytes"]
    share = f" ({100 * stored // raw} % of {format_size(raw)})" if raw else ""
    of_limit = f"of {format_size(limit)}, then {buffer['on_overflow']}" if limit else "no limit"
    rows = [
        ("image", f"{status['image']}  {format_size(status['image_bytes'])}, blocks of {format_size(size)}"),
        ("live", status["live"]),
        ("snapshot", f"{status['snap']}  {snapshot['state']}, taken {snapshot['taken_at']}"),
        ("store", status["store"]),
        ("preserved", f"{format_size(snapshot['preserved_blocks'] * size)}"),
        ("owed", f"{format_size(snapshot['owed_blocks'] * size)}"),
        ("changed", f"{format_size(snapshot['changed_blocks'] * size)}"),
        ("side buffer", f"{format_size(stored)}{share}, {of_limit}"),
    ]
    if status["error"]:
        rows.append(("error", status["error"]))
    return "\n".join(f"{name:<12} {text}" for name, text in rows)
