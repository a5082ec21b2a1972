"""New cuts, as the live server makes them.

A cut is asked for in steps, so that the caller can freeze filesystems around the one that must be short:

    prepare-cut    makes the new cut's files, outside any freeze
    hold           of several images: writes wait until all are cut, and have been told to go on
    cut            the step itself, unless the client has given up: its deadline is over, or it is gone
    cut-facts      after the thaw: what was frozen. Returns when the snapshot view shows the new cut, or why it
                   does not; then the map is computed behind the caller's back (see `maps`)

All of them come over one connection, and nobody else's come in between (see `turns`). Closing it is the end of that,
and drops a cut that was prepared and not taken.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import trio

from cow import (
    Cut,
    CutHeader,
    LiveEngine,
    SnapshotEnded,
    cut_header,
    discard_cut,
    flush_header,
    prepare_cut,
)
from snapfs.errors import SnapfsError
from snapfs.protocol import (
    CutPrepared,
    CutTaken,
    FactsNoted,
    HoldWrites,
    NoteFacts,
    PrepareCut,
    TakeCut,
)
from snapfs.servers.control import Client
from snapfs.servers.dating import Dating
from snapfs.servers.hold import Hold
from snapfs.servers.instance import Instance
from snapfs.servers.list_of_cuts import ListOfCuts
from snapfs.servers.maps import Maps
from snapfs.servers.merges import Merges
from snapfs.servers.notes import write_facts
from snapfs.servers.turns import Turns
from snapfs.stamps import id_text, utc_text

_LOG = logging.getLogger(__name__)


class Cuts:
    """The cuts of one instance, one after the other; `count_writers` says how many descriptors of the live file
    are open for writing."""

    def __init__(
        self,
        instance: Instance,
        engine: LiveEngine,
        maps: Maps,
        dating: Dating,
        turns: Turns,
        list_of_cuts: ListOfCuts,
        merges: Merges,
        count_writers: Callable[[], int],
    ) -> None:
        self._instance, self._engine, self._maps = instance, engine, maps
        self._dating, self._turns, self._list, self._merges = dating, turns, list_of_cuts, merges
        self._count_writers = count_writers
        self._prepared: Cut | None = None
        # The one before the present one, as long as it is not noted what has changed since.
        self._before: Cut | None = None
        # What nobody needs any more, until nobody is frozen any more: to remove it takes time.
        self._gone: list[Cut] = []
        self._hold: Hold | None = None
        # One with a name that was taken while others of its group may not have been.
        self._half: CutHeader | None = None
        self._name = ""

    @property
    def _path(self) -> Path:
        return self._instance.store.cut.path

    async def prepare(self, request: PrepareCut, client: Client) -> CutPrepared:
        await self._turns.take(client, request.left_s)
        self._list.check_takes(request.name)
        self._check_image()
        self._check_store()
        await self._drop_prepared()
        await self._let_go()
        try:
            self._prepared = await trio.to_thread.run_sync(prepare_cut, self._instance.store)
        except OSError as error:
            raise self._list.refusal(error) from error
        self._name = request.name
        _LOG.debug("cut %d is prepared", self._prepared.generation)
        return CutPrepared(self._prepared.generation)

    def _check_image(self) -> None:
        try:
            self._instance.image.check_whole()
        except OSError as error:
            path = self._instance.image_path
            raise SnapfsError(
                f"{path} was cut short, so there is no whole image to take a cut of; unmount it and restore it.",
                path=path,
            ) from error

    def _check_store(self) -> None:
        store = self._instance.store
        if not store.can_hold_a_cut:
            raise SnapfsError(
                f"Files of the store {self._instance.store_path} were cut short, so it can hold no further cut; "
                "unmount the image and mount it again."
            )

    def _prepared_for(self, client: Client, generation: int) -> Cut:
        cut = self._prepared
        if not self._turns.is_of(client) or cut is None or cut.generation != generation:
            raise SnapfsError("Nothing is prepared for this cut; try again.")
        return cut

    async def hold(self, request: HoldWrites, client: Client) -> None:
        self._prepared_for(client, request.generation)
        await self._resume()
        try:
            self._hold = await trio.to_thread.run_sync(Hold, self._engine, request.left_s)
        except OSError as error:
            raise self._list.refusal(error) from error
        if client.is_gone:
            await self._resume()

    async def resume(self, client: Client) -> None:
        """All have been cut, or the client does himself what is to be done."""
        if self._turns.is_of(client):
            self._half = None
            await self._resume()

    async def _resume(self) -> None:
        if self._hold is not None:
            hold, self._hold = self._hold, None
            await trio.to_thread.run_sync(hold.end)

    async def cut(self, request: TakeCut, client: Client) -> CutTaken:
        cut, hold = self._prepared_for(client, request.generation), self._hold
        before = self._instance.store.hold_cut()
        started_ns = time.monotonic_ns()
        facts = self._facts_of(cut)

        def check_wanted() -> None:
            request.check_time()
            client.check_waits()
            if hold is not None:
                hold.check()

        try:
            self._gone = await trio.to_thread.run_sync(self._engine.begin_cut, cut, facts, check_wanted)
        except BaseException as error:
            before.let_go()
            if isinstance(error, OSError):
                raise self._list.refusal(error) from error
            raise
        self._before = before
        self._prepared, self._half = None, facts if hold is not None and facts.name else None
        self._maps.forget()
        cut_ms = (time.monotonic_ns() - started_ns) / 1e6
        open_for_writing = self._count_writers()
        _LOG.debug("cut %d is taken, in %.1f ms; %d have it open", cut.generation, cut_ms, open_for_writing)
        self._instance.new_cut.ring()
        self._merges.look_again()
        return CutTaken(
            id=id_text(facts.snapshot_id),
            taken_at=utc_text(facts.taken_at_ns),
            cut_ms=cut_ms,
            open_for_writing=open_for_writing,
        )

    def _facts_of(self, cut: Cut) -> CutHeader:
        mode, uid, gid = self._instance.permissions.now
        facts = cut_header(self._instance.image, cut.generation, self._name)
        return replace(facts, image_mode=mode, image_uid=uid, image_gid=gid)

    async def note_facts(self, request: NoteFacts, client: Client) -> FactsNoted:
        if not self._turns.is_of(client):
            raise SnapfsError("Only whoever took the cut knows what was frozen for it; take another one.")
        shown = await self._list.until_shown()
        self._maps.note(request.facts)
        # Before the times of the cut, which matter less, take the last room there is; once more when the cut before
        # has given back its own.
        is_noted = await self._write_facts(request, is_last=False)
        await self._let_go()
        if not is_noted:
            await self._write_facts(request, is_last=True)
        if shown:
            self._maps.begin(request.facts)
        return FactsNoted(shown)

    async def _write_facts(self, request: NoteFacts, *, is_last: bool) -> bool:
        """Whether they are on the disk."""
        store = self._instance.store
        try:
            # The cut itself had no time for it.
            await trio.to_thread.run_sync(flush_header, store.path, store.files)
            await trio.to_thread.run_sync(write_facts, self._path, request.facts, store.files)
        except OSError as error:
            if is_last:
                _LOG.warning("what was frozen is known only until the end: %s", error.strerror)
            return False
        return True

    async def on_left(self, client: Client) -> None:
        """The client has closed its connection."""
        if not self._turns.is_of(client):
            return
        try:
            await self._resume()
            await self._take_back_half()
            await self._drop_prepared()
            await self._let_go()
        finally:
            self._turns.give_back(client)

    async def _take_back_half(self) -> None:
        """Who would have said that it is one of several, or that it is none, has ended."""
        if self._half is not None:
            half, self._half = self._half, None
            _LOG.warning("the snapshot %s is taken back: whoever took it with others has ended", half.name)
            with contextlib.suppress(SnapshotEnded, OSError):
                await self._list.forget(half)

    async def _drop_prepared(self) -> None:
        if self._prepared is not None:
            cut, self._prepared = self._prepared, None
            await trio.to_thread.run_sync(discard_cut, cut)

    async def _let_go(self) -> None:
        if self._before is not None:
            before, self._before = self._before, None
            with self._instance.store.cut.held() as cut:
                # Its map may just be taken over.
                await self._maps.until_done()
                await self._dating.follow(cut, before)
            await trio.to_thread.run_sync(before.let_go)
        while self._gone:
            cut = self._gone.pop()
            _LOG.debug("letting go of cut %d", cut.generation)
            await trio.to_thread.run_sync(cut.let_go)
