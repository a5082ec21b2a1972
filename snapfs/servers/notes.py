"""The small files that the servers keep in a cut's directory: what was frozen for it, and what its map found.

They are written whole, and read as if anybody might have damaged them: one that is empty, cut short or of another
shape counts as missing. Without the facts nobody knows what was at rest at the cut, so every block counts as used;
without the regions the map is computed again. Neither ever fails a mount or a status.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cow import Files
from snapfs.cut_facts import Facts
from snapfs.usedmap.result import Region
from snapfs.wire import parsed

FACTS_NAME, REGIONS_NAME = "facts.json", "regions.json"
# Of each region there are some 200 bytes; more than this is none of ours.
_MAX_BYTES = 256 << 20
_NUMBERED = ("offset", "length", "block_bytes", "free_bytes")
_NAMED = ("kind", "reason", "label", "uuid", "partition_name")


def write_facts(directory: Path, facts: Facts, files: Files) -> None:
    """OSError: there is no room for them; after a restart nobody knows them then."""
    files.write_whole(directory / FACTS_NAME, json.dumps(asdict(facts)).encode())


def read_facts(directory: Path) -> Facts | None:
    """What `write_facts` wrote; None when that is not known."""
    try:
        facts: Facts = parsed(Facts, _read(directory / FACTS_NAME), "facts")
    except ValueError:
        return None
    return facts


def write_regions(directory: Path, regions: Sequence[Region]) -> None:
    Files().write_whole(directory / REGIONS_NAME, json.dumps([region.facts() for region in regions]).encode())


def read_regions(directory: Path) -> list[dict[str, Any]] | None:
    """What `write_regions` wrote; None when that is not known."""
    regions = _read(directory / REGIONS_NAME)
    if not isinstance(regions, list) or not all(map(_is_region, regions)):
        return None
    return regions


def _read(path: Path) -> Any:
    """The JSON in the file; None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_place(one: dict[str, Any], *names: str) -> bool:
    return all(one.get(name) is None or _is_number(one[name]) for name in names)


def _is_region(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and all(_is_number(one.get(name)) for name in _NUMBERED)
        and all(isinstance(one.get(name), str) for name in _NAMED)
        and one.get("state") in ("trusted", "all-used")
        and _is_place(one, "partition_number")
        and _is_list_of_files(one.get("skipped", []))
    )


def _is_list_of_files(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and _is_number(one.get("bytes")) for one in value
    )
