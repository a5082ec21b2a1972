"""One image of those that are cut together, as the command that cuts them asks its server."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from snapfs.client import Connection, connected
from snapfs.commands.ended import ended
from snapfs.commands.status import read_status
from snapfs.cut_facts import Facts, Group, Unfrozen
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.freezing.window import Frozen
from snapfs.protocol import (
    CutTaken,
    DeleteSnapshot,
    HoldWrites,
    NoteFacts,
    PrepareCut,
    ResumeWrites,
    TakeCut,
    deadline_in,
)
from snapfs.system.shown_files import ShownFile
from snapfs.system.stores import name_of, owner_of_store
from snapfs.system.view_mounts import mounts_of, view_on

# Also for the turn, while somebody else takes a cut.
_PREPARE_TIMEOUT_S = 60.0
_FACTS_TIMEOUT_S = 30.0
# Longer than the compactor needs where there is room.
_ROOM_TIMEOUT_S, _ROOM_LOOK_S = 3.0, 0.05


class CutInstance:
    """One of the images that are cut, and the connection to its server."""

    server: Connection
    generation: int

    def __init__(self, store: Path) -> None:
        self.store, self.status = store, read_status(store)
        # By whatever name it was found.
        info = os.stat(store)
        self.key = info.st_dev, info.st_ino
        status = self.status
        self.image, self.snap = Path(status["image"]), Path(status["snap"])
        self.live, self._view = Path(status["live"]), view_on(status["live_device"])
        self.live_file = self.live / str(status["view_name"])

    def connect(self, stack: ExitStack) -> None:
        """Until `stack` is closed."""
        self.server = stack.enter_context(connected(self.store))

    def check_live(self) -> None:
        views = mounts_of(self._view)
        if not views or any(view.user_id != owner_of_store(self.store) for view in views):
            raise NotMountedError(
                f"The live view {self.live} is not mounted any more; mount the image again for a new snapshot.",
                path=self.live,
            )
        if revert := self.status["revert"]:
            raise SnapfsError(
                f"{self.image} is on its way back to {revert['name'] or revert['id']}, so there is no instant to "
                f"take a snapshot of; snapfs status {self.live} says how to go on.",
                path=self.image,
            )
        ShownFile(self.live, (self.live_file.name,)).check_answers()
        self._check_writes()

    def _check_writes(self) -> None:
        """What the kernel holds of the live file is written before a cut, which nobody could interrupt."""
        until = time.monotonic() + _ROOM_TIMEOUT_S
        while (buffer := self.status["buffer"])["on_overflow"] == "wait" and buffer.get("writes_wait"):
            if time.monotonic() > until:
                raise SnapfsError(
                    f"Writes to {self.live_file} wait for room in the side buffer, and a cut would wait for them; "
                    "raise its limit (snapfs limit), or delete a snapshot (snapfs delete).",
                    path=self.live_file,
                )
            time.sleep(_ROOM_LOOK_S)
            self.status = read_status(self.store)

    def prepare(self, name: str) -> None:
        message = PrepareCut(name=name, deadline_s=deadline_in(_PREPARE_TIMEOUT_S))
        self.generation = self.server.ask(message).generation

    def hold(self, until: float) -> None:
        self.server.ask(HoldWrites(generation=self.generation, deadline_s=until))

    def take(self, until: float) -> CutTaken:
        return self.server.ask(TakeCut(generation=self.generation, deadline_s=until))

    def resume(self) -> None:
        # A server that does not answer lets them go on by itself.
        with suppress(SnapfsError):
            self.server.ask(ResumeWrites())

    def take_back(self, answer: CutTaken) -> None:
        """Of another image it was not taken."""
        self.server.ask(DeleteSnapshot(id=answer.id, deadline_s=deadline_in(_FACTS_TIMEOUT_S)))

    def tell_facts(self, frozen: Frozen, group: Group | None) -> None:
        """Only what lies in the image at one place concerns its map: a filesystem in a file of another is data."""
        not_frozen = [
            Unfrozen(one.mount_point, one.reason, one.offset) for one in frozen.not_frozen if not one.is_nested
        ]
        facts = Facts(
            freeze_ms=frozen.freeze_ms,
            frozen=tuple(frozen.frozen),
            frozen_offsets=tuple(frozen.frozen_offsets),
            not_frozen=tuple(not_frozen),
            writers=tuple(frozen.writers),
            group=group,
        )
        message = NoteFacts(generation=self.generation, facts=facts, deadline_s=deadline_in(_FACTS_TIMEOUT_S))
        try:
            shown = self.server.ask(message).shown
        except NotMountedError as error:
            raise ended(self.store) from error
        if not shown:
            raise SnapfsError(
                f"A new cut was taken ({frozen.answer.taken_at}) and the snapshot before it has ended, but "
                f"{self.snap} does not show it, because its server does not answer; look into "
                f"{name_of(self.store) / 'log'} and at snapfs status.",
                path=self.snap,
            )
