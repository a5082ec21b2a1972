"""A chain of which some cuts are held, and what is known to be written since each of them."""

from __future__ import annotations

from chain_rig import BLOCK_BYTES, BLOCKS, OLD, Chain, MakeRig
from engine_rig import BOOT

from cow.disk.checkpoints import Checkpoint, changed_in, checkpoints_of, why_void
from cow.disk.layout import Durability
from cow.mount.recovery import Outcome

HOLDER, OTHER = "a" * 32, "b" * 32


class Held(Chain):
    """A chain of which some are held."""

    def generation(self, name: str) -> int:
        assert self.rig.store is not None
        return [one.generation for one in self.rig.store.header.cuts if one.name == name][-1]

    def id_of(self, generation: int) -> bytes:
        assert self.rig.store is not None
        facts = self.rig.store.header.cut_of(generation)
        assert facts is not None
        return facts.snapshot_id

    def hold(self, name: str, holder: str = HOLDER) -> int:
        generation = self.generation(name)
        self.rig.engine.cuts.hold_checkpoint(self.id_of(generation), holder)
        return generation

    def let_go(self, *kept: int, holder: str = HOLDER) -> None:
        for gone in self.rig.engine.cuts.let_go_checkpoints(holder, [self.id_of(one) for one in kept]):
            gone.let_go()

    def delete_held(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.generation(name)):
            gone.let_go()

    def changed(self, generation: int) -> list[int]:
        return self.changed_blocks(generation, BLOCKS)

    def changed_blocks(self, generation: int, block_count: int) -> list[int]:
        assert self.rig.store is not None
        cuts = [cut for cut in self.rig.store.cuts if cut.generation >= generation]
        changed = changed_in(cuts, block_count)
        assert why_void(cuts) is None
        return list(changed.search(1))

    @property
    def listed(self) -> list[int]:
        assert self.rig.store is not None
        return [one.generation for one in self.rig.store.header.cuts]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        store = self.rig.store
        assert store is not None
        return checkpoints_of(store.header, store.cuts, store.geometry)

    def reopen(self, boot: bytes = BOOT, *, sealed: bool = False) -> Outcome:
        if sealed:
            self.rig.seal()
        else:
            self.rig.abandon()
        return self.rig.open(boot).outcome


def new_held(make_rig: MakeRig, durability: Durability) -> Held:
    """Opened; the first cut has no name."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=32)
    rig.open()
    return Held(rig)


def blocks(*runs: tuple[int, int]) -> list[int]:
    return sorted({block_no for first, count in runs for block_no in range(first, first + count)})
