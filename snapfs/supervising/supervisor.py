"""The supervisor's turns: it waits for all that can happen to an instance, and says what follows from it."""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Callable

from snapfs.events.queue import EventQueue
from snapfs.servers.instance import COMPACTOR, LIVE, SNAPSHOT, Instance
from snapfs.servers.pipe import GONE, READY, event_of, sentence_of
from snapfs.supervising.caller import Caller
from snapfs.supervising.ending import InstanceEnd
from snapfs.supervising.missing import Missing
from snapfs.supervising.running import Running
from snapfs.supervising.signals import ending_signals
from snapfs.supervising.views import Views

_LOG = logging.getLogger(__name__)


class Supervisor:
    """`report` is called once, with "" when both views answer or with the sentence why they do not.

    `caller_fd` is the end of a pipe on which that is reported: when nobody has its other end any more before,
    everything is undone. `is_taken_back` says at the end whether the caller did so with what was reported.
    """

    def __init__(
        self,
        instance: Instance,
        report: Callable[[str], None],
        caller_fd: int | None = None,
        is_taken_back: Callable[[], bool] = lambda: False,
    ) -> None:
        self._instance, self._is_taken_back = instance, is_taken_back
        self._selector = selectors.DefaultSelector()
        self._events = EventQueue(instance.options.on_event, self._selector, self._known)
        self._caller = Caller(report, caller_fd, self._selector, lambda: self._ending.begin())
        self._running = Running(instance, self._selector, self._on_line, self._on_end)
        self._missing = Missing(instance, self._running)
        self._views = Views(instance, self._running, lambda: self._ending.begin())
        self._ending = InstanceEnd(instance, self._running, self._views, self._events)
        self._ready: set[str] = set()
        # Both views, and the caller was told so.
        self._have_answered = False

    def run(self) -> int:
        """Start, watch and end the servers; the exit code of the daemon."""
        self._instance.supervisor_pid = os.getpid()
        with ending_signals(self._selector, self._ending.begin_on_signal):
            try:
                self._caller.watch()
                for name in (LIVE, SNAPSHOT, COMPACTOR):
                    self._running.start(name)
                while not self._ending.has_begun:
                    self._turn()
            finally:
                self._ending.stop_servers()
                self._events.finish()
            # Still within: a second signal is not to leave half a store. A snapshot that was carried on, and never
            # shown to anybody who was told, is still to be carried on.
            was_mounted = self._have_answered and not self._is_taken_back()
            return self._ending.finish(is_ours=was_mounted or self._instance.store.control.is_unseen)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._missing.wait_s):
            # An earlier one of them may have closed it, and opened another under its number.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        if not self._ending.has_begun:
            self._missing.start_due()

    def _on_line(self, name: str, line: bytes) -> None:
        """A server said it."""
        if line == READY:
            self._on_ready(name)
        elif line == GONE:
            self._views.note_gone(name)
        elif (facts := event_of(line)) is not None:
            self._events.add(facts)
        else:
            self._tell(sentence_of(line) or f"The {name} server failed; its log says how.")

    def _on_ready(self, name: str) -> None:
        self._ready.add(name)
        if self._caller.is_told:
            self._missing.note_back(name)
        elif self._ready >= {LIVE, SNAPSHOT}:
            self._tell("")
            if self._ending.has_begun:
                return
            self._have_answered = True
            # Whoever is started from here on opens the cut that is present then.
            self._instance.store.let_go_older()
            self._instance.store.cut.let_go()

    def _on_end(self, name: str, code: int) -> None:
        """A server's process ended without having been told to."""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if self._missing.can_be(name) and (self._caller.is_told or name == COMPACTOR):
            if name != SNAPSHOT or self._views.clear_snapshot():
                self._missing.replace(name, how)
            return
        _LOG.error("the %s server %s; the views end, the store is kept", name, how)
        self._tell(f"The {name} server {how}; its log says more.")
        self._ending.begin_crashed()

    def _tell(self, sentence: str) -> None:
        if self._caller.tell(sentence) and sentence:
            self._ending.begin_crashed()

    def _known(self) -> dict[str, str]:
        """What hooks are told with every event."""
        instance = self._instance
        return {
            "SNAPFS_IMAGE": str(instance.present_image_path),
            "SNAPFS_LIVE": str(instance.point(LIVE)),
            "SNAPFS_SNAP": str(instance.point(SNAPSHOT)),
            "SNAPFS_STORE": str(instance.store_path),
        }
