"""Every operation of the control socket: its fields, its answer and who asks. How they are written: see `wire`.

    op                  asked by                                         answer         field of
    status              every command that finds an instance             StatusGiven
    snapshot            whoever is asked about one of several            SnapshotGiven  OfSnapshot
    limit               snapfs limit                                     Done
    ending              supervisor, umount                               Done
    write-out           supervisor                                       Done           Timed
    server              supervisor                                       Done
    damage              snapshot server                                  Done
    release             snapfs release, backup, snapshot server          Released       OfSnapshot, Timed
    map                 snapfs map, backup                               MapGiven       OfSnapshot
    begin-map           mount, umount that changed nothing               Done
    stop-map            umount, supervisor                               Done           Timed
    prepare-cut         snapfs snapshot: makes the new cut's files       CutPrepared    Timed
    hold                snapfs snapshot of several: writes wait          Done           Timed
    cut                 snapfs snapshot: the step itself                 CutTaken       Timed
    resume              snapfs snapshot of several: they go on           Done
    cut-facts           snapfs snapshot: what was frozen                 FactsNoted     OfCut, Timed
    delete              snapfs delete                                    Done           OfSnapshot, Timed
    hold-checkpoint     a chain of backups: what is written since        Done           OfSnapshot, Timed
    let-go-checkpoints  the same: all that it holds but some             Done           Timed
    name                snapfs revert: it stays beside newer ones        Done           OfSnapshot, Timed
    close-live          snapfs revert: nobody opens the live file        Done           OfSnapshot, Timed
    revert              snapfs revert: the image becomes a snapshot      Reverted       OfSnapshot

Rules:
- A connection bears one request after the other.
- Whoever speaks of a snapshot says its id (`OfSnapshot`), and is refused when there is none of that id any more.
- Whoever takes part in a cut names its generation (`OfCut`), and is refused when that is not the present one.
- Whoever may be kept waiting says until when he waits (`Timed`), and is refused after that. Who has closed his
  connection has given up too: his cut is not made, and one that he only prepared is removed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from snapfs.cut_facts import Facts
from snapfs.errors import SnapfsError

SOCKET_NAME: Final = "socket"

AnswerT = TypeVar("AnswerT")


class Request(Generic[AnswerT]):
    """What can be asked; `answer` is the class of what is answered."""

    op: ClassVar[str]
    answer: ClassVar[type[Any]]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The asker waits until `deadline_s` of CLOCK_MONOTONIC, which all processes of a machine share."""

    deadline_s: float

    @property
    def left_s(self) -> float:
        """0 when the time is over."""
        return max(0.0, self.deadline_s - time.monotonic())

    def check_time(self) -> None:
        """SnapfsError when the asker does not wait any more."""
        if not self.left_s:
            raise SnapfsError("The time that was given for it is over, so nothing was done; try again.")


@dataclass(frozen=True, kw_only=True)
class OfCut:
    """What is said is about the snapshot of this generation."""

    generation: int

    def check_present(self, generation: int) -> None:
        """SnapfsError when `generation`, the present one, is another."""
        if self.generation != generation:
            raise SnapfsError(
                "The snapshot that was meant has ended, for another one has taken its place, so nothing was done; "
                "see snapfs status."
            )


@dataclass(frozen=True, kw_only=True)
class OfSnapshot:
    """What is said is about the snapshot of this id, which no other has, in whatever store."""

    id: str


def deadline_in(timeout_s: float) -> float:
    """The `deadline_s` of one who waits for `timeout_s` from now on."""
    return time.monotonic() + timeout_s


# --- answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """There is nothing to tell."""


@dataclass(frozen=True)
class StatusGiven:
    """What `snapfs status --json` prints."""

    status: dict[str, Any]


@dataclass(frozen=True)
class SnapshotGiven:
    """The same as the `snapshot` of a status, whose is that of the newest."""

    snapshot: dict[str, Any]


@dataclass(frozen=True)
class Released:
    """How many blocks were not yet released before."""

    released_blocks: int


@dataclass(frozen=True)
class MapGiven:
    """`state` is none, computing, ready or failed; `free_file` the file of the store that has one bit a block, 1
    for free, once it is ready; `regions` what the image consists of (`usedmap.result.Region`)."""

    state: str
    free_file: str | None
    regions: tuple[dict[str, Any], ...]


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


@dataclass(frozen=True)
class Reverted:
    """How much of the image was another than the snapshot has."""

    written_bytes: int


# --- requests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GetStatus(Request[StatusGiven]):
    op, answer = "status", StatusGiven


@dataclass(frozen=True, kw_only=True)
class GetSnapshot(OfSnapshot, Request[SnapshotGiven]):
    op, answer = "snapshot", SnapshotGiven


@dataclass(frozen=True)
class SetLimit(Request[Done]):
    """Of the side buffer; 0 is none."""

    op, answer = "limit", Done
    bytes: int


@dataclass(frozen=True)
class ExpectEnd(Request[Done]):
    """Writes wait for room no longer, and for a compactor that is gone for none at all."""

    op, answer = "ending", Done
    compactor_is_gone: bool = False


@dataclass(frozen=True)
class WriteOut(Timed, Request[Done]):
    """What was written to the live view up to now goes into the image."""

    op, answer = "write-out", Done


@dataclass(frozen=True)
class NoteServer(Request[Done]):
    """Another server is missing, and `trouble` says what that means; None: it is back."""

    op, answer = "server", Done
    name: str
    trouble: str | None


@dataclass(frozen=True, kw_only=True)
class TellDamage(Request[Done]):
    """Something in the store is not what was written, so the cut of this `generation`, also an older one, cannot be
    read there."""

    op, answer = "damage", Done
    generation: int
    what: str


@dataclass(frozen=True, kw_only=True)
class Release(OfSnapshot, Timed, Request[Released]):
    """Whole blocks of the range are not needed any more; of the newest snapshot only."""

    op, answer = "release", Released
    offset: int
    length: int


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


@dataclass(frozen=True)
class ResumeWrites(Request[Done]):
    op, answer = "resume", Done


@dataclass(frozen=True, kw_only=True)
class TakeCut(Timed, Request[CutTaken]):
    """`generation` is that of the cut that this connection has prepared."""

    op, answer = "cut", CutTaken
    generation: int


@dataclass(frozen=True, kw_only=True)
class DeleteSnapshot(OfSnapshot, Timed, Request[Done]):
    """It is over; it is not the newest."""

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
class NoteFacts(OfCut, Timed, Request[FactsNoted]):
    """After the thaw. Answered when the snapshot view shows the cut, or does not."""

    op, answer = "cut-facts", FactsNoted
    facts: Facts


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


REQUESTS: Final[dict[str, type[Request[Any]]]] = {
    one.op: one
    for one in (
        GetStatus,
        GetSnapshot,
        SetLimit,
        ExpectEnd,
        WriteOut,
        NoteServer,
        TellDamage,
        Release,
        GetMap,
        BeginMap,
        StopMap,
        PrepareCut,
        HoldWrites,
        TakeCut,
        ResumeWrites,
        NoteFacts,
        DeleteSnapshot,
        HoldCheckpoint,
        LetGoCheckpoints,
        NameSnapshot,
        CloseLive,
        RevertTo,
    )
}
