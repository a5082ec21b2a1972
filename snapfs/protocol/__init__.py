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

Each operation lies with its answer in the module of what it is about: instance, snapshots, maps, cuts. What all of
them share is in rules.
"""

from __future__ import annotations

from typing import Any, Final

from snapfs.protocol.cuts import (
    CutPrepared,
    CutTaken,
    FactsNoted,
    HoldWrites,
    NoteFacts,
    PrepareCut,
    ResumeWrites,
    TakeCut,
)
from snapfs.protocol.instance import ExpectEnd, GetStatus, NoteServer, SetLimit, StatusGiven, WriteOut
from snapfs.protocol.maps import BeginMap, GetMap, MapGiven, StopMap
from snapfs.protocol.rules import AnswerT, Done, OfCut, OfSnapshot, Request, Timed, deadline_in
from snapfs.protocol.snapshots import (
    CloseLive,
    DeleteSnapshot,
    GetSnapshot,
    HoldCheckpoint,
    LetGoCheckpoints,
    NameSnapshot,
    Release,
    Released,
    Reverted,
    RevertTo,
    SnapshotGiven,
    TellDamage,
)

__all__ = [
    "REQUESTS",
    "SOCKET_NAME",
    "AnswerT",
    "BeginMap",
    "CloseLive",
    "CutPrepared",
    "CutTaken",
    "DeleteSnapshot",
    "Done",
    "ExpectEnd",
    "FactsNoted",
    "GetMap",
    "GetSnapshot",
    "GetStatus",
    "HoldCheckpoint",
    "HoldWrites",
    "LetGoCheckpoints",
    "MapGiven",
    "NameSnapshot",
    "NoteFacts",
    "NoteServer",
    "OfCut",
    "OfSnapshot",
    "PrepareCut",
    "Release",
    "Released",
    "Request",
    "ResumeWrites",
    "RevertTo",
    "Reverted",
    "SetLimit",
    "SnapshotGiven",
    "StatusGiven",
    "StopMap",
    "TakeCut",
    "TellDamage",
    "Timed",
    "WriteOut",
    "deadline_in",
]

SOCKET_NAME: Final = "socket"

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
