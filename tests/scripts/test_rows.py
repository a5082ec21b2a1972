"""The judgement of a goal, what counts as enough in either direction, and the choice of rows."""

import pytest

from bench.rows import BACKUP_ROWS, QEMU, RAW, ROWS_BY_NAME, Goal, Row, chosen_rows, goal_ratio

MORE = Row("more", "IOPS", "")
LESS = Row("less", "µs", "", less_is_better=True)


@pytest.mark.parametrize(
    ("row", "goal", "ours", "theirs", "reached", "met"),
    [
        (MORE, Goal(QEMU, 2), 200.0, 100.0, 2.0, True),
        (MORE, Goal(QEMU, 2), 199.0, 100.0, 1.99, False),
        (LESS, Goal(QEMU), 90.0, 100.0, 0.9, True),
        (LESS, Goal(QEMU), 101.0, 100.0, 1.01, False),
        (LESS, Goal(RAW, above=200), 300.0, 100.0, 200.0, True),
        (LESS, Goal(RAW, above=200), 301.0, 100.0, 201.0, False),
        (LESS, Goal(None, at_most=200), 150.0, None, 0.75, True),
        (LESS, Goal(None, at_most=200), 201.0, None, 1.005, False),
    ],
)
def test_goal_is_met_or_missed(
    row: Row, goal: Goal, ours: float, theirs: float | None, reached: float, met: bool
) -> None:
    assert goal_ratio(row, goal, ours, theirs) == (pytest.approx(reached), met)


def test_goal_against_a_peer_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="qemu, which was not measured"):
        goal_ratio(MORE, Goal(QEMU, 2), 1.0, None)


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        ((), set(ROWS_BY_NAME)),
        (("seq", "memory"), {"seq", "memory"}),
        (("seq", "backup"), {"seq", *(row.name for row in BACKUP_ROWS)}),
    ],
    ids=["none", "rows", "section"],
)
def test_rows_are_chosen_by_name_or_by_section(names: tuple[str, ...], rows: set[str]) -> None:
    assert chosen_rows(names) == rows
