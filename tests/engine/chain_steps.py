"""The steps of a chain of snapshots, and what is right after each of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from engine_rig import Rig, pattern

BLOCK_BYTES = 4096
BLOCKS = 20
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
HOLDER = "a" * 32


@dataclass(frozen=True)
class Model:
    """What is right after some of the steps: the image, each snapshot by its name, and of each checkpoint what the
    image was."""

    image: bytes = OLD
    snapshots: dict[str, bytes] = field(default_factory=lambda: {"": OLD})
    checkpoints: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Write:
    first: int
    count: int
    seed: int
    # Whether it cannot be compressed.
    is_random: bool = False

    @property
    def data(self) -> bytes:
        length = self.count * BLOCK_BYTES
        return random.Random(self.seed).randbytes(length) if self.is_random else pattern(length, self.seed)

    def apply(self, model: Model) -> Model:
        image, data = bytearray(model.image), self.data
        image[self.first * BLOCK_BYTES : self.first * BLOCK_BYTES + len(data)] = data
        return replace(model, image=bytes(image[: len(OLD)]))

    def run(self, rig: Rig) -> None:
        offset = self.first * BLOCK_BYTES
        rig.write(offset, self.data[: len(OLD) - offset])


@dataclass(frozen=True)
class Cut:
    name: str

    def apply(self, model: Model) -> Model:
        kept = {name: old for name, old in model.snapshots.items() if name}
        return replace(model, snapshots={**kept, self.name: model.image})

    def run(self, rig: Rig) -> None:
        rig.make_cut(self.name)


@dataclass(frozen=True)
class Delete:
    name: str

    def apply(self, model: Model) -> Model:
        return replace(model, snapshots={name: old for name, old in model.snapshots.items() if name != self.name})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        generation = next(one.generation for one in rig.store.header.cuts if one.name == self.name)
        for gone in rig.engine.cuts.forget(generation):
            gone.let_go()


@dataclass(frozen=True)
class Hold:
    name: str

    def apply(self, model: Model) -> Model:
        return replace(model, checkpoints={**model.checkpoints, self.name: model.snapshots[self.name]})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        facts = next(one for one in rig.store.header.cuts if one.name == self.name)
        rig.engine.cuts.hold_checkpoint(facts.snapshot_id, HOLDER)


@dataclass(frozen=True)
class LetGo:
    """All but those with these names."""

    kept: tuple[str, ...] = ()

    def apply(self, model: Model) -> Model:
        return replace(model, checkpoints={name: old for name, old in model.checkpoints.items() if name in self.kept})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        kept = [one.snapshot_id for one in rig.store.header.cuts if one.name in self.kept]
        for gone in rig.engine.cuts.let_go_checkpoints(HOLDER, kept):
            gone.let_go()


@dataclass(frozen=True)
class Merge:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        while (gone := rig.engine.cuts.merge()) is not None:
            gone.let_go()


@dataclass(frozen=True)
class Overflow:
    """A write for which there is no room before the oldest snapshot has given way."""

    write: Write
    oldest: str

    def apply(self, model: Model) -> Model:
        return Delete(self.oldest).apply(self.write.apply(model))

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        rig.engine.room.set_limit(rig.engine.size.shown().stored_bytes + 1)
        self.write.run(rig)
        rig.engine.cuts.settle_again()
        rig.engine.room.set_limit(0)


Step = Write | Cut | Delete | Hold | LetGo | Merge | Overflow
STEPS: list[Step] = [
    Write(0, 3, 2),
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Write(4, 4, 4),
    Cut("c"),
    Delete("b"),
    Write(7, 3, 5),
    Merge(),
    Cut(""),
    Write(9, 2, 6),
    Cut(""),
    Merge(),
    Write(0, 6, 7),
    Delete("a"),
    Merge(),
    Write(12, 4, 8),
]
NEWEST_DELETED: list[Step] = [
    Write(0, 3, 2),
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Write(4, 4, 4),
    Delete("b"),
    Write(6, 4, 5),
    Cut("c"),
    Write(0, 6, 6),
    Merge(),
    Delete("c"),
    Delete("a"),
    Write(3, 4, 7),
    Cut("d"),
    Write(4, 4, 8),
    Delete("d"),
    Merge(),
    Write(0, 4, 9),
    Cut("e"),
    Write(1, 3, 10),
]
OLDEST_GIVES_WAY: list[Step] = [
    Write(0, 12, 2, is_random=True),
    Cut("a"),
    Write(0, 12, 3),
    Cut("b"),
    Write(10, 3, 3),
    Cut("c"),
    Overflow(Write(14, 4, 4), "a"),
    Write(0, 3, 5),
    Cut("d"),
    Merge(),
    Write(9, 3, 6),
    Delete("c"),
    Merge(),
    Write(12, 2, 7),
]
CHECKPOINTS: list[Step] = [
    Hold(""),
    Write(0, 3, 2),
    # Over a held one without a name.
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Hold("b"),
    Write(4, 4, 4),
    Cut("c"),
    Delete("b"),
    Write(7, 3, 5),
    Merge(),
    Delete("c"),
    Write(9, 3, 6),
    Cut("d"),
    Hold("d"),
    Merge(),
    Write(1, 4, 7),
    LetGo(("d",)),
    Merge(),
    Delete("a"),
    # The newest: only what is written is noted.
    Delete("d"),
    Write(12, 3, 8),
    Cut("e"),
    Write(14, 2, 9),
    LetGo(),
    Write(0, 2, 10),
]


def models(steps: list[Step]) -> list[Model]:
    states = [Model()]
    for step in steps:
        states.append(step.apply(states[-1]))
    return states
