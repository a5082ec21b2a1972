"""The end: whether it has begun, whether anything died, the order in which all goes, and whether the store does."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.events.queue import EventQueue
from snapfs.protocol import ExpectEnd, WriteOut, deadline_in
from snapfs.servers.instance import COMPACTOR, LIVE, SNAPSHOT, Instance
from snapfs.servers.pipe import SERVED, event_of
from snapfs.servers.process import STOP_SIGNAL
from snapfs.servers.start import Server
from snapfs.supervising.running import Running
from snapfs.supervising.views import Views
from snapfs.system.processes import readable
from snapfs.system.service_manager import tell_stopping
from snapfs.system.store_files import remove_held

_LOG = logging.getLogger(__name__)
# The live server has a limit of its own for writing out, which is a little less.
_FLUSH_TIMEOUT_S: Final = 65.0
_SERVER_TIMEOUT_S: Final = 30.0


class InstanceEnd:
    """Begun by whoever finds a reason; then, when nothing else is done any more: `stop_servers`, `finish`."""

    def __init__(self, instance: Instance, running: Running, views: Views, events: EventQueue) -> None:
        self._instance, self._running, self._views, self._events = instance, running, views, events
        self.has_begun = self._crashed = False

    def begin(self) -> None:
        self.has_begun = True

    def begin_crashed(self) -> None:
        """Not as it should: the store is kept."""
        self._crashed = self.has_begun = True

    def begin_on_signal(self, number: int) -> None:
        """Once what was written to the live view is in the image."""
        _LOG.info("ending on signal %d", number)
        tell_stopping("writing out what is held of the live view")
        self._running.wake()
        store = self._instance.store.path
        with contextlib.suppress(SnapfsError):
            request(store, ExpectEnd())
        try:
            # Before the views are unmounted: then nobody who still writes is cut off half-way.
            request(store, WriteOut(deadline_s=deadline_in(_FLUSH_TIMEOUT_S)))
        except SnapfsError as error:
            _LOG.error("what was written to the live view may not be in the image: %s", error.sentence)
        self.has_begun = True

    def stop_servers(self) -> None:
        """And unmount the views."""
        tell_stopping("ending the views")
        self._running.wake()
        self._views.unmount_anyway()
        if live := self._running.get(LIVE):
            self._end_serving(live)
        for name in (COMPACTOR, SNAPSHOT, LIVE):
            server = self._running.get(name)
            if server is not None:
                self._stop(server)
        # One that was just starting may have mounted its view after the first look.
        self._views.unmount_anyway()

    def _end_serving(self, live: Server) -> None:
        """Have the live server end what is under way, which may need the room that the compactor makes."""
        if self._running.get(COMPACTOR) is None:
            with contextlib.suppress(SnapfsError):
                request(self._instance.store.path, ExpectEnd(compactor_is_gone=True))
        live.stop()
        lines: list[bytes] = []
        while SERVED not in lines:
            if live.pipe_fd not in readable([live.pipe_fd, live.pidfd]):
                return
            lines = live.heard()
            if not lines:
                return
            for facts in filter(None, map(event_of, lines)):
                self._events.add(facts)

    def _stop(self, server: Server) -> None:
        """The signal, and patience with the two that may still have data to write."""
        _LOG.debug("stopping %s", server.name)
        server.stop()
        if server.name == SNAPSHOT and not readable([server.pidfd], _SERVER_TIMEOUT_S):
            server.kill()
        code = self._running.end_of(server)
        # Of the very signal one ends that had not begun to serve.
        if code not in (0, -STOP_SIGNAL):
            _LOG.error("the %s server ended with code %d", server.name, code)
            self._crashed = True

    def finish(self, is_ours: bool) -> int:
        """The exit code of the daemon. The store goes if it `is_ours` to remove, unless it is to be kept."""
        _LOG.debug("every server has ended")
        instance = self._instance
        if not instance.keeps_store and not self._crashed and is_ours:
            remove_held(instance.store.path)
        return 1 if self._crashed else 0
