"""Reverting the live image to a snapshot, as the live server does it.

    close-live   nobody has the live file open, and from here on nobody opens it; what the kernel held is in the
                 image; the target can be read, and is not deleted
    (a cut)      of what was since, over the same connection, so that nothing is written between it and the revert
    revert       see `cow.Revert`; goes on also when nobody waits for its answer any more

The live file is open to all again when the client has closed its connection, unless the revert has begun and is not
done: then the store has a note of it (`half_way`), and until it is gone the file stays closed, no cut is taken,
nothing is released, and the target is not deleted. So it is for the servers of the next mount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from cow import (
    BlockReleased,
    BufferFull,
    CowError,
    LiveEngine,
    Revert,
    SnapshotReader,
    State,
    read_revert_note,
)
from snapfs.errors import SnapfsError
from snapfs.fuse import session
from snapfs.fuse.live_view import LiveView
from snapfs.fuse.view import IMAGE_INODE
from snapfs.protocol import CloseLive, Reverted, RevertTo
from snapfs.servers.control import Client
from snapfs.servers.half_way import target_of
from snapfs.servers.instance import LIVE, Instance
from snapfs.servers.shown_cuts import ShownCut, shown_cut
from snapfs.servers.turns import Turns

_LOG = logging.getLogger(__name__)
# The kernel tells of a descriptor that was closed a little later.
_CLOSING_S, _LOOK_S = 2.0, 0.01
_STATES: Final = {State.OVERFLOWED: "has overflowed", State.DAMAGED: "is damaged"}


class _Ending(Exception):
    """The server was told to end."""


class Reverts:
    """Of one instance, one at a time, by the same turns as cuts."""

    def __init__(self, instance: Instance, engine: LiveEngine, view: LiveView, turns: Turns) -> None:
        self._instance, self._engine, self._view, self._turns = instance, engine, view, turns
        self._closer: Client | None = None
        # Of whoever has closed it.
        self._target_id = ""
        self._work: Revert | None = None
        self._is_ending = False
        view.is_closed = self.is_half_way

    @property
    def is_half_way(self) -> bool:
        """Whether one is under way, or was stopped."""
        return read_revert_note(self._instance.store.path) is not None

    def check_whole(self) -> None:
        """SnapfsError when the image is half-way back to a snapshot."""
        if sentence := self.sentence():
            raise SnapfsError(f"{sentence}; nothing was done.")

    def check_is_no_target(self, snapshot_id: str) -> None:
        """The same when that is the one, or is to be."""
        if self._closer is not None and self._target_id == snapshot_id:
            raise SnapfsError(f"{self._image} is about to be reverted to that snapshot; try again when it is done.")
        target = target_of(self._instance.store)
        if target is not None and target.id == snapshot_id:
            self.check_whole()

    def sentence(self) -> str | None:
        """What is the matter; None when nothing is."""
        target = target_of(self._instance.store)
        if target is None:
            return None
        if self._work is not None:
            return f"{self._image} is being reverted to {target.shown}, which has to come to its end"
        return target.half_way(self._image, self._live_file)

    def status(self) -> dict[str, Any] | None:
        """Of the one that is under way, or was stopped; in blocks."""
        target, work = target_of(self._instance.store), self._work
        if target is None:
            return None
        return {
            "name": target.name,
            "id": target.id,
            "is_running": work is not None,
            "blocks": None if work is None else work.blocks,
            "done_blocks": None if work is None else work.done_blocks,
        }

    @property
    def _image(self) -> Path:
        return self._instance.present_image_path

    @property
    def _live_file(self) -> Path:
        return self._instance.view_file(LIVE)

    async def close_live(self, request: CloseLive, client: Client) -> None:
        """SnapfsError: somebody uses it, or the target cannot be read."""
        if self._work is not None:
            self.check_whole()
        await self._turns.take(client, request.left_s)
        self._closer, self._target_id, self._view.is_closed = client, request.id, True
        with trio.move_on_after(_CLOSING_S):
            while self._view.opened:
                await trio.sleep(_LOOK_S)
        if self._view.opened:
            raise SnapfsError(f"{self._live_file} is open somewhere; close it and try again (nothing was changed).")
        await trio.to_thread.run_sync(session.write_back)
        # Before the cut, with which one that has no name may end.
        await self._do(request.id, Revert.check)

    async def on_left(self, client: Client) -> None:
        """The client has closed its connection."""
        if self._closer is client:
            self._closer, self._view.is_closed = None, self.is_half_way

    def stop(self) -> None:
        """The server ends: what is under way stops, and its note stays."""
        self._is_ending = True

    async def revert(self, request: RevertTo, client: Client) -> Reverted:
        """Answered when the image is what the snapshot shows. SnapfsError says what is so instead."""
        if self._closer is not client or not self._view.is_closed:
            raise SnapfsError("Only whoever has closed the live view reverts it; try again.")
        facts = shown_cut(self._instance.store, request.id).facts
        _LOG.info("reverting to %s", facts.name or request.id)
        name, written_bytes = await self._do(request.id, self._run)
        await trio.to_thread.run_sync(session.drop_pages, IMAGE_INODE)
        self._closer, self._view.is_closed = None, False
        _LOG.info("reverted to %s, %d bytes were written", name, written_bytes)
        return Reverted(written_bytes)

    async def _do(self, snapshot_id: str, do: Callable[[Revert], None]) -> tuple[str, int]:
        """In a thread, with a revert to that snapshot: its name, and how much was written."""
        shown = shown_cut(self._instance.store, snapshot_id)
        name = shown.facts.name or shown.id
        if shown.cut.numbers.state is not State.ACTIVE:
            what = _STATES.get(shown.cut.numbers.state, "cannot be read")
            raise SnapfsError(self._failure(name, f"the snapshot {what}", "revert to another one"))
        try:
            return name, await trio.to_thread.run_sync(self._with_revert, shown, do)
        except _Ending as error:
            raise SnapfsError(self._failure(name, "snapfs was told to end", "mount the image again")) from error
        except (CowError, OSError) as error:
            level = logging.ERROR if self.is_half_way else logging.INFO
            _LOG.log(level, "the revert to %s has stopped: %s", name, error)
            raise SnapfsError(self._failure(name, *_reason(error))) from error

    def _with_revert(self, shown: ShownCut, do: Callable[[Revert], None]) -> int:
        store = self._instance.store
        cut = store.open_cut(shown.facts.generation, writable=False)
        reader = SnapshotReader(replace(store, cut=cut, older=()), self._instance.image)
        work = Revert(store, self._engine, shown.facts.generation, reader.read_into)
        try:
            do(work)
        finally:
            reader.close()
            cut.let_go()
        return work.written_bytes

    def _run(self, work: Revert) -> None:
        self._work = work
        try:
            work.run(self._check_wanted)
        finally:
            self._work = None

    def _check_wanted(self) -> None:
        if self._is_ending:
            raise _Ending

    def _failure(self, name: str, why: str, way_out: str) -> str:
        """A sentence: what it means depends on whether anything was written."""
        if sentence := self.sentence():
            return f"The revert to {name} has stopped, for {why}: {way_out}. {sentence}."
        return f"{self._image} cannot be reverted to {name}, for {why}; {way_out} (nothing was changed)."


def _reason(error: CowError | OSError) -> tuple[str, str]:
    """Why, and the way out."""
    if isinstance(error, BufferFull):
        return (
            f"the side buffer has no room for what is replaced ({os.strerror(error.errno)})",
            "raise its limit (snapfs limit) or delete another snapshot, and revert again",
        )
    if isinstance(error, BlockReleased):
        return "parts of that snapshot were released", "revert to another one"
    if isinstance(error, OSError):
        return f"the disk refuses ({error.strerror})", "see to that and revert again"
    return f"that snapshot cannot be read ({error})", "revert to another one"
