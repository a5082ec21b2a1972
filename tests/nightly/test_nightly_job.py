"""The nightly job as it is meant: each night a cut, and what was written since the last one is read."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from imager_rig import make_ext4, make_files, mounted, overwrite, wait_until
from nightly_rig import CELL, MIB, Nights, run, snapfs

MOST = 80


@pytest.fixture
def ext4(nights: Nights) -> Nights:
    make_files(nights.path / "content", 12 * MIB)
    make_ext4(nights.image, 40 * MIB, nights.path / "content")
    return nights


@pytest.fixture
def raw(nights: Nights) -> Nights:
    nights.image.write_bytes(os.urandom(4 * MIB))
    return nights


@contextmanager
def mounted_all(nights: Nights, *words: str | Path) -> Iterator[None]:
    with nights.mounted("--protect", "all", *words):
        yield


def held(nights: Nights) -> list[str]:
    return [one["id"] for one in nights.status()["checkpoints"]]


def as_now(nights: Nights) -> bytes:
    return nights.live_file.read_bytes()


def test_each_night_only_what_was_written_is_read(ext4: Nights) -> None:
    dice = random.Random(5)
    with ext4.mounted(), mounted(ext4.live_file, ext4.path / "point", "-o", "loop") as point:
        for night in range(4):
            (point / f"night{night}").write_bytes(dice.randbytes(300_000))
            dice.choice(sorted(point.glob("file*"))).unlink()
            made = ext4.back_up_of(ext4.live, "--cut")
            assert held(ext4) == [made["cut"]["id"]]
            assert ext4.status()["snapshot"]["owed_blocks"] == 0
            if night:
                assert (made["why"], made["read_bytes"] < 6 * MIB) == ("", True)
    assert [one["kind"] for one in ext4.listed()] == ["full", "increment", "increment", "increment"]
    for night in range(4):
        ext4.restored("--at", ext4.listed()[night]["name"])
        run("e2fsck", "-fn", ext4.path / "restored.img")
        with mounted(ext4.path / "restored.img", ext4.path / "point", "-o", "loop,ro") as point:
            assert {path.name for path in point.glob("night*")} == {f"night{n}" for n in range(night + 1)}
    assert ext4.restored() == ext4.restored("--at", ext4.listed()[3]["name"])


def test_what_was_written_while_nothing_was_backed_up_is_known_over_other_cuts(raw: Nights) -> None:
    with mounted_all(raw):
        raw.back_up_of(raw.live, "--cut")
        for cell in (3, 20):
            overwrite(raw.live_file, cell * CELL, 10)
            snapfs("snapshot", raw.live).ok()
        made = raw.back_up_of(raw.live, "--cut")
        assert (made["why"], made["read_bytes"]) == ("", 2 * CELL)
        assert raw.restored() == as_now(raw)


def test_a_checkpoint_survives_unmounting_with_a_store_of_its_own(raw: Nights) -> None:
    with mounted_all(raw, "--store", raw.store):
        raw.back_up_of(raw.live, "--cut")
        overwrite(raw.live_file, 5 * CELL, 10)
    with mounted_all(raw, "--store", raw.store):
        overwrite(raw.live_file, 9 * CELL, 10)
        made = raw.back_up_of(raw.live, "--cut")
        assert (made["why"], made["read_bytes"]) == ("", 2 * CELL)
        assert raw.restored() == as_now(raw)


def test_without_one_the_next_night_is_compared(raw: Nights) -> None:
    for _ in range(2):
        with mounted_all(raw):
            made = raw.back_up_of(raw.live, "--cut")
            overwrite(raw.live_file, 5 * CELL, 10)
    assert (made["kind"], made["data_bytes"]) == ("increment", CELL)
    assert "is not known" in made["why"]


def test_a_void_checkpoint_makes_no_increment(raw: Nights) -> None:
    with mounted_all(raw, "--buffer-limit", "256K"):
        raw.back_up_of(raw.live, "--cut")
        snapfs("snapshot", raw.live).ok()
        overwrite(raw.live_file, 0, 3 * MIB)
        wait_until(lambda: raw.status()["snapshot"]["state"] == "overflowed")
        overwrite(raw.live_file, 3 * MIB, MIB // 2)
        made = raw.back_up_of(raw.live, "--cut")
        assert "was lost since the last backup" in made["why"]
        assert raw.restored() == as_now(raw)
        overwrite(raw.live_file, 7 * CELL, 10)
        made = raw.back_up_of(raw.live, "--cut", "--max-increments", "9")
        assert made["why"] in ("", "the increments since the last one are larger than it is")


def test_two_chains_hold_their_own(raw: Nights) -> None:
    other = raw.path / "other"
    other.mkdir()
    with mounted_all(raw):
        first = raw.back_up_of(raw.live, "--cut")["cut"]["id"]
        overwrite(raw.live_file, 5 * CELL, 10)
        snapfs("snapshot", raw.live).ok()
        snapfs("backup", raw.live, other).ok()
        assert first in held(raw)
        assert len(held(raw)) == 2
        made = raw.back_up_of(raw.live)
        assert (made["why"], made["read_bytes"]) == ("", CELL)
        assert held(raw) == [made["cut"]["id"]]


def test_a_killed_job_leaves_a_chain_and_a_checkpoint_that_fit(raw: Nights) -> None:
    """Before every step: the next one is right, and what it says of itself is too."""
    dice = random.Random(3)
    with mounted_all(raw):
        raw.back_up_of(raw.live, "--cut")
        for step in range(0, MOST, 2):
            overwrite(raw.live_file, dice.randrange(60) * CELL, 100)
            code = snapfs("backup", "--cut", raw.live, raw.backups, die_before=step).code
            assert code in (0, -signal.SIGKILL)
            overwrite(raw.live_file, dice.randrange(60) * CELL, 100)
            made: dict[str, Any] = raw.back_up_of(raw.live, "--cut", "--max-increments", "99")
            assert raw.restored() == as_now(raw), step
            assert raw.debris() == set(), step
            assert held(raw) == [made["cut"]["id"]]
            assert made["why"] in ("", "the increments since the last one are larger than it is"), step
            if code == 0:
                break
        assert code == 0
    snapfs("verify", raw.backups, "--all").ok()
