"""A cut that fails, or what belongs to it: the present one stays as it was, and nothing is left of the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cuts_rig import BLOCK_BYTES, NEW, OLD, MakeRig, as_on_btrfs, failing

import cow.live.durable
import cow.live.relief
from cow.disk.header import cut_header
from cow.disk.layout import CutCounter, Durability
from cow.errors import SnapshotLost
from cow.live.cutting import discard_cut, prepare_cut


def test_a_cut_that_fails_leaves_the_present_one_as_it_was(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    for _ in range(2):
        cut = prepare_cut(rig.store)
        with monkeypatch.context() as patched:
            patched.setattr(rig.files, "write_whole", failing(errno.ENOSPC, times=2))
            with pytest.raises(OSError, match="No space"):
                rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
        discard_cut(cut)
        assert not cut.path.exists()
    rig.write(0, NEW)
    assert rig.snapshot() == OLD
    assert rig.live() == NEW + OLD[len(NEW) :]


def test_a_failed_sync_of_a_cut_is_told_to_the_next_who_syncs(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    cut = prepare_cut(rig.store)
    with monkeypatch.context() as patched:
        patched.setattr(rig.image, "sync", failing(errno.EIO, times=1))
        with pytest.raises(OSError, match="Input/output"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    discard_cut(cut)
    with pytest.raises(OSError, match="Input/output"):
        rig.engine.sync()
    rig.engine.sync()


def test_what_fails_beside_the_commit_leaves_the_present_cut(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    cut, present = prepare_cut(rig.store), rig.store.cut
    with monkeypatch.context() as patched:
        patched.setattr(cow.live.durable, "SegmentWriter", failing(errno.EMFILE, times=1))
        with pytest.raises(OSError, match="Too many open files"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    discard_cut(cut)
    assert rig.store.cut is present
    rig.write(0, NEW)
    assert rig.snapshot() == OLD


def test_a_header_that_cannot_be_put_back_names_no_snapshot(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    assert rig.store is not None
    rig.write(0, NEW)
    cut = prepare_cut(rig.store)
    with monkeypatch.context() as patched:
        # The new one is in its place, and nothing more can be done.
        patched.setattr(rig.files, "sync_directory", failing(errno.EIO, times=1))
        open_new = rig.files._open_new
        refusals = [0, errno.EIO]

        def second_fails(path: Path, mode: int) -> int:
            if code := refusals.pop(0):
                raise OSError(code, os.strerror(code))
            return open_new(path, mode)

        patched.setattr(rig.files, "_open_new", second_fails)
        with pytest.raises(OSError, match="Input/output"):
            rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    rig.write(0, OLD)
    rig.abandon()
    rig.open()
    with pytest.raises(SnapshotLost):
        rig.reader.read(0, BLOCK_BYTES)


def test_a_cut_that_cannot_be_prepared_leaves_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    with monkeypatch.context() as patched:
        patched.setattr(rig.files, "sync_directory", failing(errno.ENOSPC, times=2))
        with pytest.raises(OSError, match="No space"):
            prepare_cut(rig.store)
    assert [path.name for path in rig.store_path.glob("cut-*")] == ["cut-00000001"]


def test_a_cut_whose_numbers_are_refused_is_not_taken(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_btrfs(monkeypatch)
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    pwrite = rig.files.pwrite

    def refused(fd: int, data: bytes, offset: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("cut-00000002/numbers") and any(bytes(data)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        pwrite(fd, data, offset)

    monkeypatch.setattr(rig.files, "pwrite", refused)
    with pytest.raises(OSError, match="No space"):
        prepare_cut(rig.store)


def test_a_map_that_met_a_full_disk_is_gone_on_with(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    with monkeypatch.context() as patched:
        patched.setattr(rig.cut.settled, "set_range", failing(errno.ENOSPC, times=2))
        with pytest.raises(OSError, match="No space"):
            rig.settle_free([(8, 40)])
    assert rig.settle_free([(8, 40)]) == 32
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == rig.numbers[CutCounter.FREE_BLOCKS] == 32


def test_a_map_that_could_not_be_noted_counts_for_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.write(8 * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    with monkeypatch.context() as patched:
        patched.setattr(cow.live.relief, "seal_free", failing(errno.EIO, times=1))
        with pytest.raises(OSError, match="Input/output"):
            rig.settle_free([(8, 40)])
    assert rig.snapshot() == OLD
