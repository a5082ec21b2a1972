"""Commands at once on one instance, or beside stopped processes: each ends, and with the truth."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from ground import Ground
from mounted import mount_points_below, snapfs
from sectors import content

from snapfs.commands import umount as command

MIB = 1 << 20


@pytest.mark.parametrize("step", ["find_store", "request", "_write_out"])
def test_umount_while_another_one_is_quicker(ground: Ground, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The other one ends the whole instance just before `step`, or, of the first, just after it."""
    instance = ground.mounted(ground.image(content(MIB)))
    real: Callable[..., Any] = getattr(command, step)

    def late(*words: Any, **named: Any) -> Any:
        monkeypatch.setattr(command, step, real)
        found = real(*words, **named) if step == "find_store" else None
        done = snapfs("umount", instance.live)
        assert done.returncode == 0, done.stderr
        return found or real(*words, **named)

    monkeypatch.setattr(command, step, late)
    command.umount(instance.live)
    assert getattr(command, step) is real
    instance.await_end()
    assert mount_points_below(ground.path) == []
    assert not instance.store.exists()


def test_processes_that_are_stopped_end_with_the_others(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(MIB)))
    for name in ("compactor", "supervisor"):
        instance.processes[name].send(signal.SIGSTOP)
    began_s = time.monotonic()
    instance.umount()
    assert time.monotonic() - began_s < 20
