"""New cuts and the map of used blocks, as the live server makes them.

A cut is asked for in steps, so that the caller can freeze filesystems around the one that must be short:

    prepare-cut    makes the new cut's files, outside any freeze
    cut            the step itself, unless the client has given up: its deadline is over, or it is gone
    cut-facts      after the thaw: what was frozen. Returns when the snapshot view shows the new cut, or why it
                   does not; then the map is computed behind the caller's back

All three come over one connection, and nobody else's come in between (see `turns`). Closing it is the end of that,
and drops a cut that was prepared and not taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio
from bitarray import bitarray

from cow import (
    Counter,
    Cut,
    CutCounter,
    Header,
    LiveEngine,
    Protect,
    SnapshotEnded,
    discard_cut,
    flush_header,
    next_header,
    prepare_cut,
)
from snapfs.errors import SnapfsError
from snapfs.protocol import (
    NOTHING_FROZEN,
    CutPrepared,
    CutTaken,
    Facts,
    FactsNoted,
    MapGiven,
    NoteFacts,
    PrepareCut,
    TakeCut,
)
from snapfs.servers.control import Client
from snapfs.servers.instance import SNAPSHOT, Instance
from snapfs.servers.notes import FREE_NAME, read_facts, read_regions, write_facts
from snapfs.servers.report import utc_text
from snapfs.servers.turns import Turns
from snapfs.system.stores import held_fds
from snapfs.system.view_mounts import is_mounted

_LOG = logging.getLogger(__name__)
_SHOW_TIMEOUT_S = 5.0
_LOOK_S = 0.002
_PIECE_BYTES = 1 << 20


class Cuts:
    """The cuts of one instance, one after the other; ``nursery`` runs the computing of maps, and ``count_writers``
    says how many descriptors of the live file are open for writing."""

    def __init__(
        self, instance: Instance, engine: LiveEngine, nursery: trio.Nursery, count_writers: Callable[[], int]
    ) -> None:
        self._instance, self._engine, self._nursery = instance, engine, nursery
        self._count_writers = count_writers
        self._prepared: Cut | None = None
        # The one before the present, until nobody is frozen any more: to remove it takes time.
        self._before: Cut | None = None
        self._turns = Turns()
        self._mapping: trio.CancelScope | None = None
        self._map_done = trio.Event()
        self._map_done.set()
        self._facts = NOTHING_FROZEN
        self.map_state = "none"

    @property
    def _path(self) -> Path:
        return self._instance.store.cut.path

    @property
    def regions(self) -> list[dict[str, Any]]:
        """What the present snapshot consists of, once its map is known."""
        if self.map_state != "ready":
            return []
        return read_regions(self._path) or []

    async def until_mapped(self) -> None:
        """Wait while the map is being computed: what is released meanwhile could not be read for it."""
        await self._map_done.wait()

    def map(self) -> MapGiven:
        """What is known of the present cut's map."""
        free = self._instance.store.cut.free.file.path
        free_file = f"{free.parent.name}/{free.name}" if self.map_state == "ready" else None
        return MapGiven(self.map_state, free_file, tuple(self.regions))

    def report(self) -> dict[str, Any]:
        """What status shows of the present cut."""
        return {"freeze_ms": self._facts.freeze_ms, "map": self.map_state, "regions": self.regions}

    # --- the steps of a cut ----------------------------------------------------------------------------------

    async def prepare(self, request: PrepareCut, client: Client) -> CutPrepared:
        await self._turns.take(client, request.left_s)
        self._check_image()
        self._check_store()
        await self._drop_prepared()
        await self._let_go_before()
        try:
            self._prepared = await trio.to_thread.run_sync(prepare_cut, self._instance.store)
        except OSError as error:
            raise self._refusal(error) from error
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

    def _refusal(self, error: OSError) -> SnapfsError:
        return SnapfsError(
            f"The store {self._instance.store_path} takes no further cut: {error.strerror}; "
            "the snapshot is what it was."
        )

    def _check_store(self) -> None:
        store = self._instance.store
        if not store.can_hold_a_cut:
            raise SnapfsError(
                f"Files of the store {self._instance.store_path} were cut short, so it can hold no further cut; "
                "unmount the image and mount it again."
            )

    async def cut(self, request: TakeCut, client: Client) -> CutTaken:
        cut = self._prepared
        if not self._turns.is_of(client) or cut is None or cut.generation != request.generation:
            raise SnapfsError("Nothing is prepared for this cut; try again.")
        started_ns = time.monotonic_ns()
        header = self._next_header(cut)

        def check_wanted() -> None:
            request.check_time()
            client.check_waits()

        try:
            self._before = await trio.to_thread.run_sync(self._engine.begin_cut, cut, header, check_wanted)
        except OSError as error:
            raise self._refusal(error) from error
        self._prepared = None
        self.cancel_mapping()
        cut_ms = (time.monotonic_ns() - started_ns) / 1e6
        open_for_writing = self._count_writers()
        self._instance.new_cut.ring()
        self._facts, self.map_state = NOTHING_FROZEN, "none"
        return CutTaken(
            id=str(uuid.UUID(bytes=header.cut.snapshot_id)),
            taken_at=utc_text(header.cut.taken_at_ns),
            cut_ms=cut_ms,
            open_for_writing=open_for_writing,
        )

    def _next_header(self, cut: Cut) -> Header:
        mode, uid, gid = self._instance.permissions.now
        header = next_header(self._instance.store, self._instance.image, cut)
        return replace(header, cuts=(replace(header.cut, image_mode=mode, image_uid=uid, image_gid=gid),))

    async def note_facts(self, request: NoteFacts, client: Client) -> FactsNoted:
        if not self._turns.is_of(client):
            raise SnapfsError("Only whoever took the cut knows what was frozen for it; take another one.")
        shown = await self._until_shown(request.generation)
        await self._let_go_before()
        self._facts = request.facts
        store = self._instance.store
        try:
            # The cut itself had no time for it.
            await trio.to_thread.run_sync(flush_header, store.path, store.files)
            await trio.to_thread.run_sync(write_facts, self._path, request.facts, store.files)
        except OSError as error:
            _LOG.warning("what was frozen is known only until the end: %s", error.strerror)
        if shown:
            self.start_mapping()
        return FactsNoted(shown)

    async def on_left(self, client: Client) -> None:
        """The client has closed its connection."""
        if not self._turns.is_of(client):
            return
        try:
            await self._drop_prepared()
            await self._let_go_before()
        finally:
            self._turns.give_back(client)

    async def _until_shown(self, generation: int) -> bool:
        """Whether the snapshot view shows the cut in time. One whose server is dead shows it when that is back."""
        with trio.move_on_after(_SHOW_TIMEOUT_S):
            while self._instance.store.control[Counter.SHOWN_GENERATION] != generation:
                await trio.sleep(_LOOK_S)
            return True
        return False

    async def _drop_prepared(self) -> None:
        if self._prepared is not None:
            cut, self._prepared = self._prepared, None
            await trio.to_thread.run_sync(discard_cut, cut)

    async def _let_go_before(self) -> None:
        if self._before is not None:
            cut, self._before = self._before, None
            await trio.to_thread.run_sync(cut.let_go)

    # --- the map ---------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """At the start: carry the map of a snapshot that is carried on, or compute that of a new one."""
        store = self._instance.store
        if store.header.protect is not Protect.USED or self.map_state in ("ready", "computing"):
            return
        # Nothing can have been mounted from a view that did not exist.
        facts: Facts | None = NOTHING_FROZEN if store.header.cut.generation == 1 else read_facts(self._path)
        self._facts = facts or NOTHING_FROZEN
        if store.cut.numbers[CutCounter.FREE_BLOCKS] and read_regions(self._path) is not None:
            self.map_state = "ready"
        elif facts is not None:
            self.start_mapping()
        else:
            _LOG.info("nobody knows any more what was frozen for the snapshot, so every block counts as used")

    def start_mapping(self) -> None:
        """Compute the map of the present cut, if it is to protect only used blocks."""
        if self._instance.store.header.protect is Protect.USED and self.map_state not in ("ready", "computing"):
            self._map_done = trio.Event()
            self.map_state = "computing"
            self._mapping = trio.CancelScope()
            self._nursery.start_soon(self._make_map, self._mapping, self._map_done)

    def cancel_mapping(self) -> None:
        """Compute no map any more."""
        if self._mapping is not None:
            self._mapping.cancel()

    async def stop_mapping(self) -> None:
        """Return when no map is being computed; ``resume`` begins again."""
        self.cancel_mapping()
        await self._map_done.wait()

    async def _make_map(self, scope: trio.CancelScope, done: trio.Event) -> None:
        cut, state, what_failed = self._instance.store.hold_cut(), "none", ""
        path = cut.path
        try:
            with scope:
                state = "failed"
                what_failed = await self._run_mapper(path)
                if not what_failed:
                    await trio.to_thread.run_sync(self._apply, cut, path / FREE_NAME)
                    # What the kernel holds of free blocks was read before they were known, and is no zeros.
                    self._instance.released.ring()
                    state = "ready"
        except OSError as error:
            what_failed = error.strerror or str(error)
        finally:
            # A cut that ended meanwhile, or whose view went, has no map, and its mapper was right to fail.
            if cut is self._instance.store.cut:
                self.map_state = "none" if scope.cancelled_caught else state
                if what_failed and is_mounted(self._instance.places.view(SNAPSHOT)):
                    _LOG.warning("the map of used blocks failed, so every block is preserved: %s", what_failed)
            if self._mapping is scope:
                self._mapping = None
            done.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(cut.let_go)

    async def _run_mapper(self, path: Path) -> str:
        """Why it failed, "" when it did not."""
        instance = self._instance
        view = instance.places.view(SNAPSHOT)
        if view is None:
            return "the snapshot view is not mounted"
        # Names that others chose are no words of their own, or they might pass for options.
        command = [sys.executable, "-m", "snapfs.servers.mapper", view.device, f"./{instance.view_name}", str(path)]
        command += ["--block-bytes", str(instance.store.header.block_bytes)]
        if instance.sector_bytes:
            command += ["--sector-bytes", str(instance.sector_bytes)]
        if instance.options.skip_swap:
            command.append("--skip-swap")
        for offset in self._facts.frozen_offsets:
            command += ["--frozen", str(offset)]
        for entry in self._facts.not_frozen:
            # No known place: no region begins there, so everything counts as used.
            command += ["--not-frozen", str(-1 if entry.offset is None else entry.offset)]
        for writer in self._facts.writers:
            command.append("--written=" + json.dumps([writer.offset, writer.length, writer.name]))
        done = await trio.run_process(
            command,
            stdin=None,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd="/",
            pass_fds=held_fds(instance.store.path),
            deliver_cancel=_kill,
        )
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return "" if not done.returncode else said[-1] if said else f"code {done.returncode}"

    def _apply(self, cut: Cut, found: Path) -> None:
        with contextlib.suppress(SnapshotEnded):
            self._engine.settle_free(_FreeRuns(found, cut.free.block_count), cut)
        found.unlink()


async def _kill(process: trio.Process) -> None:
    """What a mapper leaves behind counts only when it is complete, so it needs no time to end."""
    process.kill()


@dataclass(frozen=True, slots=True)
class _FreeRuns:
    """The runs of free blocks in the file ``found`` of one bit a block, read anew each time they are gone through:
    millions of them would take hundreds of MiB."""

    found: Path
    block_count: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return _free_runs(self.found, self.block_count)


def _free_runs(found: Path, block_count: int) -> Iterator[tuple[int, int]]:
    with found.open("rb") as file:
        if os.fstat(file.fileno()).st_size * 8 < block_count:
            raise OSError(errno.EIO, f"{found} is too short", os.fspath(found))
        for first in range(0, block_count, _PIECE_BYTES * 8):
            free = bitarray(endian="little")
            free.frombytes(file.read(_PIECE_BYTES))
            end = min(len(free), block_count - first)
            start = free.find(1, 0, end)
            while start >= 0:
                stop = free.find(0, start, end)
                stop = end if stop < 0 else stop
                yield first + start, first + stop
                start = free.find(1, stop, end)
