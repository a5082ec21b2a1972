"""What the live server does for each request of the control socket: who of it answers, and what is looked at before.

A request is refused when its time is over, or when it is about a cut that is not the present one any more. While the
image is half-way back to a snapshot no cut is begun, nothing is released, and that snapshot is not deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cow import LiveEngine
from snapfs.protocol import (
    BeginMap,
    CloseLive,
    CutPrepared,
    DeleteSnapshot,
    Done,
    ExpectEnd,
    GetMap,
    GetSnapshot,
    GetStatus,
    HoldCheckpoint,
    HoldWrites,
    LetGoCheckpoints,
    NameSnapshot,
    NoteFacts,
    NoteServer,
    OfCut,
    PrepareCut,
    Release,
    Request,
    ResumeWrites,
    RevertTo,
    SetLimit,
    SnapshotGiven,
    StatusGiven,
    StopMap,
    TakeCut,
    TellDamage,
    Timed,
    WriteOut,
)
from snapfs.servers.checkpoints import Checkpoints
from snapfs.servers.control import Client
from snapfs.servers.cuts import Cuts
from snapfs.servers.events import Events
from snapfs.servers.image_watch import ImageWatch
from snapfs.servers.instance import COMPACTOR, Instance
from snapfs.servers.list_of_cuts import ListOfCuts
from snapfs.servers.maps import Maps
from snapfs.servers.releases import Releases
from snapfs.servers.report import no_snapshot, snapshot_of, status_of
from snapfs.servers.reverts import Reverts
from snapfs.servers.shown_cuts import ShownCut, newest_shown, shown_cut
from snapfs.servers.trouble import Trouble
from snapfs.servers.turns import Turns
from snapfs.servers.write_out import WRITE_OUT_S, write_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Of one instance, by those who own what they are about."""

    instance: Instance
    engine: LiveEngine
    turns: Turns
    cuts: Cuts
    list_of_cuts: ListOfCuts
    maps: Maps
    releases: Releases
    checkpoints: Checkpoints
    reverts: Reverts
    trouble: Trouble
    events: Events
    image_watch: ImageWatch

    async def answer(self, request: Request[Any], client: Client) -> Any:
        """What to tell the client; SnapfsError says what is wrong instead."""
        if isinstance(request, Timed):
            request.check_time()
        if isinstance(request, OfCut):
            request.check_present(self.instance.store.cut.generation)
        match request:
            case GetStatus():
                return self._status()
            case GetSnapshot():
                return SnapshotGiven(self._snapshot(shown_cut(self.instance.store, request.id)))
            case GetMap():
                return self.maps.given(shown_cut(self.instance.store, request.id).cut)
            case PrepareCut():
                return await self._prepare_cut(request, client)
            case HoldWrites():
                await self.cuts.hold(request, client)
                return Done()
            case ResumeWrites():
                await self.cuts.resume(client)
                return Done()
            case TakeCut():
                return await self.cuts.cut(request, client)
            case NoteFacts():
                return await self.cuts.note_facts(request, client)
            case DeleteSnapshot():
                self.reverts.check_is_no_target(request.id)
                await self.list_of_cuts.delete(request)
                return Done()
            case HoldCheckpoint():
                await self.checkpoints.hold(request)
                return Done()
            case LetGoCheckpoints():
                await self.checkpoints.let_go(request)
                return Done()
            case NameSnapshot():
                await self.list_of_cuts.name(request)
                return Done()
            case Release():
                self.reverts.check_whole()
                return await self.releases.release(request)
            case CloseLive():
                await self.reverts.close_live(request, client)
                return Done()
            case RevertTo():
                return await self.reverts.revert(request, client)
            case _:
                await self._do(request)
                return Done()

    async def on_left(self, client: Client) -> None:
        """The client has closed its connection."""
        await self.reverts.on_left(client)
        await self.cuts.on_left(client)

    async def _prepare_cut(self, request: PrepareCut, client: Client) -> CutPrepared:
        self.reverts.check_whole()
        await self.turns.take(client, request.left_s)
        # There may have been one meanwhile, which has stopped.
        self.reverts.check_whole()
        return await self.cuts.prepare(request, client)

    async def _do(self, request: Request[Any]) -> None:
        """What has no answer of its own."""
        match request:
            case SetLimit():
                self.engine.room.set_limit(request.bytes)
            case ExpectEnd():
                self.engine.room.stop_waiting(compactor_is_gone=request.compactor_is_gone)
            case WriteOut():
                # Returns when it is, or is not in time.
                await write_out(self.instance, WRITE_OUT_S)
            case NoteServer():
                self._note_server(request)
            case TellDamage():
                self.trouble.note_damage(request)
                self.events.on_damage(request.generation, request.what)
                self.engine.ending.note_damage(request.generation)
            case BeginMap():
                self.maps.resume()
            case StopMap():
                await self.maps.stop()
            case _:
                raise ValueError(f"{request.op} is not answered")

    def _status(self) -> StatusGiven:
        image_state = self.image_watch.look()
        if not self.instance.store.is_whole:
            self.engine.ending.look_at_store()
        snapshot = self._snapshot(newest_shown(self.instance.store))
        revert = self.reverts.status()
        stopped = None if revert is None or revert["is_running"] else self.reverts.sentence()
        error = "; ".join(filter(None, (self.trouble.sentence(), stopped))) or None
        status = status_of(self.instance, self.engine, image_state, snapshot, revert, error)
        return StatusGiven(status)

    def _snapshot(self, shown: ShownCut | None) -> dict[str, Any]:
        if shown is None:
            return no_snapshot(self.instance.store)
        return snapshot_of(self.instance.store, shown, self.maps.report(shown.cut))

    def _note_server(self, request: NoteServer) -> None:
        self.trouble.note_server(request)
        if request.name == COMPACTOR:
            self.engine.room.note_compactor(is_missing=request.trouble is not None)
        elif request.trouble is None:
            # What was lost with the server that died, too, is computed now.
            self.maps.resume()
