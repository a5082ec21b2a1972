"""The map of what is used at a cut: asked for, begun and stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapfs.protocol.rules import Done, OfSnapshot, Request, Timed


@dataclass(frozen=True)
class MapGiven:
    """`state` is none, computing, ready or failed; `free_file` the file of the store that has one bit a block, 1
    for free, once it is ready; `regions` what the image consists of (`usedmap.result.Region`)."""

    state: str
    free_file: str | None
    regions: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class GetMap(OfSnapshot, Request[MapGiven]):
    op, answer = "map", MapGiven


@dataclass(frozen=True)
class BeginMap(Request[Done]):
    """Both views answer: the map of the present snapshot can be computed."""

    op, answer = "begin-map", Done


@dataclass(frozen=True)
class StopMap(Timed, Request[Done]):
    """Somebody wants to unmount the snapshot view, which the computing of a map reads."""

    op, answer = "stop-map", Done
