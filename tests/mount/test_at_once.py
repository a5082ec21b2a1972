"""Commands at once on one instance: each ends with the truth, and what is asked for twice is done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mounted import Ground, mount_points_below, snapfs
from sectors import content

from snapfs.commands import umount as command

MIB = 1 << 20


@pytest.mark.parametrize("step", ["find_store", "read_status", "request", "_write_out", "unmount_unused"])
def test_umount_while_another_one_is_quicker(ground: Ground, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The other one ends the whole instance just before ``step``, or, of the first, just after it."""
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
