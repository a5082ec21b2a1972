"""A little of the campaign of mounted images; `scripts/torture run` is the whole of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from instance_model import SECTOR, Content, Model
from instance_plan import STEPS, make_plan
from instance_round import play


@pytest.mark.parametrize("seed", [1, 2])
def test_random_work_and_random_faults(seed: int) -> None:
    play(make_plan(seed, 14))


def test_every_fault_once() -> None:
    steps = ("write", "foreign", "rename", "write", "stop", "closed", "fill", "write", "kill", "write", "cut")
    assert set(steps) < set(STEPS)
    play(replace(make_plan(7, 0), steps=steps, bad_sectors=()))


def test_a_sector_that_cannot_be_read() -> None:
    plan = replace(make_plan(7, 0), steps=("write",) * 6 + ("sync", "cut", "write", "sync"), bad_sectors=(64, 1024))
    play(plan)


def test_the_same_seed_is_the_same_round() -> None:
    assert make_plan(3, 40) == make_plan(3, 40)
    assert make_plan(3, 40) != make_plan(4, 40)


def test_the_model_finds_what_is_wrong() -> None:
    content = Content(bytearray(2 * SECTOR))
    assert content.wrong(0, bytes(2 * SECTOR)) is None
    assert "sector 1" in str(content.wrong(0, bytes(SECTOR) + b"x" * SECTOR))


def test_the_model_takes_either_until_a_sync() -> None:
    model = Model(bytes(SECTOR))
    model.note_write(0, b"x" * SECTOR)
    assert model.live.wrong(0, bytes(SECTOR)) is None
    model.note_sync(succeeded=True)
    assert model.live.wrong(0, bytes(SECTOR)) is not None
