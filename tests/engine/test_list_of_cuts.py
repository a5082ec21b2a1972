"""The list of cuts changes while a reader is just at it, or before the numbers tell of that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from engine_rig import QuickFiles, Rig, pattern

import cow.compact.released
import cow.live.cutting
import cow.snapshot
from cow.disk.header import HEADER_NAME, Header, read_header
from cow.disk.layout import Durability
from cow.disk.segment_files import present_segments
from cow.errors import SnapshotEnded
from cow.snapshot import SnapshotReader

BLOCK_BYTES, BLOCKS = 512, 12
OLD = pattern(BLOCKS * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


@pytest.fixture(params=list(Durability))
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    """With three snapshots, of generations 2 to 4: each has its own four blocks."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=16, durability=request.param)
    rig.takes_snapshot = False
    rig.open()
    for number, name in enumerate("abc"):
        rig.make_cut(name)
        rig.write(4 * number * BLOCK_BYTES, pattern(4 * BLOCK_BYTES, number + 2))
        rig.compactor.drain()
    return rig


def delete(rig: Rig, generation: int) -> None:
    for gone in rig.engine.cuts.forget(generation):
        gone.let_go()


def merge(rig: Rig) -> None:
    rig.compactor.drain()
    gone = rig.engine.cuts.merge()
    assert gone is not None
    gone.let_go()


class Flushed(QuickFiles):
    """Notes the inodes of what was flushed."""

    def __init__(self) -> None:
        self.inodes = set[int]()

    def sync(self, fd: int) -> None:
        self.inodes.add(os.fstat(fd).st_ino)


@pytest.mark.parametrize("durability", list(Durability))
def test_every_list_is_on_the_disk(make_rig: MakeRig, durability: Durability) -> None:
    """After a power loss a header that was not would be empty, and the store refused."""
    files = Flushed()
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=16, durability=durability, files=files)
    rig.open()
    rig.make_cut()

    @contextmanager
    def flushing() -> Iterator[None]:
        # A header of before may have had the inode of the next one.
        files.inodes.clear()
        yield
        assert (rig.store_path / HEADER_NAME).stat().st_ino in files.inodes

    assert rig.store is not None
    with flushing():
        rig.engine.cuts.name(2, "a")
    with flushing():
        rig.engine.cuts.hold_checkpoint(rig.store.header.cut.snapshot_id, "0" * 32)
    rig.make_cut("b")
    rig.make_cut("c")
    with flushing():
        delete(rig, 3)
    with flushing():
        merge(rig)
    with flushing():
        rig.engine.cuts.let_go_checkpoints("0" * 32, [])


def test_one_that_is_merged_before_it_is_opened_is_found_where_it_went(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = rig.new_reader(2)

    def read_and_merge(path: object) -> Header | None:
        monkeypatch.setattr(cow.snapshot, "read_header", read_header)
        header = read_header(rig.store_path)
        delete(rig, 3)
        merge(rig)
        return header

    monkeypatch.setattr(cow.snapshot, "read_header", read_and_merge)
    assert reader.read(0, len(OLD)) == OLD


def test_files_that_are_missing_from_the_list_that_there_is_are_an_error(rig: Rig) -> None:
    reader = rig.new_reader(2)
    (rig.store_path / "cut-00000003" / "index").unlink()
    with pytest.raises(FileNotFoundError):
        reader.read(0, len(OLD))


def test_who_begins_to_read_when_the_last_one_was_deleted_is_told_so(rig: Rig) -> None:
    assert rig.store is not None
    with rig.store.open_cut(4, writable=False).held() as cut:
        for generation in (2, 3, 4):
            delete(rig, generation)
        with pytest.raises(SnapshotEnded):
            SnapshotReader(replace(rig.store, cut=cut), rig.image).read(0, 1)
        cut.let_go()


def test_what_the_compactor_removes_before_the_numbers_tell_is_no_damage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = rig.new_reader(2)
    # The compactor has yet to look at the list, whatever it finds.
    rig.engine.cuts.name(3, "other")
    reader.read(8 * BLOCK_BYTES, 1)
    ended: list[bool] = []

    def write_and_read(*arguments: object, **options: object) -> None:
        write_header(*arguments, **options)
        rig.compactor.tidy()
        with pytest.raises(SnapshotEnded):
            reader.read(0, 1)
        ended.append(True)

    write_header = cow.live.cutting.write_header
    monkeypatch.setattr(cow.live.cutting, "write_header", write_and_read)
    delete(rig, 2)
    assert ended


def test_slots_of_a_cut_stay_while_the_next_one_is_half_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # The compactor has not looked since.
    rig.make_cut("d")
    reader, content = rig.reader, rig.live()
    rig.engine.write(0, pattern(4 * BLOCK_BYTES, 9))

    def write_and_drain(*arguments: object, **options: object) -> None:
        write_header(*arguments, **options)
        rig.compactor.drain()

    write_header = cow.live.cutting.write_header
    monkeypatch.setattr(cow.live.cutting, "write_header", write_and_drain)
    rig.make_cut("e")
    rig.compactor.drain()
    assert reader.read(0, len(OLD)) == content


def test_a_cut_that_the_compactor_has_not_seen_was_merged_into_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, looked_for = rig.live(), [2, 3, 4]

    def cut_and_look(directory: Path) -> list[tuple[int, int, Path]]:
        if looked_for.pop(0) == 4:
            monkeypatch.undo()
            rig.make_cut("d")
            rig.engine.write(0, pattern(4 * BLOCK_BYTES, 9))
        return present_segments(directory)

    monkeypatch.setattr(cow.compact.released, "present_segments", cut_and_look)
    rig.give_back()
    assert rig.reader.read(0, len(OLD)) == content
