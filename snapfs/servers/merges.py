"""The merging of what is over and hidden: whether there may be some, and the task that does it."""

from __future__ import annotations

import logging

import trio

from cow import LiveEngine
from snapfs.servers.instance import Instance

_LOG = logging.getLogger(__name__)
_LOOK_S, _AGAIN_S = 0.2, 5.0


class Merges:
    """Of one instance, in a thread, one after the other."""

    def __init__(self, instance: Instance, engine: LiveEngine) -> None:
        self._instance, self._engine = instance, engine
        # Also at the start: what was over before is merged by who comes after.
        self._may_merge = trio.Event()
        self._may_merge.set()

    def look_again(self) -> None:
        """There may be some: a cut was taken, or one is over."""
        self._may_merge.set()

    async def merge_always(self) -> None:
        """Merge what is over and hidden, whenever that can be done: when the compactor has moved all of it."""
        while True:
            await self._may_merge.wait()
            self._may_merge = trio.Event()
            await trio.to_thread.run_sync(self._engine.cuts.settle_again)
            while self._is_any_going():
                try:
                    gone = await trio.to_thread.run_sync(self._engine.cuts.merge)
                except OSError as error:
                    _LOG.warning("a snapshot that is over keeps its space: %s", error.strerror)
                    await trio.sleep(_AGAIN_S)
                    continue
                if gone is None:
                    await trio.sleep(_LOOK_S)
                    continue
                _LOG.debug("cut %d is merged", gone.generation)
                self._instance.new_cut.ring()
                await trio.to_thread.run_sync(gone.let_go)

    def _is_any_going(self) -> bool:
        """The newest stays until there is another."""
        return any(one.is_going for one in self._instance.store.header.cuts[:-1])
