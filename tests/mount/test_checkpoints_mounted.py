"""Checkpoints through the control socket: held, listed, asked for what was written since, and let go."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from ground import Ground
from mounted import Mounted, snapfs, wait_until

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import HoldCheckpoint, LetGoCheckpoints, deadline_in

BLOCK_BYTES = 4096
MIB = 1 << 20
HOLDER, OTHER = "0123456789abcdef" * 2, "f" * 32


def hold(instance: Mounted, holder: str = HOLDER, snapshot_id: str | None = None) -> str:
    """The newest one."""
    snapshot_id = snapshot_id or str(instance.status()["snapshot"]["id"])
    request(instance.store, HoldCheckpoint(id=snapshot_id, holder=holder, deadline_s=deadline_in(10)))
    return snapshot_id


def let_go(instance: Mounted, *keep: str, holder: str = HOLDER) -> None:
    request(instance.store, LetGoCheckpoints(holder=holder, keep=keep, deadline_s=deadline_in(10)))


def checkpoints(instance: Mounted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = instance.status()["checkpoints"]
    return found


def write(instance: Mounted, *block_nos: int) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        for block_no in block_nos:
            os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), block_no * BLOCK_BYTES)
        os.fsync(file.fileno())


def since(instance: Mounted, checkpoint: str) -> list[int]:
    """The blocks that were written to, as diff has them."""
    done = snapfs("diff", instance.live, checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    return [
        block_no
        for one in json.loads(done.stdout)["extents"]
        for block_no in range(one["start"] // BLOCK_BYTES, (one["start"] + one["length"]) // BLOCK_BYTES)
    ]


@pytest.fixture
def instance(ground: Ground) -> Mounted:
    return ground.mounted(ground.image(4 * MIB), "--store", ground.path / "store")


def test_it_is_listed_with_what_was_written_since(instance: Mounted) -> None:
    held = hold(instance)
    write(instance, 3, 5)
    taken_at = instance.status()["snapshot"]["taken_at"]
    assert checkpoints(instance) == [
        {"id": held, "taken_at": taken_at, "holders": [HOLDER], "changed_bytes": 2 * BLOCK_BYTES, "void": None}
    ]


def test_it_outlives_its_snapshot(instance: Mounted) -> None:
    held = hold(instance)
    write(instance, 3)
    assert snapfs("snapshot", instance.live).returncode == 0
    write(instance, 5)
    assert snapfs("snapshot", instance.live).returncode == 0
    write(instance, 7)
    assert since(instance, held) == [3, 5, 7]
    assert [one["id"] for one in instance.status()["snapshots"]] == [instance.status()["snapshot"]["id"]]


def test_diff_tells_what_was_written_until_a_later_snapshot(instance: Mounted) -> None:
    held = hold(instance)
    write(instance, 3)
    assert snapfs("snapshot", instance.live, "--name", "a").returncode == 0
    write(instance, 5)
    assert snapfs("snapshot", instance.live, "--name", "b").returncode == 0
    write(instance, 7)
    done = snapfs("diff", instance.live, held, "b", "--json")
    assert [one["start"] // BLOCK_BYTES for one in json.loads(done.stdout)["extents"]] == [3, 5]


def test_list_does_not_show_it(instance: Mounted) -> None:
    held = hold(instance)
    assert snapfs("snapshot", instance.live).returncode == 0
    assert held not in snapfs("list", instance.live, "--json").stdout


def test_by_its_id_it_is_let_go_of(instance: Mounted) -> None:
    held = hold(instance)
    assert snapfs("snapshot", instance.live).returncode == 0
    newer = hold(instance)
    write(instance, 3)
    lines = snapfs("status", instance.live).stdout.splitlines()
    told = [
        line.split()[1] for line in lines if line.startswith("checkpoint") and line.endswith("4 KiB written since")
    ]
    assert told == [f"{held},", f"{newer},"]
    done = snapfs("delete", instance.live, held)
    assert (done.returncode, done.stdout) == (0, f"{held}  deleted\n")
    assert [one["id"] for one in checkpoints(instance)] == [newer]
    assert snapfs("delete", instance.live, held).returncode == 1


def test_it_survives_an_umount_with_a_kept_store(instance: Mounted) -> None:
    held = hold(instance)
    write(instance, 3)
    assert snapfs("snapshot", instance.live).returncode == 0
    instance.umount()
    instance.mount()
    write(instance, 5)
    assert since(instance, held) == [3, 5]


def test_alone_it_survives_an_umount(instance: Mounted) -> None:
    held = hold(instance)
    assert snapfs("delete", instance.live, held).returncode == 0
    write(instance, 3)
    instance.umount()
    assert "has no snapshot, only checkpoints; take one" in instance.mount().stderr
    write(instance, 5)
    assert since(instance, held) == [3, 5]
    assert instance.status()["snapshot"]["id"] is None
    assert snapfs("snapshot", instance.live).returncode == 0
    assert since(instance, held) == [3, 5]


def test_it_survives_a_kill(instance: Mounted) -> None:
    held = hold(instance)
    write(instance, 3)
    assert snapfs("snapshot", instance.live).returncode == 0
    write(instance, 5)
    # The supervisor first: it would say that the others were killed.
    instance.kill("supervisor")
    instance.kill("live", "snapshot", "compactor")
    instance.mount()
    assert since(instance, held) == [3, 5]


@pytest.mark.parametrize("is_newest", [True, False])
def test_the_room_of_a_deleted_one_comes_back(instance: Mounted, is_newest: bool) -> None:
    assert snapfs("snapshot", instance.live, "--name", "a").returncode == 0
    held = hold(instance)
    write(instance, *range(256))
    if not is_newest:
        assert snapfs("snapshot", instance.live).returncode == 0
    assert instance.status()["buffer"]["stored_bytes"] > 0
    assert snapfs("delete", instance.live, "a").returncode == 0
    wait_until(lambda: not instance.status()["buffer"]["stored_bytes"])
    if not is_newest:
        wait_until(lambda: not list((instance.store / "segments").iterdir()))
    assert since(instance, held) == list(range(256))


def test_what_nobody_has_cannot_be_held(instance: Mounted) -> None:
    with pytest.raises(SnapfsError, match="has ended, so it can be no checkpoint"):
        hold(instance, snapshot_id="01234567-89ab-cdef-0123-456789abcdef")


def test_who_is_no_holder_is_refused(instance: Mounted) -> None:
    with pytest.raises(SnapfsError, match="32 hex digits are a holder, not 'me'"):
        hold(instance, "me")


def test_the_last_to_let_go_ends_it(instance: Mounted) -> None:
    held = hold(instance)
    hold(instance, OTHER)
    assert snapfs("snapshot", instance.live).returncode == 0
    let_go(instance)
    assert [one["holders"] for one in checkpoints(instance)] == [[OTHER]]
    let_go(instance, held, holder=OTHER)
    assert [one["holders"] for one in checkpoints(instance)] == [[OTHER]]
    let_go(instance, holder=OTHER)
    assert checkpoints(instance) == []
    done = snapfs("diff", instance.live, held)
    assert done.returncode == 1
    assert "has no snapshot" in done.stderr


def test_of_a_void_one_nobody_knows(ground: Ground) -> None:
    instance = ground.mounted(ground.image(os.urandom(MIB)), "--buffer-limit", "4K")
    instance.expect_log("side buffer")
    held = hold(instance)
    instance.live_file.write_bytes(b"x" * MIB)
    assert [one["void"] for one in checkpoints(instance)] == ["overflowed"]
    done = snapfs("diff", instance.live, held)
    assert done.returncode == 3
    assert "because that was lost meanwhile (overflowed); take a new one." in done.stderr
