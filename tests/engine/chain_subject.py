"""The rig of a chain that is compared with what is right: how it begins, stops and is opened again, and its image's
file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from chain_right import BLOCK_BYTES, OLD
from engine_rig import NEXT_BOOT, Rig, SpoiltImage

import cow.disk.mapped_file
from cow.disk.filesystems import Storing
from cow.disk.layout import Counter, Durability
from cow.live import reverting
from cow.live.overflow import OverflowPolicy
from cow.mount.recovery import Opened, Outcome

SLOTS = 32


class Subject:
    """`open` it, and `close` it at the end."""

    def __init__(
        self, durability: Durability, storing: Storing, policy: OverflowPolicy, *, takes_snapshot: bool
    ) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: storing)
        self._patch.setattr(reverting, "_PIECE_BYTES", 3 * BLOCK_BYTES)
        self._directory = Path(tempfile.mkdtemp(prefix="chain-model-"))
        self._boot = 0
        self.rig = Rig(
            self._directory,
            OLD,
            block_bytes=BLOCK_BYTES,
            durability=durability,
            staging_slots=SLOTS,
            policy=policy,
        )
        self.rig.takes_snapshot = takes_snapshot
        self.rig.spoil()
        self.rig.on_wake = self._make_room

    def _make_room(self) -> None:
        """The compactor, as far as a write waits for it."""
        if self.rig.engine.pressing.threads:
            self.rig.compactor.drain()
            self.rig.compactor.tidy()
            self.rig.engine.room.look_again()

    def open(self, *, has_lost: bool) -> Outcome:
        """Of what is lost nothing is said unless something is."""
        opened: Opened = self.rig.open(NEXT_BOOT[:-1] + bytes([self._boot]))
        if opened.outcome is Outcome.CARRIED_ON:
            said = [note for note in opened.notes if "that are lost and read as errors" in note]
            assert said == [note for note in opened.notes if "only checkpoints" not in note]
            assert has_lost or not said
        # There is no view that would have to let go of anything.
        self.rig.control[Counter.SHOWN_HEADERS] = 1 << 60
        return opened.outcome

    def stop(self, end: str) -> None:
        """A clean end, a kill, or the loss of power, in which nothing was lost."""
        if end == "clean":
            self.rig.seal()
        else:
            self.rig.abandon()
        self._boot += end == "power"

    def close(self) -> None:
        self.rig.close()
        shutil.rmtree(self._directory)
        self._patch.undo()

    @property
    def bad(self) -> set[int]:
        """Blocks that the image cannot give."""
        assert isinstance(self.rig.image, SpoiltImage)
        return self.rig.image.bad

    def resize_image(self, length: int) -> None:
        """Without a trace in its times: else it would be somebody else's change."""
        info = os.stat(self.rig.image_path)
        os.truncate(self.rig.image_path, length)
        os.utime(self.rig.image_path, ns=(info.st_atime_ns, info.st_mtime_ns))

    def id_of(self, generation: int) -> bytes:
        assert self.rig.store is not None
        facts = self.rig.store.header.cut_of(generation)
        assert facts is not None
        return facts.snapshot_id
