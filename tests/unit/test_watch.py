"""How fast things go, as `snapfs status --watch` has it from two looks."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from snapfs.cli.watch import snapshots_table
from snapfs.commands.watch import Rates, rates_of


def status(preserved: int, stored: int, limit: int | None = None, snapshot_id: str = "a") -> dict[str, Any]:
    return {
        "block_bytes": 4096,
        "snapshot": {
            "id": snapshot_id,
            "preserved_blocks": preserved,
            "released_blocks": 0,
            "changed_blocks": preserved,
        },
        "buffer": {"stored_bytes": stored, "limit_bytes": limit},
    }


def test_counts_that_grow_are_rates_in_bytes() -> None:
    rates = rates_of(status(10, 1000), status(30, 5000), 2.0)
    assert rates == Rates(preserved=40960, released=0, changed=40960, stored=2000)


def test_another_snapshot_counts_anew() -> None:
    rates = rates_of(status(10, 1000), status(2, 5000, snapshot_id="b"), 2.0)
    assert rates == Rates(stored=2000)


def test_the_limit_is_reached_when_that_goes_on() -> None:
    assert rates_of(status(0, 1000, 9000), status(0, 5000, 9000), 2.0).full_in_s == 2.0
    assert rates_of(status(0, 5000, 9000), status(0, 1000, 9000), 2.0).full_in_s is None


def test_what_a_server_says_of_its_snapshots_steers_no_terminal() -> None:
    said = "\x1b]0;a\x07[/b]"
    one = {"name": said, "taken_at": said, "state": said, "changed_blocks": 0, "stored_bytes": 0}
    console = Console(file=StringIO(), force_terminal=True, width=200)
    with console.capture() as drawn:
        console.print(snapshots_table({"block_bytes": 4096, "snapshots": [one]}))
    assert drawn.get().count(r"\x1b]0;a\x07[/b]") == 3
