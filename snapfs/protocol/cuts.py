"""The steps of a cut, all on one connection, from what is prepared to the facts that are noted of it."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.cut_facts import Facts
from snapfs.protocol.rules import Done, OfCut, Request, Timed


@dataclass(frozen=True)
class CutPrepared:
    """The generation of the cut that can be taken now."""

    generation: int


@dataclass(frozen=True)
class CutTaken:
    """`open_for_writing` is how many descriptors of the live file were, at the cut."""

    id: str
    taken_at: str
    cut_ms: float
    open_for_writing: int


@dataclass(frozen=True)
class FactsNoted:
    """Whether the snapshot view shows the cut."""

    shown: bool


@dataclass(frozen=True, kw_only=True)
class PrepareCut(Timed, Request[CutPrepared]):
    """Waits while somebody else takes a cut. One with a `name` stays when there is a newer one."""

    op, answer = "prepare-cut", CutPrepared
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class HoldWrites(Timed, Request[Done]):
    """Live writes wait, for a cut in the same instant as those of other images. They go on with `ResumeWrites`, when
    the connection is closed, and when the time is over."""

    op, answer = "hold", Done
    generation: int


@dataclass(frozen=True, kw_only=True)
class TakeCut(Timed, Request[CutTaken]):
    """`generation` is that of the cut that this connection has prepared."""

    op, answer = "cut", CutTaken
    generation: int


@dataclass(frozen=True)
class ResumeWrites(Request[Done]):
    op, answer = "resume", Done


@dataclass(frozen=True, kw_only=True)
class NoteFacts(OfCut, Timed, Request[FactsNoted]):
    """After the thaw. Answered when the snapshot view shows the cut, or does not."""

    op, answer = "cut-facts", FactsNoted
    facts: Facts
