"""A little of the campaign of chains; `scripts/torture chain` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain_campaign import Campaign, Plan
from tree_content import SLOTS, Author, Files, Instant, directory_of, file_of, wrong_files

SEED = 2


@pytest.mark.parametrize(
    ("filesystem", "protect", "durability"),
    [("ext4", "used", "power"), ("xfs", "all", "process"), ("btrfs", "used", "process")],
)
def test_snapshots_of_a_filesystem_stay_whatever_is_deleted(filesystem: str, protect: str, durability: str) -> None:
    plan = Plan(SEED, filesystem, cuts=3, load_s=0.1, protect=protect, durability=durability)
    with Campaign(plan) as one:
        one.run()
    assert (one.counts["cuts"], one.counts["deleted"]) == (3, 3)
    # So its seed is chosen.
    assert one.counts["compared"] == (2 + 1) + (1 + 1)


def write_files(root: Path, count: int) -> Path:
    """As the first writer has left them after so many actions; the directory of them."""
    directory = directory_of(root, 0)
    directory.mkdir()
    files = Files(Author(SEED, 0))
    files.follow(count)
    for slot, number in files.numbers.items():
        file_of(directory, slot).write_bytes(files.author.content(number))
    return directory


def slot_of(number: int) -> int:
    return Author(SEED, 0).action(number).slot


def wrong(root: Path, done: int, tried: int, *, is_frozen: bool = True) -> list[str]:
    return list(wrong_files(root, SEED, Instant((done,), (tried,), is_frozen)))


@pytest.mark.parametrize(("done", "tried"), [(50, 50), (47, 50), (50, 53), (47, 53)])
def test_the_files_of_an_instant_between_the_bounds_are_right(tmp_path: Path, done: int, tried: int) -> None:
    write_files(tmp_path, 50)
    assert wrong(tmp_path, done, tried) == []


@pytest.mark.parametrize(("done", "tried"), [(40, 48), (52, 60)])
def test_the_files_of_another_instant_are_found(tmp_path: Path, done: int, tried: int) -> None:
    write_files(tmp_path, 50)
    assert len(wrong(tmp_path, done, tried)) == 1


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_file_that_is_not_what_was_synced_is_found(tmp_path: Path, is_frozen: bool) -> None:
    directory = write_files(tmp_path, 50)
    untouched = ({*range(SLOTS)} - {slot_of(number) for number in range(51, 56)}).pop()
    file_of(directory, untouched).write_bytes(b"else")
    assert str(untouched) in wrong(tmp_path, 50, 55, is_frozen=is_frozen)[0]


def test_what_the_next_action_was_at_may_be_anything(tmp_path: Path) -> None:
    directory = write_files(tmp_path, 50)
    file_of(directory, slot_of(51)).write_bytes(b"half")
    assert wrong(tmp_path, 50, 51) == []
    assert wrong(tmp_path, 50, 50) != []


def test_without_a_freeze_what_was_worked_on_since_may_be_anything(tmp_path: Path) -> None:
    directory = write_files(tmp_path, 50)
    for number in (52, 53):
        file_of(directory, slot_of(number)).write_bytes(b"half")
    assert wrong(tmp_path, 50, 53, is_frozen=False) == []
    assert wrong(tmp_path, 50, 53) != []
