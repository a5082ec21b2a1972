"""What is said about one snapshot that there is: its facts, name and end; what is needed of it; going back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapfs.protocol.rules import Done, OfSnapshot, Request, Timed


@dataclass(frozen=True)
class SnapshotGiven:
    """The same as the `snapshot` of a status, whose is that of the newest."""

    snapshot: dict[str, Any]


@dataclass(frozen=True)
class Released:
    """How many blocks were not yet released before."""

    released_blocks: int


@dataclass(frozen=True)
class Reverted:
    """How much of the image was another than the snapshot has."""

    written_bytes: int


@dataclass(frozen=True, kw_only=True)
class GetSnapshot(OfSnapshot, Request[SnapshotGiven]):
    op, answer = "snapshot", SnapshotGiven


@dataclass(frozen=True, kw_only=True)
class TellDamage(Request[Done]):
    """Something in the store is not what was written, so the cut of this `generation`, also an older one, cannot be
    read there."""

    op, answer = "damage", Done
    generation: int
    what: str


@dataclass(frozen=True, kw_only=True)
class Release(OfSnapshot, Timed, Request[Released]):
    """Whole blocks of the range are not needed any more."""

    op, answer = "release", Released
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class DeleteSnapshot(OfSnapshot, Timed, Request[Done]):
    """It is over."""

    op, answer = "delete", Done


@dataclass(frozen=True, kw_only=True)
class HoldCheckpoint(OfSnapshot, Timed, Request[Done]):
    """What is written since that snapshot stays known for the `holder`, 32 hex digits, also when it is over. It may
    be a checkpoint of others already."""

    op, answer = "hold-checkpoint", Done
    holder: str


@dataclass(frozen=True, kw_only=True)
class LetGoCheckpoints(Timed, Request[Done]):
    """All that the `holder` holds but those of these ids, which need not be there."""

    op, answer = "let-go-checkpoints", Done
    holder: str
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NameSnapshot(OfSnapshot, Timed, Request[Done]):
    """The snapshot has no name, and gets one."""

    op, answer = "name", Done
    name: str


@dataclass(frozen=True, kw_only=True)
class CloseLive(OfSnapshot, Timed, Request[Done]):
    """For a revert to that snapshot over this connection: refused when it cannot be read, and while anybody has the
    live file open, which nobody can open from then on until the connection is closed, or until a revert that has
    begun is done. Until then the snapshot is not deleted, either. Waits while somebody else takes a cut."""

    op, answer = "close-live", Done


@dataclass(frozen=True, kw_only=True)
class RevertTo(OfSnapshot, Request[Reverted]):
    """Answered when it is done, which may take hours, or has stopped. It goes on when the connection is closed."""

    op, answer = "revert", Reverted
