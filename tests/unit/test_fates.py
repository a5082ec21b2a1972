"""What becomes of the snapshots of a status when they are thinned out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from snapfs.commands.snapshots import fates_by
from snapfs.retention import Keep


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's time zone; spelt out, as not every machine knows it by its name."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


def snapshots(**taken_at: str) -> list[dict[str, Any]]:
    """One of each name, `_` standing for none, and when it was taken."""
    return [{"name": name.strip("_"), "id": f"id of {name}", "taken_at": text} for name, text in taken_at.items()]


def reasons(found: list[dict[str, Any]], keep: Keep, pattern: str = "*") -> list[tuple[str, ...]]:
    fates = fates_by(found, keep, pattern)
    assert [fate.id for fate in fates] == [one["id"] for one in found]
    return [fate.reasons for fate in fates]


def test_days_begin_at_midnight_of_the_local_time_zone(berlin: None) -> None:
    found = snapshots(a="2026-01-31T22:59:59Z", b="2026-01-31T23:00:00Z", c="2026-02-01T22:59:59Z")
    assert reasons(found, Keep(daily=2)) == [("daily",), (), ("daily",)]


def test_the_hour_that_comes_twice_is_two(berlin: None) -> None:
    found = snapshots(a="2026-10-25T00:30:00Z", b="2026-10-25T00:50:00Z", c="2026-10-25T01:30:00Z")
    assert reasons(found, Keep(hourly=2)) == [(), ("hourly",), ("hourly",)]


def test_one_without_a_name_stays_and_does_not_count() -> None:
    noon = "2026-01-31T12:00:00Z"
    found = snapshots(a=noon, _=noon, b=noon, __=noon)
    assert reasons(found, Keep(last=1)) == [(), ("no name",), ("last",), ("no name",)]


@pytest.mark.parametrize("pattern", ["hourly-*", "hourly-[0-9]", "h*-?"])
def test_one_that_does_not_match_stays_and_does_not_count(pattern: str) -> None:
    noon = "2026-01-31T12:00:00Z"
    found = snapshots(**{"hourly-1": noon, "upgrade": noon, "hourly-2": noon, "Hourly-3": noon})
    assert reasons(found, Keep(last=1), pattern) == [(), ("no match",), ("last",), ("no match",)]


def test_none_that_matches_is_nothing_to_do() -> None:
    assert reasons(snapshots(a="2026-01-31T12:00:00Z"), Keep(daily=1), "hourly-*") == [("no match",)]
