"""`snapfs status --watch`: look again and again, and say what has become of it since the look before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from snapfs.commands.status import statuses
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.stamps import utc_now

# What of a snapshot only grows, in blocks.
_GROWING: Final = ("preserved", "released", "changed")


@dataclass(frozen=True)
class Rates:
    """In bytes a second since the look before; `stored` of the side buffer may be below 0. `full_in_s`: when its
    limit is reached if that goes on; None: it does not grow, or has no limit."""

    preserved: float | None = None
    released: float | None = None
    changed: float | None = None
    stored: float | None = None
    full_in_s: float | None = None


@dataclass(frozen=True)
class Look:
    """What was there at a time; `silent` are the reasons of those that did not answer."""

    at: str
    found: list[dict[str, Any]]
    silent: list[SnapfsError]
    rates: list[Rates] = field(default_factory=list)


def looks(
    path: Path | None, snapshot: str | None, every_s: float, use: Callable[[dict[str, Any], Rates], object]
) -> Iterator[Look]:
    """For ever; of one instance until it ends; `use` as of `statuses`. SnapfsError: it cannot even be looked at
    once."""

    def use_one(status: dict[str, Any]) -> None:
        hash(_key(status))
        use(status, rates_of(status, status, every_s))

    before: dict[tuple[str, int], tuple[float, dict[str, Any]]] = {}
    is_first = True
    while True:
        try:
            found, silent = statuses(path, snapshot, use_one)
        except NotMountedError:
            if is_first:
                raise
            return
        except SnapfsError as error:
            if is_first:
                raise
            # It may answer again, or another one have the name.
            found, silent = [], [error]
        now_s = time.monotonic()
        rates = [_rates(before.get(_key(one)), now_s, one) for one in found]
        yield Look(utc_now(), found, silent, rates)
        is_first, before = False, {_key(one): (now_s, one) for one in found}
        time.sleep(max(0.0, now_s + every_s - time.monotonic()))


def _key(status: dict[str, Any]) -> tuple[str, int]:
    return status["store"], status["pid"]


def _rates(before: tuple[float, dict[str, Any]] | None, now_s: float, status: dict[str, Any]) -> Rates:
    if before is None or now_s <= before[0]:
        return Rates()
    return rates_of(before[1], status, now_s - before[0])


def rates_of(before: dict[str, Any], status: dict[str, Any], seconds: float) -> Rates:
    """Of one instance, between two looks that lie so far apart."""
    was, now = before["snapshot"], status["snapshot"]
    # Another snapshot has begun to count anew.
    growing = _GROWING if was["id"] == now["id"] else ()
    size = status["block_bytes"]
    rates = {name: (now[f"{name}_blocks"] - was[f"{name}_blocks"]) * size / seconds for name in growing}
    buffer = status["buffer"]
    stored = (buffer["stored_bytes"] - before["buffer"]["stored_bytes"]) / seconds
    left = None if buffer["limit_bytes"] is None else max(0, buffer["limit_bytes"] - buffer["stored_bytes"])
    full_in_s = left / stored if left is not None and stored > 0 else None
    return Rates(**rates, stored=stored, full_in_s=full_in_s)
