"""The live server: FUSE on LIVE, the engine, and the control socket. It owns and writes all state."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import trio

from cow import Counter, Event, EventKind, LiveEngine, OverflowPolicy, SnapshotEnded
from snapfs.errors import SnapfsError
from snapfs.fuse import session
from snapfs.fuse.live_view import LiveView
from snapfs.protocol import (
    BeginMap,
    Done,
    ExpectEnd,
    GetMap,
    GetStatus,
    NoteFacts,
    NoteServer,
    OfCut,
    PrepareCut,
    Release,
    Released,
    Request,
    SetLimit,
    StatusGiven,
    StopMap,
    TakeCut,
    TellDamage,
    Timed,
    WriteOut,
)
from snapfs.servers.control import Client, listen, serve
from snapfs.servers.cuts import Cuts
from snapfs.servers.image_watch import ImageWatch
from snapfs.servers.instance import COMPACTOR, LIVE, Instance
from snapfs.servers.memory import MemoryWatch
from snapfs.servers.report import status_of
from snapfs.servers.session import SERVED, become_server, mount_view, serve_view, stop_signals, tell_supervisor
from snapfs.servers.write_out import write_out
from snapfs.system.discovery import DISK_ERRORS
from snapfs.system.lost_snapshots import note_lost

_LOG = logging.getLogger(__name__)
# Each look takes the event loop a tenth of a millisecond, which a sync would wait for.
_QUIET_LOOK_S = 0.1
# Longer than the pauses of a machine that works, shorter than the kernel takes to write the ring out for nothing.
_REST_AFTER_S = 3.0
# How long the end may be kept by what has to be written out; the first also by the supervisor's patience.
_WRITE_OUT_S, _ORPHAN_S = 60.0, 10.0
_MAX_LOSSES_TOLD = 100


def run_live_server(instance: Instance, pipe_fd: int) -> int:
    """Serve until stopped; the process's exit code."""
    become_server("live", instance.supervisor_pid)
    return trio.run(LiveServer(instance, pipe_fd).run)


class LiveServer:
    """The tasks: requests, control socket, the compactor's bell, and what is done when writes pause."""

    def __init__(self, instance: Instance, pipe_fd: int) -> None:
        self._instance, self._pipe_fd = instance, pipe_fd
        policy = OverflowPolicy(instance.options.on_overflow)
        self.engine = LiveEngine(
            instance.store,
            instance.image,
            policy,
            self._on_event,
            instance.work.ring,
            self._on_writing,
            self._on_beat,
        )
        self._writing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._memory = MemoryWatch(self.engine.trim)
        self._image_watch = ImageWatch(instance)
        # With the generation of the cut that it is about.
        self._last_error: tuple[int, str] | None = None
        self._losses_told = 0
        self._why_waiting: str | None = None
        # Other servers that are not running, with a sentence each.
        self._missing: dict[str, str] = {}
        self._releasing = trio.Lock()

    async def run(self) -> int:
        instance, options = self._instance, self._instance.options
        self._view = view = LiveView(
            self.engine,
            instance.image,
            instance.permissions,
            os.fsencode(instance.view_name),
            lambda: os.fsencode(instance.store_path),
            writeback=options.cache == "writeback",
        )
        mount_view(instance, LIVE, view, options.fuse_options)
        with stop_signals() as signals:
            try:
                await self._serve(signals)
            finally:
                session.close()
            # The compactor still runs: what it has to empty is complete only now.
            tell_supervisor(self._pipe_fd, SERVED)
            await self._until_compacted(signals)
        self._close()
        return 0

    async def _serve(self, signals: AsyncIterator[int]) -> None:
        """Until the first signal; returns when the last write that was under way has ended."""
        instance = self._instance
        async with trio.open_nursery() as ending:
            async with trio.open_nursery() as serving:
                self._cuts = Cuts(instance, self.engine, serving, self._count_writers)
                serving.start_soon(serve, listen(instance.store.path), self._answer, self._cuts.on_left)
                serving.start_soon(self._watch_room)
                serving.start_soon(self._watch_writing)
                serving.start_soon(self._serve_view)
                await anext(signals)
                self._cuts.cancel_mapping()
                self.engine.room.stop_waiting()
                # Without a supervisor nobody has done it yet, and who mounts anew waits for us.
                await write_out(instance, _ORPHAN_S if self._is_orphan else _WRITE_OUT_S)
                self._stop_waiting()
                ending.start_soon(self._watch_supervisor, signals)
                serving.cancel_scope.cancel()
            ending.cancel_scope.cancel()

    def _count_writers(self) -> int:
        return self._view.open_for_writing

    async def _watch_supervisor(self, signals: AsyncIterator[int]) -> None:
        """It may be killed while the last writes wait for room."""
        async for _ in signals:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        # Without a supervisor the compactor stays as long as we do, but nobody starts it again.
        self.engine.room.stop_waiting(compactor_is_gone=self._is_orphan)

    async def _until_compacted(self, signals: AsyncIterator[int]) -> None:
        """The second signal says that the compactor has ended."""
        if not self._is_orphan:
            await anext(signals)

    @property
    def _is_orphan(self) -> bool:
        return os.getppid() != self._instance.supervisor_pid

    async def _serve_view(self) -> None:
        await serve_view(self._instance, LIVE, self._pipe_fd)

    def _close(self) -> None:
        self.engine.close()
        # An orphan's compactor still works on the store: it is left as after a kill.
        if not self._instance.keeps_store or self._is_orphan:
            return
        try:
            why = "" if self.engine.seal() else "the side buffer could not be written out"
        except OSError as error:
            why = f"the store could not be closed as it should be ({error.strerror})"
            if error.errno in DISK_ERRORS and not self._store_tells_the_end:
                # What of it reached the disk, and when, nobody knows.
                note_lost(self._instance.store.header.cut.snapshot_id)
        if why:
            is_kept = self._instance.store.cut.numbers.is_kept
            what_of_it = "the snapshot lasts until the machine restarts" if is_kept else "the snapshot is lost"
            _LOG.warning("%s; %s", why, what_of_it)

    @property
    def _store_tells_the_end(self) -> bool:
        try:
            return not self._instance.store.cut.is_intact
        except OSError:
            return False

    # --- tasks -----------------------------------------------------------------------------------------------

    async def _watch_room(self) -> None:
        room = self._instance.room
        while True:
            await trio.lowlevel.wait_readable(room.fd)
            room.hush()
            self.engine.room.look_again()

    def _on_writing(self) -> None:
        os.eventfd_write(self._writing, 1)

    def _on_beat(self) -> None:
        self._memory.look()
        self._image_watch.look_sometimes()

    async def _watch_writing(self) -> None:
        """Sleeps without a timer until somebody writes; then looks now and then until nobody does."""
        while True:
            await trio.lowlevel.wait_readable(self._writing)
            os.eventfd_read(self._writing)
            while not self.engine.note_quiet():
                await trio.sleep(_QUIET_LOOK_S)
            await self._rest()

    async def _rest(self) -> None:
        """Until somebody writes, or there is nothing left to do for those who have written."""
        has_rested = False
        while not has_rested:
            with trio.move_on_after(_REST_AFTER_S):
                await trio.lowlevel.wait_readable(self._writing)
                return
            async with self._releasing:
                has_rested = await trio.to_thread.run_sync(self.engine.rest)

    def _on_event(self, event: Event) -> None:
        if not event.is_on_disk:
            # Before the write that takes something from the snapshot goes on.
            note_lost(self._instance.store.header.cut.snapshot_id)
        if event.kind is EventKind.BUFFER_FILLING:
            _LOG.warning("the side buffer has reached %d %% of its limit", event.value)
        elif event.kind is EventKind.WAITING:
            self._why_waiting = f"the side buffer is full ({os.strerror(event.value)}): live writes wait"
            _LOG.warning("%s", self._why_waiting)
        elif event.kind is EventKind.LOST:
            self._note_lost(event)
        elif event.kind is EventKind.CUT_SHORT:
            self._lose("files of the store were cut short or cannot be read: the snapshot is lost")
        else:
            self._lose(f"the side buffer is full ({os.strerror(event.value)}): the snapshot is lost")

    def _lose(self, why: str) -> None:
        _LOG.error("%s; the live view goes on", why)
        self._last_error = (self._generation, why)

    @property
    def _generation(self) -> int:
        return self._instance.store.cut.generation

    @property
    def _present_error(self) -> str | None:
        """What is wrong with the present cut."""
        if self._last_error is None or self._last_error[0] != self._generation:
            return None
        return self._last_error[1]

    def _note_lost(self, event: Event) -> None:
        """The log has every place, up to a bound; a disk that dies altogether must not fill another one."""
        self._losses_told += 1
        where = f"{event.length} bytes at {event.offset} of the image cannot be read ({os.strerror(event.value)})"
        if self._losses_told <= _MAX_LOSSES_TOLD:
            _LOG.error("%s: they are lost to the snapshot; the live view goes on", where)
        if self._losses_told == _MAX_LOSSES_TOLD:
            _LOG.error("further places that are lost are only counted: see the status")
        if self._present_error is None:
            self._last_error = (self._generation, f"{where}: what was there is lost to the snapshot")

    # --- control ---------------------------------------------------------------------------------------------

    async def _answer(self, request: Request[Any], client: Client) -> Any:
        if isinstance(request, Timed):
            request.check_time()
        if isinstance(request, OfCut):
            request.check_present(self._generation)
        match request:
            case GetStatus():
                return self._status()
            case GetMap():
                return self._cuts.map()
            case PrepareCut():
                return await self._cuts.prepare(request, client)
            case TakeCut():
                return await self._cuts.cut(request, client)
            case NoteFacts():
                return await self._cuts.note_facts(request, client)
            case Release():
                return await self._release(request)
            case _:
                await self._do(request)
                return Done()

    async def _do(self, request: Request[Any]) -> None:
        """What has no answer of its own."""
        match request:
            case SetLimit():
                self.engine.room.set_limit(request.bytes)
            case ExpectEnd():
                self.engine.room.stop_waiting(compactor_is_gone=request.compactor_is_gone)
            case WriteOut():
                # Returns when it is, or is not in time.
                await write_out(self._instance, _WRITE_OUT_S)
            case NoteServer():
                self._note_server(request)
            case TellDamage():
                self._note_damage(request)
            case BeginMap():
                self._cuts.resume()
            case StopMap():
                await self._cuts.stop_mapping()
            case _:
                raise ValueError(f"{request.op} is not answered")

    def _status(self) -> StatusGiven:
        image_state = self._image_watch.look()
        if not self._instance.store.is_whole:
            self.engine.look_at_store()
        status = status_of(self._instance, self.engine, image_state, self._cuts.report(), self._error())
        return StatusGiven(status, self._generation)

    def _error(self) -> str | None:
        """What is wrong now: also what the log, which may be on the very disk that is full, cannot tell."""
        is_waiting = self._instance.store.control[Counter.PRESSED]
        waiting = self._why_waiting if is_waiting else None
        return "; ".join(filter(None, (self._present_error, waiting, *self._missing.values()))) or None

    def _note_server(self, request: NoteServer) -> None:
        if request.trouble is None:
            self._missing.pop(request.name, None)
        else:
            self._missing[request.name] = request.trouble
        if request.name == COMPACTOR:
            self.engine.room.note_compactor(is_missing=request.trouble is not None)
        elif request.trouble is None:
            # What was lost with the server that died, too, is computed now.
            self._cuts.resume()

    async def _release(self, request: Release) -> Released:
        """Whole blocks of the range only."""
        self._check_released(request)
        first, end = self.engine.geometry.inner_span(request.offset, request.length)
        if first >= end:
            return Released(0)
        await self._cuts.until_mapped()
        async with self._releasing:
            # It may have waited for long.
            self._check_released(request)
            request.check_time()
            try:
                count = await trio.to_thread.run_sync(self.engine.release, first, end, self._instance.store.cut)
            except SnapshotEnded as error:
                raise self._has_ended(request) from error
        self._instance.released.ring()
        # Some of it may have to be looked at again when all is quiet.
        os.eventfd_write(self._writing, 1)
        return Released(count)

    def _check_released(self, request: Release) -> None:
        snapshot_id = str(uuid.UUID(bytes=self._instance.store.header.cut.snapshot_id))
        if (request.generation, request.id) != (self._generation, snapshot_id):
            raise self._has_ended(request)

    @staticmethod
    def _has_ended(request: Release) -> SnapfsError:
        return SnapfsError(f"The snapshot {request.id} has ended; nothing was released.")

    def _note_damage(self, request: TellDamage) -> None:
        if self._present_error is None:
            _LOG.error("the store is damaged: %s", request.what)
            self._last_error = (request.generation, f"the store is damaged: {request.what}")
        self.engine.note_damage(request.generation)
