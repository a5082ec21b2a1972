"""The snapshot server: FUSE on SNAP. It only reads the shared state."""

from __future__ import annotations

import logging
import os
from functools import partial

import pyfuse3
import trio

from cow.snapshot import SnapshotReader
from snapfs.control import request
from snapfs.errors import SnapfsError
from snapfs.fuse.snapshot_view import SnapshotView
from snapfs.servers.instance import Instance
from snapfs.servers.session import become_server, mount_view, serve_view, until_stopped

_LOG = logging.getLogger(__name__)


def run_snapshot_server(instance: Instance, pipe_fd: int) -> int:
    """Serve until SIGTERM; the process's exit code."""
    become_server("snapshot", instance.supervisor_pid)
    return trio.run(SnapshotServer(instance, pipe_fd).run)


class SnapshotServer:
    """One task serves the view; damage that a read finds is passed on to the live server by another."""

    def __init__(self, instance: Instance, pipe_fd: int) -> None:
        self._instance, self._pipe_fd = instance, pipe_fd
        self._send_damage, self._damage = trio.open_memory_channel[str](16)

    async def run(self) -> int:
        instance = self._instance
        view = SnapshotView(
            lambda: SnapshotReader(instance.store, instance.image),
            instance.store.header,
            os.fsencode(instance.view_name),
            os.fsencode(instance.store.path),
            self._on_damage,
        )
        mount_view(view, instance.snap, instance.image_path, (*instance.options.fuse_options, "ro"))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_view)
                nursery.start_soon(self._report_damage)
                await until_stopped()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)
        return 0

    async def _serve_view(self) -> None:
        await serve_view(self._instance.snap, self._pipe_fd, foreground=self._instance.options.foreground)

    def _on_damage(self, what: str) -> None:
        try:
            self._send_damage.send_nowait(what)
        except trio.WouldBlock:
            return  # the first ones tell enough

    async def _report_damage(self) -> None:
        async for what in self._damage:
            try:
                await trio.to_thread.run_sync(partial(request, self._instance.store.path, "damage", what=what))
            except SnapfsError as error:
                _LOG.error("%s (and nobody could be told: %s)", what, error)
