"""What is wrong with an instance now, in sentences: in the log when it happens, in its status as long as it is so.

The log may be on the very disk that is full, so what status says must not depend on it.
"""

from __future__ import annotations

import logging
import os

from cow import Counter, Event, EventKind, Store
from snapfs.protocol import NoteServer, TellDamage
from snapfs.stamps import utc_text
from snapfs.system.lost_snapshots import note_lost

_LOG = logging.getLogger(__name__)
_MAX_LOSSES_TOLD = 100


class Trouble:
    """Of the present cut, of writers that wait, and of servers that are not running."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # With the generation of the cut that it is about.
        self._last_error: tuple[int, str] | None = None
        self._losses_told = 0
        # The generations of cuts in which somebody met damage.
        self._damaged = set[int]()
        self._why_waiting: str | None = None
        # Other servers that are not running, with a sentence each.
        self._missing: dict[str, str] = {}

    def sentence(self) -> str | None:
        """What is wrong now; None when nothing is."""
        is_waiting = self._store.control[Counter.PRESSED]
        waiting = self._why_waiting if is_waiting else None
        return "; ".join(filter(None, (self._present_error, waiting, *self._missing.values()))) or None

    @property
    def _present_error(self) -> str | None:
        """What is wrong with the present cut."""
        if self._last_error is None or self._last_error[0] != self._store.cut.generation:
            return None
        return self._last_error[1]

    def on_event(self, event: Event) -> None:
        """What the engine tells, in whatever thread."""
        if not event.is_on_disk:
            # Before the write that takes something from them goes on: what the newest loses, all lose.
            for cut in self._store.header.cuts:
                if event.generation in (0, cut.generation):
                    note_lost(cut.snapshot_id)
        if event.kind is EventKind.BUFFER_FILLING:
            _LOG.warning("the side buffer has reached %d %% of its limit", event.value)
        elif event.kind is EventKind.WAITING:
            self._why_waiting = f"the side buffer is full ({os.strerror(event.value)}): live writes wait"
            _LOG.warning("%s", self._why_waiting)
        elif event.kind is EventKind.LOST:
            self._note_lost(event)
        elif event.kind is EventKind.GAVE_WAY:
            self._tell_gave_way(event)
        elif event.kind is EventKind.CUT_SHORT:
            self._lose("files of the store were cut short or cannot be read: the snapshot is lost")
        else:
            self._lose(f"the side buffer is full ({os.strerror(event.value)}): the snapshot is lost")

    def _tell_gave_way(self, event: Event) -> None:
        """It is over and is listed as that; those after it are as before."""
        facts = self._store.header.cut_of(event.generation)
        name = "" if facts is None else facts.name or utc_text(facts.taken_at_ns)
        _LOG.error("the side buffer is full (%s): the oldest snapshot (%s) is lost", os.strerror(event.value), name)

    def _lose(self, why: str) -> None:
        _LOG.error("%s; the live view goes on", why)
        self._last_error = (self._store.cut.generation, why)

    def _note_lost(self, event: Event) -> None:
        """The log has every place, up to a bound; a disk that dies altogether must not fill another one."""
        self._losses_told += 1
        where = f"{event.length} bytes at {event.offset} of the image cannot be read ({os.strerror(event.value)})"
        if self._losses_told <= _MAX_LOSSES_TOLD:
            _LOG.error("%s: they are lost to the snapshot; the live view goes on", where)
        if self._losses_told == _MAX_LOSSES_TOLD:
            _LOG.error("further places that are lost are only counted: see the status")
        if self._present_error is None:
            self._last_error = (self._store.cut.generation, f"{where}: what was there is lost to the snapshot")

    def note_damage(self, request: TellDamage) -> None:
        """A reader of a snapshot has found it; the first is said, the rest is as bad."""
        facts = self._store.header.cut_of(request.generation)
        if facts is None or request.generation in self._damaged:
            return
        self._damaged.add(request.generation)
        if request.generation != self._store.cut.generation:
            _LOG.error("the store is damaged, and with it the snapshot %s: %s", facts.name, request.what)
        elif self._present_error is None:
            _LOG.error("the store is damaged: %s", request.what)
            self._last_error = (request.generation, f"the store is damaged: {request.what}")

    def note_server(self, request: NoteServer) -> None:
        """Another server is not running, or is again."""
        if request.trouble is None:
            self._missing.pop(request.name, None)
        else:
            self._missing[request.name] = request.trouble
