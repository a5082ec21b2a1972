"""A raw backup that is brought up to date where it is: wherever that ends, it is right, or known to be half-way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from nightly_rig import CELL, MIB, Nights, snapfs
from update_rig import (
    debris,
    dest_of,
    killed_at,
    killed_before_the_manifest,
    look_for_no_users,
    state_of,
    stay_before_others,
    update_here,
    updated,
    with_sparse_image,
    write_cells,
)

from snapfs.commands.verify import VerifyOptions, verify
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager import target
from snapfs.imager.progress import silent

MOST = 60


@pytest.fixture(autouse=True)
def not_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_before_others(monkeypatch)


@pytest.fixture
def sparse_image(nights: Nights) -> Nights:
    return with_sparse_image(nights)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    look_for_no_users(monkeypatch)


@pytest.mark.usefixtures("alone")
def test_killed_at_every_step_the_next_one_makes_it_right(sparse_image: Nights) -> None:
    """What the killed one wrote was changed back meanwhile: by its hash it looks as if it were there already."""
    nights = sparse_image
    update_here(nights)
    old = {number: nights.image.read_bytes()[number * CELL : (number + 1) * CELL] for number in (1, 257)}
    states = []
    for step in range(MOST):
        write_cells(nights.image, {1: os.urandom(CELL), 257: bytes(CELL)})
        was_killed = killed_at(step, lambda: update_here(nights))
        states.append(state_of(nights))
        write_cells(nights.image, {**old, 601: os.urandom(CELL)})
        update_here(nights)
        assert dest_of(nights).read_bytes() == nights.image.read_bytes(), step
        assert (state_of(nights), debris(nights)) == ("whole", set()), step
        if not was_killed:
            break
    assert not was_killed
    first, end = states.index("half"), len(states) - states[::-1].index("half")
    assert set(states[:first]) == set(states[end:]) == {"whole"}
    assert set(states[first:end]) == {"half"}


@pytest.mark.usefixtures("alone")
def test_each_step_is_on_the_disk_before_the_next(sparse_image: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss, too, it is as it was, or new, or known to be half brought up to date."""
    nights = sparse_image
    update_here(nights)
    write_cells(nights.image, {1: os.urandom(CELL)})
    order = []

    def note(module: Any, name: str, what: Callable[..., str | os.PathLike[str]]) -> None:
        step = getattr(module, name)

        def noted(*words: Any, **keywords: Any) -> Any:
            order.append(f"{name} {Path(what(*words)).name}")
            return step(*words, **keywords)

        monkeypatch.setattr(module, name, noted)

    def of_fd(fd: int, *_: object) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    note(os, "fsync", of_fd)
    note(target, "write_whole", of_fd)
    note(os, "rename", lambda old, new: new)
    note(os, "unlink", lambda path: path)
    update_here(nights)
    directory = nights.path.name
    assert [step for step, _ in groupby(order)] == [
        "fsync backup.img.update.partial",
        "rename backup.img.update",
        f"fsync {directory}",
        "write_whole backup.img",
        "fsync backup.img",
        "fsync backup.img.json.partial",
        f"fsync {directory}",
        "rename backup.img.json",
        f"fsync {directory}",
        "unlink backup.img.update",
        f"fsync {directory}",
    ]


def test_killed_twice_what_both_wrote_is_made_right(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    image = nights.image.read_bytes()
    for number in (1, 257):
        write_cells(nights.image, {number: os.urandom(CELL)})
        assert killed_before_the_manifest(lambda: update_here(nights))
        nights.image.write_bytes(image)
    begun_at = json.loads((nights.path / "backup.img.update").read_text())["begun_at"]
    snapfs("verify", dest_of(nights)).refuses(3, f"since {begun_at}", "--update")
    snapfs("restore", dest_of(nights), nights.path / "restored.img").refuses(3, "half brought up to date")
    snapfs("backup", nights.image, dest_of(nights), "--resume").refuses(2, "half brought up to date", "--update")
    updated(nights, "--resume")
    assert dest_of(nights).read_bytes() == image
    snapfs("backup", nights.image, dest_of(nights), "--update", "--resume").refuses(1, "nothing to resume")


@pytest.mark.usefixtures("alone")
def test_a_damaged_note_says_that_nothing_is_known_of_the_backup(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    image = nights.image.read_bytes()
    write_cells(nights.image, {1: os.urandom(CELL)})
    assert killed_before_the_manifest(lambda: update_here(nights))
    nights.image.write_bytes(image)
    note = nights.path / "backup.img.update"
    os.truncate(note, note.stat().st_size // 2)
    with pytest.raises(BackupDamagedError, match="is half brought up to date; finish that"):
        verify(VerifyOptions(dest_of(nights)), silent, lambda sentence: None)
    update_here(nights)
    assert (dest_of(nights).read_bytes(), debris(nights)) == (image, set())


@pytest.mark.usefixtures("alone")
def test_one_that_is_cut_short_meanwhile_is_not_called_whole(
    sparse_image: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = sparse_image
    update_here(nights)
    write_cells(nights.image, {1: os.urandom(CELL)})
    write = target.write_whole

    def cut_short(fd: int, view: memoryview, offset: int) -> None:
        write(fd, view, offset)
        os.truncate(dest_of(nights), MIB)

    monkeypatch.setattr(target, "write_whole", cut_short)
    with pytest.raises(SnapfsError) as refused:
        update_here(nights)
    assert re.search("changed the size of .* half brought up to date now", refused.value.sentence)
    assert state_of(nights) == "half"
