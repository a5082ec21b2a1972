"""Joining neighbouring blocks: what becomes one record."""

from __future__ import annotations

from cow.compact.runs import find_neighbours, join


def test_neighbours_are_joined() -> None:
    runs = join([(3, [10]), (4, [11, 12]), (6, [5])], max_blocks=16)
    assert [(run.block_no, run.entries) for run in runs] == [(3, [10, 11, 12, 5])]
    assert runs[0].end == 7


def test_a_gap_begins_a_new_run() -> None:
    runs = join([(3, [10]), (5, [11])], max_blocks=16)
    assert [(run.block_no, run.entries) for run in runs] == [(3, [10]), (5, [11])]


def test_no_run_is_longer_than_a_record_may_be() -> None:
    runs = join([(0, [1]), (1, list(range(2, 9)))], max_blocks=3)
    assert [(run.block_no, run.entries) for run in runs] == [(0, [1, 2, 3]), (3, [4, 5, 6]), (6, [7, 8])]


def test_slots_hold_neighbours_where_their_tags_count_up() -> None:
    assert list(find_neighbours([7, 8, 9, 2, 4, 5], block_count=100)) == [(0, 7, 10), (3, 2, 3), (4, 4, 6)]


def test_tags_of_no_block_are_left_out() -> None:
    assert list(find_neighbours([98, 99, 100, 101, 200], block_count=100)) == [(0, 98, 100)]
