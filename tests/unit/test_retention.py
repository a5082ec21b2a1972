"""What stays of a series, by rules and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from snapfs.errors import UsageError
from snapfs.retention import RULES, Keep, kept

_SUMMER, _WINTER = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))

# What is kept of which times, both by their numbers from the oldest on, 0; times are of winter, or have a zone.
TABLE: list[tuple[str, Keep, list[str], dict[int, str]]] = [
    ("nothing at all", Keep(last=3, yearly=1), [], {}),
    ("a single one", Keep(daily=1), ["2026-01-31 12:00"], {0: "daily"}),
    ("the last", Keep(last=2), ["2026-01-01 12:00", "2026-01-02 12:00", "2026-01-02 12:01"], {1: "last", 2: "last"}),
    ("at the same time", Keep(last=1, hourly=1), ["2026-01-01 12:00", "2026-01-01 12:00"], {1: "last hourly"}),
    ("more than there are", Keep(last=9), ["2026-01-01 12:00", "2026-01-02 12:00"], {0: "last", 1: "last"}),
    (
        "the newest of each hour, until the hour is over",
        Keep(hourly=2),
        ["2026-01-01 09:59", "2026-01-01 10:00", "2026-01-01 10:59", "2026-01-01 11:00"],
        {2: "hourly", 3: "hourly"},
    ),
    (
        "the same hour of another day is another",
        Keep(hourly=2),
        ["2026-01-01 10:00", "2026-01-02 10:00", "2026-01-03 10:00"],
        {1: "hourly", 2: "hourly"},
    ),
    (
        "several a day",
        Keep(daily=2),
        ["2026-01-01 23:59", "2026-01-02 00:00", "2026-01-02 12:00", "2026-01-02 23:59", "2026-01-03 00:00"],
        {3: "daily", 4: "daily"},
    ),
    (
        "days without any count for nothing",
        Keep(daily=2),
        ["2025-03-01 12:00", "2025-08-01 12:00", "2026-01-31 12:00"],
        {1: "daily", 2: "daily"},
    ),
    (
        "weeks end on Sunday",
        Keep(weekly=2),
        ["2026-01-10 12:00", "2026-01-11 23:59", "2026-01-12 00:00", "2026-01-18 23:59"],
        {1: "weekly", 3: "weekly"},
    ),
    (
        "week 53 goes on in January",
        Keep(weekly=2),
        ["2020-12-27 12:00", "2020-12-28 12:00", "2020-12-31 12:00", "2021-01-03 12:00", "2021-01-04 12:00"],
        {3: "weekly", 4: "weekly"},
    ),
    (
        "week 1 may begin in December",
        Keep(weekly=2),
        ["2024-12-29 12:00", "2024-12-30 12:00", "2025-01-05 12:00", "2025-01-06 12:00"],
        {2: "weekly", 3: "weekly"},
    ),
    (
        "week 1 of another year is another",
        Keep(weekly=2),
        ["2024-01-03 12:00", "2025-01-02 12:00", "2026-01-01 12:00"],
        {1: "weekly", 2: "weekly"},
    ),
    (
        "the end of a year",
        Keep(daily=1, monthly=2, yearly=2),
        ["2024-12-31 23:59", "2025-12-01 12:00", "2025-12-31 23:59", "2026-01-01 00:00"],
        {2: "monthly yearly", 3: "daily monthly yearly"},
    ),
    (
        "the same month of another year is another",
        Keep(monthly=2),
        ["2024-01-31 12:00", "2025-01-31 12:00", "2026-01-31 12:00"],
        {1: "monthly", 2: "monthly"},
    ),
    (
        "the hour that comes twice is two",
        Keep(hourly=3),
        ["2026-10-25 01:30+02:00", "2026-10-25 02:10+02:00", "2026-10-25 02:50+02:00", "2026-10-25 02:10+01:00"],
        {0: "hourly", 2: "hourly", 3: "hourly"},
    ),
    (
        "the hour that is left out is none",
        Keep(hourly=2),
        ["2026-03-29 00:30+01:00", "2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"],
        {1: "hourly", 2: "hourly"},
    ),
    (
        "a day of 25 hours is one",
        Keep(daily=2),
        ["2026-10-24 23:59+02:00", "2026-10-25 00:00+02:00", "2026-10-25 23:59+01:00"],
        {0: "daily", 2: "daily"},
    ),
    (
        "a day of 23 hours is one",
        Keep(daily=2),
        ["2026-03-28 23:59+01:00", "2026-03-29 00:00+01:00", "2026-03-29 23:59+02:00"],
        {0: "daily", 2: "daily"},
    ),
    (
        "what stays by one rule counts for the next",
        Keep(last=1, daily=2, weekly=1),
        ["2026-01-12 12:00", "2026-01-13 12:00", "2026-01-14 12:00"],
        {1: "daily", 2: "last daily weekly"},
    ),
    (
        "too few periods: the oldest too",
        Keep(daily=3),
        ["2026-01-01 09:00", "2026-01-01 10:00", "2026-01-01 11:00", "2026-01-02 12:00"],
        {0: "oldest daily", 2: "daily", 3: "daily"},
    ),
    (
        "just enough periods: not the oldest",
        Keep(daily=2),
        ["2026-01-01 09:00", "2026-01-01 10:00", "2026-01-02 12:00"],
        {1: "daily", 2: "daily"},
    ),
    (
        "the oldest by one rule, the newest of its day by another",
        Keep(daily=2, yearly=2),
        ["2026-01-01 12:00", "2026-01-02 12:00"],
        {0: "daily,oldest yearly", 1: "daily yearly"},
    ),
    (
        "after the clock was set back",
        Keep(last=1, daily=2),
        ["2026-01-30 12:00", "2036-01-01 12:00", "2026-01-31 12:00"],
        {1: "daily", 2: "last daily"},
    ),
    (
        "the clock was set back into a day before",
        Keep(daily=1),
        ["2026-01-30 12:00", "2026-01-31 12:00", "2026-01-30 10:00"],
        {2: "daily"},
    ),
]


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=_WINTER)


def _words(text: str) -> tuple[str, ...]:
    """Of the names of rules; with a comma where one has two words."""
    return tuple(text.split(",")) if "," in text or text.startswith("oldest") else tuple(text.split())


@pytest.mark.parametrize(("keep", "times", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_stays_and_why(keep: Keep, times: list[str], expected: dict[int, str]) -> None:
    series = [(_time(text), number) for number, text in enumerate(times)]
    assert kept(series, keep) == {number: _words(text) for number, text in expected.items()}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_the_newest(rule: str) -> None:
    series = [(datetime(2026, 1, 1, tzinfo=_SUMMER) + number * timedelta(minutes=7), number) for number in range(500)]
    assert 499 in kept(series, Keep(**{rule: 1}))


def test_what_stayed_stays_with_the_same_rules_again() -> None:
    series = [(datetime(2026, 1, 1, tzinfo=_WINTER) + number * timedelta(hours=5), number) for number in range(2000)]
    keep = Keep(last=3, hourly=5, daily=7, weekly=4, monthly=6, yearly=2)
    first = kept(series, keep)
    assert kept([one for one in series if one[1] in first], keep) == first


def test_weekly_ones_are_there_in_time_when_every_day_is_thinned_out() -> None:
    keep, series = Keep(daily=7, weekly=4), []
    for number in range(60):
        series.append((datetime(2026, 1, 1, tzinfo=_WINTER) + number * timedelta(days=1), number))
        stay = kept(series, keep)
        series = [one for one in series if one[1] in stay]
    weeks = {time.isocalendar()[:2] for time, _ in series}
    assert (len(series), len(weeks)) == (10, 4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [0, -1])
def test_to_keep_none_is_refused(rule: str, count: int) -> None:
    with pytest.raises(UsageError, match=rf"^--keep-{rule} cannot be {count}; [^\n]+\.$"):
        Keep(**{rule: count})


def test_no_rule_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^Nothing says what to keep; give one of --keep-last, [^\n]+\.$"):
        Keep()
