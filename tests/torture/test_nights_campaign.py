"""A little of the campaign of nights; `scripts/torture nights` is the whole of it."""

from __future__ import annotations

from nights_campaign import Campaign, Plan


def test_every_night_comes_back_whatever_was_between() -> None:
    with Campaign(Plan(seed=1, nights=4)) as one:
        one.run()
    assert sum(one.counts.values()) == 4


def test_a_night_after_a_power_loss_comes_back() -> None:
    with Campaign(Plan(seed=2, nights=2, durability="power", events=("power",))) as one:
        one.run()
    assert sum(one.counts.values()) == 2
