"""The live server: FUSE on LIVE, the engine, and the control socket. It owns and writes all state.

Here are its tasks, and the order in which it begins and ends; requests are answered by `answers`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

import trio

from cow import Event, EventKind, LiveEngine, OverflowPolicy
from snapfs.fuse import session
from snapfs.fuse.live_view import LiveView
from snapfs.servers.answers import Answers
from snapfs.servers.checkpoints import Checkpoints
from snapfs.servers.control import listen, serve
from snapfs.servers.cuts import Cuts
from snapfs.servers.dating import Dating
from snapfs.servers.events import Events
from snapfs.servers.image_watch import ImageWatch
from snapfs.servers.instance import LIVE, Instance
from snapfs.servers.list_of_cuts import ListOfCuts
from snapfs.servers.maps import Maps
from snapfs.servers.memory import MemoryWatch
from snapfs.servers.merges import Merges
from snapfs.servers.pipe import SERVED, tell
from snapfs.servers.process import become_server, stop_signals
from snapfs.servers.releases import Releases
from snapfs.servers.reverts import Reverts
from snapfs.servers.session import mount_view, serve_view
from snapfs.servers.trouble import Trouble
from snapfs.servers.turns import Turns
from snapfs.servers.write_out import WRITE_OUT_S, write_out
from snapfs.system.discovery import DISK_ERRORS
from snapfs.system.lost_snapshots import note_lost

_LOG = logging.getLogger(__name__)
# Each look takes the event loop a tenth of a millisecond, which a sync would wait for.
_QUIET_LOOK_S = 0.1
# Longer than the pauses of a machine that works, shorter than the kernel takes to write the ring out for nothing.
_REST_AFTER_S = 3.0
# Instead of `WRITE_OUT_S` when the supervisor is gone.
_ORPHAN_S = 10.0


def run_live_server(instance: Instance, pipe_fd: int) -> int:
    """Serve until stopped; the process's exit code."""
    become_server("live", instance.supervisor_pid)
    return trio.run(LiveServer(instance, pipe_fd).run)


class LiveServer:
    """The tasks: requests, control socket, the compactor's bell, and what is done when writes pause."""

    def __init__(self, instance: Instance, pipe_fd: int) -> None:
        self._instance, self._pipe_fd = instance, pipe_fd
        self._trouble = Trouble(instance.store)
        self._events = Events(instance.store, pipe_fd, is_wanted=instance.options.on_event is not None)
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
        self._merges = Merges(instance, self.engine)

    async def run(self) -> int:
        self._loop = trio.lowlevel.current_trio_token()
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
            _LOG.debug("the last request is answered; waiting for the compactor")
            # The compactor still runs: what it has to empty is complete only now.
            tell(self._pipe_fd, SERVED)
            await self._until_compacted(signals)
        self._close()
        return 0

    async def _serve(self, signals: AsyncIterator[int]) -> None:
        """Until the first signal; returns when the last write that was under way has ended."""
        instance = self._instance
        async with trio.open_nursery() as ending:
            async with trio.open_nursery() as serving:
                dating = Dating(instance)
                await dating.resume()
                maps, turns = Maps(instance, self.engine, dating, serving), Turns()
                list_of_cuts = ListOfCuts(instance, self.engine, maps, self._merges)
                reverts = Reverts(instance, self.engine, self._view, turns)
                answers = Answers(
                    instance=instance,
                    engine=self.engine,
                    turns=turns,
                    cuts=Cuts(
                        instance, self.engine, maps, dating, turns, list_of_cuts, self._merges, self._count_writers
                    ),
                    list_of_cuts=list_of_cuts,
                    maps=maps,
                    releases=Releases(instance, self.engine, maps),
                    checkpoints=Checkpoints(instance, self.engine, self._merges.look_again),
                    reverts=reverts,
                    trouble=self._trouble,
                    events=self._events,
                    image_watch=self._image_watch,
                )
                serving.start_soon(serve, listen(instance.store.path), answers.answer, answers.on_left)
                serving.start_soon(self._merges.merge_always)
                serving.start_soon(self._watch_room)
                serving.start_soon(self._watch_writing)
                serving.start_soon(self._serve_view)
                await anext(signals)
                _LOG.debug("told to end: writing out")
                maps.cancel()
                reverts.stop()
                self.engine.room.stop_waiting()
                # Without a supervisor nobody has done it yet, and who mounts anew waits for us.
                await write_out(instance, _ORPHAN_S if self._is_orphan else WRITE_OUT_S)
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

    def _on_event(self, event: Event) -> None:
        self._trouble.on_event(event)
        self._events.on_event(event)
        if event.kind is EventKind.GAVE_WAY:
            # Else its files take room as long as the view has them open.
            self._instance.new_cut.ring()
            self._loop.run_sync_soon(self._merges.look_again)

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
            has_rested = await trio.to_thread.run_sync(self.engine.rest)
            _LOG.debug("nobody writes: %s", "at rest" if has_rested else "the compactor is still at it")
