"""A little of the campaign of the model; `scripts/torture model` is the whole of it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from model_campaign import play, run_campaign
from test_model import ReliefMachine


def test_another_seed_is_right_too() -> None:
    said: list[str] = []
    assert run_campaign(range(20261129, 20261130), [ReliefMachine], 5, 40, said.append) == 0
    assert said[0].startswith("seed 20261129: right, ")


class Noting(RuleBasedStateMachine):
    seen: list[int]

    @rule(number=st.integers())
    def note(self, number: int) -> None:
        self.seen.append(number)


def test_the_same_seed_takes_the_same_steps() -> None:
    runs = []
    for number in (3, 3, 4):
        Noting.seen = []
        play(Noting, number, 5, 10)
        runs.append(Noting.seen)
    assert runs[0] == runs[1] != runs[2]


class Wrong(RuleBasedStateMachine):
    @rule()
    def fail(self) -> None:
        raise AssertionError("it is wrong")


def test_a_fault_is_said_with_what_shows_it_again() -> None:
    said: list[str] = []
    assert run_campaign(range(5, 6), [Wrong], 5, 10, said.append) == 1
    assert said[0].splitlines() == [
        "seed 5: FAULT in Wrong: AssertionError: it is wrong",
        "    scripts/torture model --seed 5 --rounds 1 --only Wrong",
    ]
