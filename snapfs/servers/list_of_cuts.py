"""The list of cuts, as requests change it and users see it: what it takes, what of it ends or gets a name, and when
the snapshot view shows it.

A new cut comes to it by `Cuts`; what is over, and nobody needs any more, is taken from it by `Merges`.
"""

from __future__ import annotations

from typing import Final

import trio

from cow import Counter, CutHeader, LiveEngine, SnapshotEnded
from snapfs.errors import SnapfsError
from snapfs.options import check_name
from snapfs.protocol import DeleteSnapshot, NameSnapshot
from snapfs.servers.instance import Instance
from snapfs.servers.maps import Maps
from snapfs.servers.merges import Merges
from snapfs.servers.shown_cuts import shown_cut
from snapfs.stamps import id_text

_SHOW_TIMEOUT_S = 5.0
_LOOK_S = 0.002
# Fewer than the pages that the processes share for them.
MAX_CUTS: Final = 200


class ListOfCuts:
    """Of one instance; none but the engine writes it."""

    def __init__(self, instance: Instance, engine: LiveEngine, maps: Maps, merges: Merges) -> None:
        self._instance, self._engine, self._maps, self._merges = instance, engine, maps, merges

    def check_takes(self, name: str) -> None:
        """SnapfsError when there can be no further one, or none of that name; "" is for one without."""
        cuts = self._instance.store.header.cuts
        if name:
            check_name(name)
            if any(one.name == name and not one.is_hidden for one in cuts):
                raise SnapfsError(f"There is a snapshot {name} already; delete it, or give another name.")
        if len(cuts) >= MAX_CUTS:
            raise SnapfsError(
                f"There are {len(cuts)} snapshots and checkpoints, and there can be no more; delete some."
            )

    def refusal(self, error: OSError) -> SnapfsError:
        """What to raise when the store cannot write it."""
        return SnapfsError(
            f"The store {self._instance.store_path} takes no further cut: {error.strerror}; "
            "the snapshot is what it was."
        )

    async def delete(self, request: DeleteSnapshot) -> None:
        """The snapshot is over, for users at once."""
        store = self._instance.store
        facts = next((one for one in store.header.cuts if id_text(one.snapshot_id) == request.id), None)
        if facts is None or facts.is_hidden:
            raise SnapfsError("The snapshot that was meant is gone already; see snapfs list.")
        try:
            await self.forget(facts)
        except SnapshotEnded:
            return
        except OSError as error:
            raise SnapfsError(
                f"The store {self._instance.store_path} cannot note that the snapshot is over: {error.strerror}; it "
                "is still there."
            ) from error

    async def forget(self, facts: CutHeader) -> None:
        """The same of any cut. SnapshotEnded, OSError: see `LiveCuts.forget`."""
        store = self._instance.store
        gone = await trio.to_thread.run_sync(self._engine.cuts.forget, facts.generation)
        if facts.generation == store.cut.generation:
            self._maps.forget()
        self._instance.new_cut.ring()
        self._merges.look_again()
        await self.until_shown()
        for cut in gone:
            await trio.to_thread.run_sync(cut.let_go)

    async def name(self, request: NameSnapshot) -> None:
        """It stays when there is a newer one."""
        self.check_takes(request.name)
        facts = shown_cut(self._instance.store, request.id).facts
        if facts.name:
            raise SnapfsError(f"The snapshot {request.id} is called {facts.name} already, so nothing was done.")
        try:
            await trio.to_thread.run_sync(self._engine.cuts.name, facts.generation, request.name)
        except SnapshotEnded as error:
            raise SnapfsError(f"The snapshot {request.id} has ended, so nothing was done.") from error
        except OSError as error:
            raise self.refusal(error) from error
        self._instance.new_cut.ring()
        await self.until_shown()

    async def until_shown(self) -> bool:
        """Whether the view shows the list of cuts in time. One whose server is dead shows it when that is back."""
        control = self._instance.store.control
        with trio.move_on_after(_SHOW_TIMEOUT_S):
            while control[Counter.SHOWN_HEADERS] < control[Counter.HEADERS]:
                await trio.sleep(_LOOK_S)
            return True
        return False
