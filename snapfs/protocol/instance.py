"""What is said to an instance as a whole: its status and limit, its servers, its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapfs.protocol.rules import Done, Request, Timed


@dataclass(frozen=True)
class StatusGiven:
    """What `snapfs status --json` prints."""

    status: dict[str, Any]


@dataclass(frozen=True)
class GetStatus(Request[StatusGiven]):
    op, answer = "status", StatusGiven


@dataclass(frozen=True)
class SetLimit(Request[Done]):
    """Of the side buffer; 0 is none."""

    op, answer = "limit", Done
    bytes: int


@dataclass(frozen=True)
class NoteServer(Request[Done]):
    """Another server is missing, and `trouble` says what that means; None: it is back."""

    op, answer = "server", Done
    name: str
    trouble: str | None


@dataclass(frozen=True)
class ExpectEnd(Request[Done]):
    """Writes wait for room no longer, and for a compactor that is gone for none at all."""

    op, answer = "ending", Done
    compactor_is_gone: bool = False


@dataclass(frozen=True)
class WriteOut(Timed, Request[Done]):
    """What was written to the live view up to now goes into the image."""

    op, answer = "write-out", Done
