"""Checkpoints of one instance: cuts that chains of backups hold, to know later what was written since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from cow import LiveEngine, SnapshotEnded, Store, checkpoints_of
from snapfs.errors import SnapfsError
from snapfs.protocol import HoldCheckpoint, LetGoCheckpoints
from snapfs.servers.instance import Instance
from snapfs.stamps import id_text, utc_text


class Checkpoints:
    """As they are asked for; `look_again` has what is over merged."""

    def __init__(self, instance: Instance, engine: LiveEngine, look_again: Callable[[], None]) -> None:
        self._instance, self._engine, self._look_again = instance, engine, look_again

    async def hold(self, request: HoldCheckpoint) -> None:
        """SnapfsError: there is no such snapshot, and no such checkpoint."""
        cuts = self._instance.store.header.cuts
        facts = next((one for one in cuts if id_text(one.snapshot_id) == request.id and not one.is_going), None)
        try:
            if facts is None:
                raise SnapshotEnded("it is over")
            await trio.to_thread.run_sync(self._engine.cuts.hold_checkpoint, facts.snapshot_id, request.holder)
        except SnapshotEnded as error:
            raise SnapfsError(
                f"The snapshot {request.id} has ended, so it can be no checkpoint; take another one."
            ) from error
        except ValueError as error:
            raise SnapfsError(f"The snapshot {request.id} is held no further: {error}; let go of some.") from error
        except OSError as error:
            raise self._refusal(error) from error

    async def let_go(self, request: LetGoCheckpoints) -> None:
        store = self._instance.store
        kept = {one.snapshot_id for one in store.header.cuts if id_text(one.snapshot_id) in request.keep}
        try:
            gone = await trio.to_thread.run_sync(self._engine.cuts.let_go_checkpoints, request.holder, kept)
        except OSError as error:
            raise self._refusal(error) from error
        self._instance.new_cut.ring()
        self._look_again()
        for cut in gone:
            await trio.to_thread.run_sync(cut.let_go)

    def _refusal(self, error: OSError) -> SnapfsError:
        return SnapfsError(
            f"The store {self._instance.store_path} cannot note its checkpoints: {error.strerror}; they are as they "
            "were."
        )


def told_of(store: Store) -> list[dict[str, Any]]:
    """What status shows of them, oldest first. `void`: the state of a snapshot since that was lost, so that nobody
    knows what was written."""
    return [
        {
            "id": id_text(one.facts.snapshot_id),
            "taken_at": utc_text(one.facts.taken_at_ns),
            "holders": list(one.facts.holders),
            "changed_bytes": one.changed_bytes,
            "void": None if one.void is None else one.void.name.lower(),
        }
        for one in checkpoints_of(store.header, store.cuts, store.geometry)
    ]
