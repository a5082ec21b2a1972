"""The snapshot server: FUSE on SNAP. It only reads the shared state."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import trio

from cow import Counter, Store
from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.fuse import session
from snapfs.fuse.snapshot_view import SnapshotView
from snapfs.protocol import Release, Request, TellDamage, deadline_in
from snapfs.servers.instance import SNAPSHOT, Instance
from snapfs.servers.memory import MemoryWatch
from snapfs.servers.process import become_server, until_stopped
from snapfs.servers.session import mount_view, serve_view
from snapfs.servers.single_pass import SinglePass
from snapfs.stamps import id_text
from snapfs.system.processes import descends_from

_LOG = logging.getLogger(__name__)
_MAX_UNTOLD = 64
# From when it is sent: it may have to wait until the map is known.
_RELEASE_S, _WHEN_SENT = 30.0, 0.0


def run_snapshot_server(instance: Instance, pipe_fd: int) -> int:
    """Serve until stopped; the process's exit code."""
    become_server("snapshot", instance.supervisor_pid)
    return trio.run(SnapshotServer(instance, pipe_fd).run)


class SnapshotServer:
    """One task serves the view; damage that a read finds is passed on to the live server by another."""

    def __init__(self, instance: Instance, pipe_fd: int) -> None:
        self._instance, self._pipe_fd = instance, pipe_fd
        self._send, self._to_tell = trio.open_memory_channel[Request[Any]](_MAX_UNTOLD)
        self._is_behind = False

    async def run(self) -> int:
        instance = self._instance
        # Not the first of this instance, perhaps: there may have been cuts meanwhile.
        instance.store.let_go_older()
        headers = instance.store.control[Counter.HEADERS]
        store = self._present_store()
        view = SnapshotView(
            store,
            instance.image,
            instance.permissions,
            os.fsencode(instance.view_name),
            self._store_name,
            self._on_damage,
            instance.options.chunk_bytes,
        )
        self._watch_reads(view)
        mount_view(instance, SNAPSHOT, view, (*instance.options.fuse_options, "ro"))
        self._note_shown(view, headers)
        try:
            async with trio.open_nursery() as serving:
                serving.start_soon(self._serve_view)
                async with trio.open_nursery() as following:
                    following.start_soon(self._tell_live_server)
                    following.start_soon(self._follow_cuts, view)
                    following.start_soon(self._follow_releases, view)
                    await until_stopped()
                    _LOG.debug("told to end")
                    following.cancel_scope.cancel()
                # Last: their threads may wait for the kernel, and that for an answer of ours.
                serving.cancel_scope.cancel()
        finally:
            session.close()
        return 0

    def _store_name(self) -> bytes:
        return os.fsencode(self._instance.store_path)

    def _watch_reads(self, view: SnapshotView) -> None:
        memory = MemoryWatch(view.cuts.trim)
        if not self._instance.options.single_pass:
            view.on_read = lambda offset, length: memory.tick()
            return
        passes: dict[int, SinglePass] = {}

        def present() -> SinglePass:
            if view.image_inode not in passes:
                passes.clear()
                passes[view.image_inode] = self._new_pass(view)
            return passes[view.image_inode]

        def on_read(offset: int, length: int) -> None:
            memory.tick()
            present().note_read(offset, length)

        view.on_read, view.on_close = on_read, lambda: present().note_close()
        view.on_hole = lambda offset, length: present().note_hole(offset, length)
        # What computes the map reads the view too.
        view.is_ours = lambda pid: descends_from(pid, self._instance.supervisor_pid)

    def _new_pass(self, view: SnapshotView) -> SinglePass:
        newest = view.newest
        assert newest is not None, "it is read"
        snapshot_id = id_text(newest.snapshot_id)

        def release(offset: int, length: int) -> None:
            self._tell(Release(id=snapshot_id, offset=offset, length=length, deadline_s=_WHEN_SENT))

        return SinglePass(view.image_bytes, release)

    async def _serve_view(self) -> None:
        await serve_view(self._instance, SNAPSHOT, self._pipe_fd)

    async def _follow_cuts(self, view: SnapshotView) -> None:
        """Show each new cut when the live server says that there is one."""
        instance = self._instance
        while True:
            await trio.lowlevel.wait_readable(instance.new_cut.fd)
            instance.new_cut.hush()
            headers = instance.store.control[Counter.HEADERS]
            store, old_inode = self._present_store(), view.image_inode
            view.show(store)
            if view.image_inode != old_inode:
                # In a thread: the kernel may ask for something before it lets go.
                await trio.to_thread.run_sync(session.forget, os.fsencode(instance.view_name), old_inode)
            self._note_shown(view, headers)

    def _note_shown(self, view: SnapshotView, headers: int) -> None:
        """Whoever waits for that list to be shown sees it now."""
        self._instance.store.control[Counter.SHOWN_HEADERS] = headers
        _LOG.debug("showing cut %s", None if view.newest is None else view.newest.generation)

    async def _follow_releases(self, view: SnapshotView) -> None:
        """Have the kernel drop its pages: what was released is to read ENODATA, cached or not."""
        while True:
            await trio.lowlevel.wait_readable(self._instance.released.fd)
            self._instance.released.hush()
            _LOG.debug("the kernel drops its pages, for some blocks are released or free")
            for inode in view.shown_inodes:
                await trio.to_thread.run_sync(session.drop_pages, inode)

    def _present_store(self) -> Store:
        """The store as opened by the supervisor, if need be with the header and the maps of a later cut."""
        return self._instance.store.present(writable=False)

    def _on_damage(self, generation: int, what: str) -> None:
        self._tell(TellDamage(generation=generation, what=what))

    def _tell(self, message: Request[Any]) -> None:
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            # Once: who reads a damaged snapshot from end to end is told of each block by what he gets.
            if not self._is_behind:
                _LOG.warning("the live server is slow to listen: not all is told (%s)", message.op)
            self._is_behind = True

    async def _tell_live_server(self) -> None:
        async for message in self._to_tell:
            self._is_behind &= self._to_tell.statistics().current_buffer_used > 0
            if isinstance(message, Release):
                message = replace(message, deadline_s=deadline_in(_RELEASE_S))
            try:
                await trio.to_thread.run_sync(request, self._instance.store.path, message)
            except SnapfsError as error:
                _LOG.error("the live server could not be told (%s): %s", message.op, error)
