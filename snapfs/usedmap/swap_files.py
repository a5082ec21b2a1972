"""Files that hold nothing but what a running system had in memory: their content counts as free when it is to be
skipped, as swap space does.

Rules
1. Only in a filesystem whose map is trusted, and only what that map calls used.
2. A file is known by its name in the root directory and by what it is (see the finders); one that is in any way
   unusual is left as it is: used.
3. What a finder gives is nobody else's: it has looked at what all other files claim.

Every finder has the same contract: `find(source, free_map) -> list[SwapFile]`, with the map of that very filesystem;
`MapError` when it understands something not.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple

from snapfs.usedmap.result import FreeMap
from snapfs.usedmap.source import Source

_FINDERS: Final = {"ntfs": "ntfs_paging", "ext4": "ext_swap"}


class SwapFile(NamedTuple):
    """`ranges`: (first, end) in units of the map of its filesystem, all of them used."""

    name: str
    ranges: list[tuple[int, int]]


def free_contents(kind: str, source: Source, free_map: FreeMap) -> list[dict[str, Any]]:
    """Let `free_map` call the contents of such files free; name and bytes of each, for people and programs."""
    if kind not in _FINDERS:
        return []
    try:
        found: list[SwapFile] = import_module(f"snapfs.usedmap.{_FINDERS[kind]}").find(source, free_map)
    except Exception:  # what is not understood, or a bug, costs space, never the map of the filesystem
        return []
    free = free_map.free
    skipped = []
    for file in found:
        if not file.ranges or any(free.find(1, first, end) >= 0 for first, end in file.ranges):
            continue
        for first, end in file.ranges:
            free[first:end] = 1
        units = sum(end - first for first, end in file.ranges)
        skipped.append({"name": file.name, "bytes": units * free_map.unit_bytes})
    return skipped
