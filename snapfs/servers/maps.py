"""The map of used blocks of the present cut: what is known of it, and the process that computes it (see `mapper`).

    none        nobody computes it: every block is to be protected, the snapshot view is not there, nobody knows what
                was frozen
    computing   a mapper reads the snapshot view
    ready       it is taken over; its regions are known
    failed      every block counts as used

An older cut keeps the map that it had: it is ready, or every block counts as used.

Only what was at rest at the cut, and was written by nobody else, can be believed: so the map is that of its facts.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from cow import Cut, CutCounter, LiveEngine, Protect, SnapshotEnded
from snapfs.cut_facts import NOTHING_FROZEN, Facts
from snapfs.log import log_fd
from snapfs.protocol import MapGiven
from snapfs.servers.dating import Dating
from snapfs.servers.free_file import FreeRuns
from snapfs.servers.instance import SNAPSHOT, Instance
from snapfs.servers.notes import read_facts, read_regions
from snapfs.system.processes import program
from snapfs.system.stores import held_fds
from snapfs.system.view_mounts import is_mounted

_LOG = logging.getLogger(__name__)


class Maps:
    """One cut's map after the other; `nursery` runs the computing."""

    def __init__(self, instance: Instance, engine: LiveEngine, dating: Dating, nursery: trio.Nursery) -> None:
        self._instance, self._engine, self._dating, self._nursery = instance, engine, dating, nursery
        self._facts, self._state = NOTHING_FROZEN, "none"
        self._mapping: trio.CancelScope | None = None
        self._done = trio.Event()
        self._done.set()

    @property
    def _path(self) -> Path:
        return self._instance.store.cut.path

    def _known_of(self, cut: Cut) -> tuple[str, list[dict[str, Any]]]:
        """The state of its map, and what the snapshot consists of once that is ready."""
        if cut is self._instance.store.cut:
            return self._state, (read_regions(cut.path) or []) if self._state == "ready" else []
        regions = read_regions(cut.path)
        if regions is None or not (cut.numbers[CutCounter.FREE_BLOCKS] or _has_nothing_free(regions)):
            return "none", []
        return "ready", regions

    def given(self, cut: Cut) -> MapGiven:
        """What is known of the map of a cut, the present or an older one."""
        state, regions = self._known_of(cut)
        free = cut.free.file.path
        return MapGiven(state, f"{free.parent.name}/{free.name}" if state == "ready" else None, tuple(regions))

    def report(self, cut: Cut) -> dict[str, Any]:
        """The same as status shows it, with what was frozen for it."""
        is_present = cut is self._instance.store.cut
        facts = self._facts if is_present else read_facts(cut.path) or NOTHING_FROZEN
        group = None if facts.group is None else asdict(facts.group)
        state, regions = self._known_of(cut)
        return {"freeze_ms": facts.freeze_ms, "group": group, "map": state, "regions": regions}

    # --- its time --------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """At the start: carry the map of a snapshot that is carried on, or compute that of a new one."""
        store = self._instance.store
        if store.header.protect is not Protect.USED:
            self._facts = read_facts(self._path) or NOTHING_FROZEN
            return
        if self._state in ("ready", "computing") or store.header.cut.is_hidden:
            return
        # Nothing can have been mounted from a view that did not exist.
        facts: Facts | None = NOTHING_FROZEN if store.header.cut.generation == 1 else read_facts(self._path)
        if store.cut.numbers[CutCounter.FREE_BLOCKS] and read_regions(self._path) is not None:
            self._facts, self._state = facts or NOTHING_FROZEN, "ready"
        elif facts is not None:
            self.begin(facts)
        else:
            self._facts = NOTHING_FROZEN
            self._nursery.start_soon(self._note_that_there_is_none)
            _LOG.info("nobody knows any more what was frozen for the snapshot, so every block counts as used")

    async def _note_that_there_is_none(self) -> None:
        with self._instance.store.cut.held() as cut:
            await self._dating.finish(cut)

    def forget(self) -> None:
        """There is a new cut, of which nothing is known yet."""
        self.cancel()
        self._facts, self._state = NOTHING_FROZEN, "none"

    def note(self, facts: Facts) -> None:
        """What was frozen for the present cut."""
        self._facts = facts

    def begin(self, facts: Facts) -> None:
        """Compute it, if only used blocks are to be protected; of one that somebody else has just deleted there is
        nothing to read."""
        self.note(facts)
        header = self._instance.store.header
        is_wanted = header.protect is Protect.USED and not header.cut.is_hidden
        if is_wanted and self._state not in ("ready", "computing"):
            self._done = trio.Event()
            self._state = "computing"
            self._mapping = trio.CancelScope()
            self._nursery.start_soon(self._make, self._mapping, self._done)

    def cancel(self) -> None:
        """Compute no map any more."""
        if self._mapping is not None:
            self._mapping.cancel()

    async def stop(self) -> None:
        """Return when no map is being computed; `resume` begins again."""
        self.cancel()
        await self._done.wait()

    async def until_done(self) -> None:
        """Wait while one is being computed: what is released meanwhile could not be read for it."""
        await self._done.wait()

    # --- computing -------------------------------------------------------------------------------------------

    async def _make(self, scope: trio.CancelScope, done: trio.Event) -> None:
        cut, state, what_failed = self._instance.store.hold_cut(), "none", ""
        try:
            with scope:
                state = "failed"
                what_failed = await self._map(cut)
                # Of a view that is not there a map will be made when it is.
                if not what_failed or is_mounted(self._instance.places.view(SNAPSHOT)):
                    await self._dating.finish(cut)
                if not what_failed:
                    state = "ready"
        finally:
            # A cut that ended meanwhile, or whose view went, has no map, and its mapper was right to fail.
            if cut is self._instance.store.cut:
                self._state = "none" if scope.cancelled_caught else state
                _LOG.debug("the map of cut %d: %s", cut.generation, self._state)
                if what_failed and is_mounted(self._instance.places.view(SNAPSHOT)):
                    _LOG.warning("the map of used blocks failed, so every block is preserved: %s", what_failed)
            if self._mapping is scope:
                self._mapping = None
            done.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(cut.let_go)

    async def _map(self, cut: Cut) -> str:
        """Why it failed, "" when it did not."""
        try:
            what_failed = await self._run_mapper(cut.path)
            if not what_failed:
                await trio.to_thread.run_sync(self._take_over, cut)
                # What the kernel holds of free blocks was read before they were known, and is no zeros.
                self._instance.released.ring()
        except OSError as error:
            return error.strerror or str(error)
        return what_failed

    def _take_over(self, cut: Cut) -> None:
        free_runs = FreeRuns(cut.path, cut.free.block_count)
        with contextlib.suppress(SnapshotEnded):
            self._engine.cuts.settle_free(free_runs, cut)
        free_runs.remove()

    async def _run_mapper(self, path: Path) -> str:
        """Why it failed, "" when it did not."""
        command = self._command(path)
        if command is None:
            return "the snapshot view is not mounted"
        done = await trio.run_process(
            command,
            stdin=None,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd="/",
            pass_fds=(log_fd(), *held_fds(self._instance.store.path)),
            deliver_cancel=_kill,
        )
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return "" if not done.returncode else said[-1] if said else f"code {done.returncode}"

    def _command(self, path: Path) -> list[str] | None:
        """The mapper's; None when it would have nothing to read."""
        instance = self._instance
        view = instance.places.view(SNAPSHOT)
        if view is None:
            return None
        # Names that others chose are no words of their own, or they might pass for options.
        command = [*program("snapfs.servers.mapper"), view.device, f"./{instance.view_name}", str(path)]
        command += ["--log-fd", str(log_fd()), "--block-bytes", str(instance.store.header.block_bytes)]
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
        return command


def _has_nothing_free(regions: list[dict[str, Any]]) -> bool:
    """Then it makes no difference whether the map was taken over."""
    return not any(region["free_bytes"] for region in regions)


async def _kill(process: trio.Process) -> None:
    """What a mapper leaves behind counts only when it is complete, so it needs no time to end."""
    process.kill()
