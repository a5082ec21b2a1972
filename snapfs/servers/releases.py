"""Releasing blocks of the snapshot, as the live server does it when it is asked to."""

from __future__ import annotations

import logging

import trio

from cow import LiveEngine, SnapshotEnded
from snapfs.errors import SnapfsError
from snapfs.protocol import Release, Released
from snapfs.servers.instance import Instance
from snapfs.servers.maps import Maps
from snapfs.stamps import id_text

_LOG = logging.getLogger(__name__)


class Releases:
    """In threads; one at a time."""

    def __init__(self, instance: Instance, engine: LiveEngine, maps: Maps) -> None:
        self._instance, self._engine, self._maps = instance, engine, maps
        self._turn = trio.Lock()

    async def release(self, request: Release) -> Released:
        """Whole blocks of the range only. SnapfsError: the snapshot has ended."""
        self._check_present(request)
        first, end = self._engine.geometry.inner_span(request.offset, request.length)
        if first >= end:
            return Released(0)
        await self._maps.until_done()
        async with self._turn:
            # It may have waited for long.
            self._check_present(request)
            request.check_time()
            try:
                count = await trio.to_thread.run_sync(self._engine.release, first, end, self._instance.store.cut)
            except SnapshotEnded as error:
                raise _has_ended(request) from error
        _LOG.debug("released %d of the blocks %d to %d", count, first, end - 1)
        self._instance.released.ring()
        return Released(count)

    def _check_present(self, request: Release) -> None:
        store = self._instance.store
        if (request.generation, request.id) != (store.cut.generation, id_text(store.header.cut.snapshot_id)):
            raise _has_ended(request)


def _has_ended(request: Release) -> SnapfsError:
    return SnapfsError(f"The snapshot {request.id} has ended; nothing was released.")
