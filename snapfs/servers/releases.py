"""Releasing blocks of the snapshot, as the live server does it when it is asked to."""

from __future__ import annotations

import logging

import trio

from cow import Cut, LiveEngine, SnapshotEnded
from snapfs.errors import SnapfsError
from snapfs.protocol import Release, Released
from snapfs.servers.instance import Instance
from snapfs.servers.maps import Maps
from snapfs.servers.shown_cuts import shown_cut

_LOG = logging.getLogger(__name__)


class Releases:
    """In threads; one at a time."""

    def __init__(self, instance: Instance, engine: LiveEngine, maps: Maps) -> None:
        self._instance, self._engine, self._maps = instance, engine, maps
        self._turn = trio.Lock()

    async def release(self, request: Release) -> Released:
        """Whole blocks of the range only. SnapfsError: the snapshot has ended."""
        cut = self._cut_of(request)
        first, end = self._engine.geometry.inner_span(request.offset, request.length)
        if first >= end:
            return Released(0)
        if cut is self._instance.store.cut:
            await self._maps.until_done()
        async with self._turn:
            # It may have waited for long.
            cut = self._cut_of(request)
            request.check_time()
            try:
                count = await trio.to_thread.run_sync(self._engine.cuts.release, first, end, cut)
            except SnapshotEnded as error:
                raise SnapfsError(f"The snapshot {request.id} has ended; nothing was released.") from error
        _LOG.debug("cut %d: released %d of the blocks %d to %d", cut.generation, count, first, end - 1)
        self._instance.released.ring()
        return Released(count)

    def _cut_of(self, request: Release) -> Cut:
        return shown_cut(self._instance.store, request.id).cut
