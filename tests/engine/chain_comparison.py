"""A chain of snapshots is compared with what is right of it, whole, by readers that live on through what comes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import pytest
from chain_right import BLOCKS, Right, Snapshot
from engine_rig import Rig, SpoiltImage

from cow.disk.checkpoints import changed_in, checkpoints_of
from cow.disk.layout import State
from cow.errors import BlockReleased, Damaged, SnapshotEnded, SnapshotLost
from cow.snapshot import SnapshotReader


class Comparison:
    """`look` raises AssertionError where it is not right."""

    def __init__(self, rig: Rig, right: Right) -> None:
        self._rig, self._right = rig, right
        self._readers: dict[int, SnapshotReader] = {}
        self._ended: list[SnapshotReader] = []

    def forget(self, generation: int) -> None:
        """That snapshot is over: to whoever reads it as well."""
        if generation in self._readers:
            self._ended.append(self._readers.pop(generation))

    def read_anew(self) -> None:
        """By readers that begin now."""
        self._readers.clear()

    def stop(self) -> None:
        self._readers.clear()
        self._ended.clear()

    @property
    def _bad(self) -> set[int]:
        assert isinstance(self._rig.image, SpoiltImage)
        return self._rig.image.bad

    def look(self) -> None:
        rig = self._rig
        assert rig.store is not None
        rig.rules.look()
        expected = self._right.image[: self._right.shortest] if self._right.is_short else self._right.image
        assert rig.image_path.read_bytes()[: len(expected)] == expected
        assert [one.generation for one in rig.store.header.shown] == sorted(self._right.snapshots)
        if not self._right.snapshots and not self._right.checkpoints:
            assert rig.numbers.state is State.NONE
        self._check_checkpoints()
        for generation, snapshot in self._right.snapshots.items():
            if snapshot.is_over:
                with pytest.raises(SnapshotLost):
                    self._reader(generation).read(0, 1)
            else:
                self._check_snapshot(self._reader(generation), snapshot)
        for reader in self._ended:
            with pytest.raises((SnapshotEnded, SnapshotLost)):
                reader.read(0, 1)

    def _check_checkpoints(self) -> None:
        """What differs from what the image was then, is known to be written; what may be missing, is told."""
        store = self._rig.store
        assert store is not None
        found = {one.facts.generation: one for one in checkpoints_of(store.header, store.cuts, store.geometry)}
        assert {at: set(one.facts.holders) for at, one in found.items()} == {
            at: held.holders for at, held in self._right.checkpoints.items()
        }
        for generation, held in self._right.checkpoints.items():
            assert held.may_be_void or found[generation].void is None
            if found[generation].void is not None:
                continue
            changed = changed_in([cut for cut in store.cuts if cut.generation >= generation], BLOCKS)
            for block_no in range(BLOCKS):
                offset, length = self._rig.geometry.extent(block_no, block_no + 1)
                is_same = self._right.image[offset : offset + length] == held.content[offset : offset + length]
                assert is_same or changed[block_no], f"block {block_no} since {generation}"

    def _reader(self, generation: int) -> SnapshotReader:
        """One that lives on through what comes."""
        if generation not in self._readers:
            self._readers[generation] = self._rig.new_reader(generation)
        return self._readers[generation]

    def _check_snapshot(self, reader: SnapshotReader, snapshot: Snapshot) -> None:
        for raised, first, end in self._runs_of(snapshot):
            offset, length = self._rig.geometry.extent(first, end)
            if raised:
                with pytest.raises(raised):
                    reader.read(offset, length)
                continue
            expected = bytearray(snapshot.content[offset : offset + length])
            for block_no in snapshot.free & set(range(first, end)):
                at, count = self._rig.geometry.extent(block_no, block_no + 1)
                expected[at - offset : at - offset + count] = bytes(count)
            assert reader.read(offset, length) == expected, f"blocks {first} to {end - 1}"

    def _runs_of(self, snapshot: Snapshot) -> Iterator[tuple[tuple[type[Exception], ...], int, int]]:
        """Runs of blocks that can be read, and each of the others with what it raises."""

        def raised(block_no: int) -> tuple[type[Exception], ...]:
            if block_no in snapshot.released:
                return (BlockReleased,)
            if block_no in snapshot.free:
                return ()
            if block_no in snapshot.lost:
                return (Damaged, OSError)
            return (OSError,) if block_no in snapshot.in_image & self._bad else ()

        for error, blocks in groupby(range(BLOCKS), raised):
            run = list(blocks)
            if error:
                yield from ((error, block_no, block_no + 1) for block_no in run)
            else:
                yield (), run[0], run[-1] + 1
