"""Cuts that somebody holds, after a kill and a power loss: nothing that was written since is missing."""

from __future__ import annotations

import errno
import os

import pytest
from chain_rig import BLOCK_BYTES, OLD, MakeRig
from checkpoints_rig import Held, blocks, new_held
from engine_rig import NEXT_BOOT, QuickFiles

from cow.disk.checkpoints import changed_in
from cow.disk.layout import Durability, State
from cow.mount.recovery import Outcome


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Held:
    return new_held(make_rig, request.param)


def hold_and_go_on(chain: Held, *, is_alone: bool) -> int:
    """The generation of a held one that is over, with writes before and after that; alone it has no newer one."""
    held = chain.hold("")
    chain.write(0, 4, 2)
    if is_alone:
        chain.expected[""] = OLD
        chain.delete("")
    else:
        chain.cut("b")
    chain.write(10, 4, 3)
    return held


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("is_alone", [True, False])
def test_it_survives_the_end_of_the_processes(chain: Held, is_sealed: bool, is_alone: bool) -> None:
    held = hold_and_go_on(chain, is_alone=is_alone)
    assert chain.reopen(sealed=is_sealed) is Outcome.CARRIED_ON
    assert chain.changed(held) == blocks((0, 4), (10, 4))
    chain.write(20, 1, 4)
    assert chain.changed(held) == blocks((0, 4), (10, 4), (20, 1))
    chain.check()


@pytest.mark.parametrize("is_alone", [True, False])
def test_after_a_power_loss_nothing_that_was_written_is_missing(make_rig: MakeRig, is_alone: bool) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Held(rig)
    held = hold_and_go_on(chain, is_alone=is_alone)
    assert chain.reopen(NEXT_BOOT) is Outcome.CARRIED_ON
    assert set(chain.changed(held)) >= set(blocks((0, 4), (10, 4)))
    chain.check()


@pytest.mark.parametrize("is_lost", [True, False])
def test_after_a_power_loss_what_was_written_is_known_to_a_mebibyte(make_rig: MakeRig, is_lost: bool) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    held = chain.hold("")
    chain.delete_held("")
    rig.write(1 << 20, b"x")
    rig.write((3 << 20) - 1, b"xx")
    changed = rig.cut.path / "changed"
    rig.abandon()
    if is_lost:
        changed.write_bytes(bytes(changed.stat().st_size))
    rig.open(NEXT_BOOT)
    assert rig.store is not None
    found = changed_in(rig.store.cuts, rig.geometry.block_count)
    assert list(found.search(1)) == list(range(256, 1024))
    assert [one.facts.generation for one in chain.checkpoints] == [held]


def test_without_the_regions_everything_counts_as_written_after_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    chain.delete_held("")
    rig.write(1 << 20, b"x")
    path = rig.cut.path
    rig.abandon()
    (path / "touched").unlink()
    rig.open(NEXT_BOOT)
    assert rig.cut.changed.count() == rig.geometry.block_count


def test_what_was_merged_into_a_checkpoint_is_known_after_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(bytes(4 << 20), durability=Durability.POWER)
    rig.open()
    chain = Held(rig)
    held = chain.hold("")
    rig.make_cut()
    rig.write(2 << 20, b"x")
    rig.make_cut()
    assert chain.merge() == 1
    changed = rig.store_path / f"cut-{held:08d}" / "changed"
    rig.abandon()
    changed.unlink()
    rig.open(NEXT_BOOT)
    assert chain.changed_blocks(held, 1024) == list(range(512, 768))


def test_a_region_is_on_the_disk_before_the_write(make_rig: MakeRig) -> None:
    """Each is waited for once."""
    synced: list[bytes] = []

    class Watched(QuickFiles):
        def sync_data(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/touched"):
                synced.append(os.pread(rig.image_fd, 1, 1 << 20))

    rig = make_rig(bytes(4 << 20), durability=Durability.POWER, files=Watched())
    rig.open()
    rig.write(1 << 20, b"x")
    assert synced == [b"\0"]
    rig.write((1 << 20) + 4096, b"x")
    assert synced == [b"\0"]


def test_a_write_whose_region_cannot_be_noted_ends_the_snapshot_first(make_rig: MakeRig) -> None:
    class Failing(QuickFiles):
        def sync_data(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/touched"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    rig = make_rig(bytes(4 << 20), durability=Durability.POWER, files=Failing())
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.write(1 << 20, b"x")
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]
    assert rig.live()[1 << 20 : (1 << 20) + 1] == b"x"


def test_a_cut_after_a_checkpoint_alone_is_of_its_own_instant(chain: Held) -> None:
    held = chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(0, 4, 2)
    chain.reopen()
    chain.cut("b")
    chain.write(2, 4, 3)
    chain.merge()
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 6))
    chain.check()
