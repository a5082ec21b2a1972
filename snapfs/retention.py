"""Which of a series stay: the newest of each of the last hours, days, weeks ... It knows nothing of what they are.

    keep        Keep(last=2, daily=3), all at noon but where it says otherwise

    Mon  Tue  Wed  Thu 9:00  Thu         Thu: last, daily.  Thu 9:00: last.  Wed: daily.  Tue: daily.  Mon goes.

Rules:
- The order of the series, oldest first, says which is newer. A clock that was set back changes what period one
  belongs to, never which is the newest.
- By each rule, on its own, the newest of each of the last N periods that have any stays: a day without one counts for
  nothing. What any rule keeps stays, and counts for every rule. (So does restic; borg has a rule pass over what the
  rules before it keep.)
- A rule that finds fewer than N periods keeps the oldest of all too, as restic and borg do. The first week of a
  series would else lose what is to become its weekly one.
- The newest stays by every rule.
- Periods are those of the time zone that the times are in, weeks those of ISO 8601: from Monday on, the first of a
  year being the one with its first Thursday. The hour that comes twice when summer time ends is two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, TypeVar

from snapfs.errors import UsageError

Item = TypeVar("Item", bound=Hashable)

# By the name of a rule: what is the same for all of one period; of `last` each is one, by its number.
_PERIODS: Final[dict[str, Callable[[int, datetime], Hashable]]] = {
    "last": lambda number, time: number,
    "hourly": lambda number, time: (time.date(), time.hour, time.utcoffset()),
    "daily": lambda number, time: time.date(),
    "weekly": lambda number, time: time.isocalendar()[:2],
    "monthly": lambda number, time: (time.year, time.month),
    "yearly": lambda number, time: time.year,
}
RULES: Final = tuple(_PERIODS)


@dataclass(frozen=True, slots=True)
class Keep:
    """How many periods by each of `RULES`, None for a rule that is not used; UsageError for less than 1, or none."""

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    def __post_init__(self) -> None:
        if not self.counts:
            options = ", ".join(f"--keep-{rule}" for rule in RULES[:-1])
            raise UsageError(f"Nothing says what to keep; give one of {options} and --keep-{RULES[-1]}, or several.")
        for rule, count in self.counts.items():
            if count < 1:
                raise UsageError(f"--keep-{rule} cannot be {count}; give a number from 1 on, or leave it out.")

    @property
    def counts(self) -> dict[str, int]:
        return {rule: count for rule, count in asdict(self).items() if count is not None}


def kept(series: Sequence[tuple[datetime, Item]], keep: Keep) -> dict[Item, tuple[str, ...]]:
    """Those of `series`, oldest first, each with its time, that stay, and why: the names of rules, `oldest` before
    that of one that only keeps it as the oldest of all. Whatever is not among them may go."""
    reasons: dict[Item, list[str]] = {item: [] for _, item in series}
    for rule, count in keep.counts.items():
        newest: dict[Hashable, Item] = {}
        for number, (time, item) in enumerate(reversed(series)):
            newest.setdefault(_PERIODS[rule](number, time), item)
        stay = list(newest.values())[:count]
        for item in stay:
            reasons[item].append(rule)
        if series and len(stay) < count and (oldest := series[0][1]) not in stay:
            reasons[oldest].append(f"oldest {rule}")
    return {item: tuple(why) for item, why in reasons.items() if why}
