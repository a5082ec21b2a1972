"""A little of the campaign of readers; `scripts/torture readers` is the whole of it."""

from __future__ import annotations

import pytest
import readers_campaign
from busy_chain import Plan


def test_a_round_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert readers_campaign.main(["--seed", "3", "--rounds", "1", "--cuts", "5"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "right, {'cuts': 5" in first
    assert last == "1 rounds, 0 faults"


def test_a_fault_is_said_with_what_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(plan: Plan, storing: object) -> dict[str, int]:
        raise AssertionError("it is wrong")

    monkeypatch.setattr(readers_campaign, "play", fail)
    assert readers_campaign.main(["--seed", "5", "--rounds", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("FAULT: it is wrong")
    assert said[1] == "    scripts/torture readers --seed 5 --cuts 100 --again"
