"""Whatever happens to the command between freeze and thaw, the filesystems are thawed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cut_rig import MIB, MKFS, CutGround, cut, finished, is_frozen, run, thaw
from mounted import Mounted, wait_until

EXPEDITED = Path("/sys/kernel/rcu_expedited")


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.made("ext4", 64 * MIB))


@pytest.fixture
def point(ground: CutGround, instance: Mounted) -> Path:
    """The filesystem in it, mounted."""
    return ground.filesystem(instance)


def snapshot_id(instance: Mounted) -> str:
    return str(instance.status()["snapshot"]["id"])


def watchdogs() -> set[str]:
    """The processes of that name; another test's may be among them."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/comm").read_text() == "snapfs-watchdog\n":
                found.add(name)
        except OSError:
            continue
    return found


def are_as_before() -> bool:
    """The grace periods of RCU; for a moment any cut on this machine may have them shortened."""
    return EXPEDITED.read_text() == "0\n"


def test_a_killed_command_leaves_nothing_frozen(ground: CutGround, instance: Mounted, point: Path) -> None:
    before, others = snapshot_id(instance), watchdogs()
    # At once, not after that time.
    process = ground.stopping_cut(instance.live, "--freeze-timeout", "1000")
    assert is_frozen(point)
    process.kill()
    wait_until(lambda: not is_frozen(point))
    (point / "file").write_bytes(b"written")
    wait_until(lambda: watchdogs() <= others)
    assert snapshot_id(instance) == before
    wait_until(are_as_before)
    assert cut(instance.live)["frozen"] == [str(point)]


def test_all_of_several_are_thawed(ground: CutGround, instance: Mounted, point: Path) -> None:
    with (point / "inner.img").open("wb") as file:
        file.truncate(32 * MIB)
    run(*MKFS["ext4"], point / "inner.img")
    inner = ground.mount(ground.loop(point / "inner.img"), name="inner")
    process = ground.stopping_cut(instance.live)
    assert is_frozen(inner)
    assert is_frozen(point)
    process.kill()
    wait_until(lambda: not is_frozen(point))
    wait_until(lambda: not is_frozen(inner))


def test_a_freeze_that_takes_too_long_is_ended_and_said(ground: CutGround, instance: Mounted, point: Path) -> None:
    process = ground.stopping_cut(instance.live, "--freeze-timeout", "0.3")
    wait_until(lambda: not is_frozen(point))
    code, out, err = finished(process, "\n")
    assert code == 4
    assert "had been thawed before it was" in err
    taken = json.loads(out)
    assert taken["frozen"] == []
    reason = "it was thawed by somebody else before the cut was done"
    assert taken["not_frozen"] == [{"mount_point": str(point), "reason": reason, "offset": 0}]


def test_a_stopped_command_is_thawed_after_the_time(ground: CutGround, instance: Mounted, point: Path) -> None:
    process = ground.stopping_cut(instance.live, "--freeze-timeout", "0.3")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not is_frozen(point))
    process.send_signal(signal.SIGCONT)
    assert finished(process, "\n")[0] == 4


def test_a_thaw_by_hand_before_the_cut_is_noticed(ground: CutGround, instance: Mounted, point: Path) -> None:
    process = ground.stopping_cut(instance.live)
    thaw(point)
    code, out, _ = finished(process, "\n")
    assert (code, json.loads(out)["frozen"]) == (4, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_freeze_waits_for_the_thaw(
    ground: CutGround, instance: Mounted, point: Path, number: signal.Signals
) -> None:
    process = ground.stopping_cut(instance.live)
    process.send_signal(number)
    code, out, _ = finished(process, "\n")
    assert code == 0
    assert json.loads(out)["frozen"] == [str(point)]
    assert not is_frozen(point)


def test_a_server_that_refuses_the_cut_leaves_nothing_frozen(
    ground: CutGround, instance: Mounted, point: Path
) -> None:
    before = snapshot_id(instance)
    process = ground.stopping_cut(instance.live, "--freeze-timeout", "0.3", deadline="kept")
    wait_until(lambda: not is_frozen(point))
    over = "snapfs: The time that was given for it is over, so nothing was done; try again.\n"
    assert finished(process, "\n") == (1, "", over)
    assert not is_frozen(point)
    assert snapshot_id(instance) == before


def test_the_grace_periods_are_as_before(instance: Mounted, point: Path) -> None:
    cut(instance.live)
    wait_until(are_as_before)
