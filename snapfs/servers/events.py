"""What the live server tells the supervisor for the hooks (`snapfs.events`): a line for each event.

It is told from whatever thread it happens in, and never waited for: of a pipe that is full the event is dropped. What
goes on happening, as blocks that are lost, is told once for a snapshot.
"""

from __future__ import annotations

import logging
import os
import select
from typing import Final

from cow import Event, EventKind, Store
from snapfs.servers.pipe import event_line, tell
from snapfs.stamps import id_text, utc_text

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_CHARS: Final = 500
_NAMES: Final = {
    EventKind.BUFFER_FILLING: "buffer-filling",
    EventKind.WAITING: "writes-wait",
    EventKind.OVERFLOW: "overflowed",
    EventKind.GAVE_WAY: "overflowed",
    EventKind.LOST: "lost",
    EventKind.CUT_SHORT: "damaged",
}


class Events:
    """`is_wanted`: whether there are hooks at all."""

    def __init__(self, store: Store, pipe_fd: int, *, is_wanted: bool) -> None:
        self._store, self._pipe_fd, self._is_wanted = store, pipe_fd, is_wanted
        # The generations of cuts of which it was told already.
        self._told: set[tuple[str, int]] = set()

    def on_event(self, event: Event) -> None:
        """What the engine tells."""
        generation, name = event.generation or self._store.cut.generation, _NAMES[event.kind]
        if event.kind is EventKind.BUFFER_FILLING:
            more = {"SNAPFS_PERCENT": str(event.value)}
            self._tell(name, generation, f"the side buffer has reached {event.value} % of its limit", more)
        elif event.kind is EventKind.LOST:
            where = f"{event.length} bytes at {event.offset} of the image cannot be read"
            self._tell_once(name, generation, f"{where} ({os.strerror(event.value)}) and are lost to the snapshot")
        elif event.kind is EventKind.CUT_SHORT:
            self.on_damage(generation, "files of the store were cut short or cannot be read")
        elif event.kind is EventKind.WAITING:
            self._tell(name, generation, f"the side buffer is full ({os.strerror(event.value)}): live writes wait")
        else:
            self._tell(name, generation, f"the side buffer is full ({os.strerror(event.value)})")

    def on_damage(self, generation: int, what: str) -> None:
        """Somebody has met damage in the snapshot of that generation."""
        self._tell_once(_NAMES[EventKind.CUT_SHORT], generation, f"the store is damaged: {what}")

    def _tell_once(self, name: str, generation: int, message: str) -> None:
        if (name, generation) not in self._told:
            self._told.add((name, generation))
            self._tell(name, generation, message)

    def _tell(self, name: str, generation: int, message: str, more: dict[str, str] | None = None) -> None:
        if not self._is_wanted:
            return
        told = {"SNAPFS_EVENT": name, "SNAPFS_MESSAGE": message[:_MAX_MESSAGE_CHARS], **(more or {})}
        line = event_line({**told, **self._facts_of(generation)})
        poll = select.poll()
        poll.register(self._pipe_fd, select.POLLOUT)
        # Of a pipe that can be written to a line has room.
        if poll.poll(0):
            tell(self._pipe_fd, line)
        else:
            _LOG.warning("the supervisor hears nothing: no hook is told of %s", name)

    def _facts_of(self, generation: int) -> dict[str, str]:
        facts = self._store.header.cut_of(generation)
        if facts is None:
            return {}
        return {
            "SNAPFS_SNAPSHOT": facts.name,
            "SNAPFS_SNAPSHOT_ID": id_text(facts.snapshot_id),
            "SNAPFS_TAKEN_AT": utc_text(facts.taken_at_ns),
        }
