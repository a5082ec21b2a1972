"""Chunks and the map of used blocks: they are shown when it is known, late, or never."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from mounted import Mounted
from test_used_blocks import BROKEN_MAPPER, WAITING_MAPPER
from used_rig import MIB, UsedGround, await_map


@pytest.fixture
def mapper_start(ground: UsedGround, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every Python started from here on runs first."""
    directory = ground.path / "start"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return directory / "sitecustomize.py"


def folder(instance: Mounted) -> Path:
    return instance.snap / ".chunks" / "newest"


def joined(instance: Mounted) -> bytes:
    return b"".join((folder(instance) / name).read_bytes() for name in sorted(os.listdir(folder(instance))))


def times(instance: Mounted) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder(instance).iterdir()}


def test_who_enters_while_the_map_is_computed_waits_for_it(ground: UsedGround, mapper_start: Path) -> None:
    gate = ground.path / "gate"
    mapper_start.write_text(WAITING_MAPPER.format(gate=str(gate)))
    instance = ground.mounted(ground.filled("ext4", 32 * MIB))
    await_map(instance, "computing")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(joined(instance)))
    reader.start()
    assert not found
    gate.touch()
    reader.join(30)
    assert found == [instance.snap_file.read_bytes()]
    assert instance.status()["snapshot"]["map"] == "ready"


def test_after_a_map_that_failed_and_came_late_the_freed_chunks_are_others(
    ground: UsedGround, mapper_start: Path
) -> None:
    mapper_start.write_text(BROKEN_MAPPER)
    image = ground.filled("ext4", 32 * MIB)
    instance = ground.instance(image, "--chunk-size", "1M", "--store", ground.path / "kept")
    instance.expect_log("the map of used blocks failed.*broken for a test")
    instance.mount()
    await_map(instance, "failed")
    whole, first = image.read_bytes(), times(instance)
    assert joined(instance) == whole
    instance.umount()
    mapper_start.write_text("")
    instance.mount()
    await_map(instance)
    second = times(instance)
    assert joined(instance) == instance.snap_file.read_bytes()
    changed = {name for name in first if first[name] != second[name]}
    for number, name in enumerate(sorted(first)):
        piece = slice(number * MIB, (number + 1) * MIB)
        assert name in changed or whole[piece] == joined(instance)[piece]
    assert changed
