"""The servers that died: when each is started again, and what is told of it until it is back."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Final

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import NoteServer
from snapfs.servers.instance import COMPACTOR, SNAPSHOT, Instance
from snapfs.servers.restarts import Restarts
from snapfs.supervising.running import Running
from snapfs.system.service_manager import tell_status

_LOG = logging.getLogger(__name__)
_TELL_TIMEOUT_S: Final = 2.0
# Of those that can be: without the live server there is no instance.
_TROUBLES: Final = {
    SNAPSHOT: "the snapshot server died: the snapshot cannot be read until it is started again",
    COMPACTOR: "the compactor died: the side buffer is full sooner until it is started again",
}


class Missing:
    """The service manager and the live server, for the status, are told who is missing, and when all are back."""

    def __init__(self, instance: Instance, running: Running) -> None:
        self._instance, self._running = instance, running
        self._restarts = {name: Restarts() for name in _TROUBLES}
        # When to start the servers that are missing, and what is wrong as long as they are.
        self._due_s: dict[str, float] = {}
        self._troubles: dict[str, str] = {}

    def can_be(self, name: str) -> bool:
        """Whether the instance goes on without it for a while."""
        return name in _TROUBLES

    def replace(self, name: str, how: str) -> None:
        """It died, as `how` says: start it again, now or when it is due; nothing else waits for it."""
        wait_s = self._restarts[name].take(time.monotonic())
        self._due_s[name] = time.monotonic() + wait_s
        title = "the compactor" if name == COMPACTOR else f"the {name} server"
        when = f"in {wait_s:.0f} s, for it died often" if wait_s else "again"
        _LOG.error("%s %s; it is started %s", title, how, when)
        self._note(name, _TROUBLES[name])

    @property
    def wait_s(self) -> float | None:
        """Until the next one is due; None when there is none."""
        return max(0.0, min(self._due_s.values()) - time.monotonic()) if self._due_s else None

    def start_due(self) -> None:
        for name, due_s in list(self._due_s.items()):
            if due_s <= time.monotonic():
                del self._due_s[name]
                self._running.start(name)
                # It never says that it is ready.
                if name == COMPACTOR:
                    self.note_back(name)

    def note_back(self, name: str) -> None:
        """It answers again."""
        self._note(name, None)

    def _note(self, name: str, trouble: str | None) -> None:
        if trouble is None:
            self._troubles.pop(name, None)
        else:
            self._troubles[name] = trouble
        tell_status("; ".join(self._troubles.values()) or self._instance.summary)
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, NoteServer(name, trouble), _TELL_TIMEOUT_S)
