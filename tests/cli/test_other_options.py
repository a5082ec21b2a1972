"""What a mount does otherwise than may be meant is said: options that it cannot follow, formats of their own."""

from __future__ import annotations

import pytest
from command_line import Bench, Done

BEGUN_AND_CARRIED_ON = [
    (["--protect=all"], ["--protect=used"], "This snapshot protects every block, as it was begun"),
    (["--protect=used"], ["--protect=all"], "This snapshot protects used blocks only, as it was begun"),
    (["--durability=power"], [], "This snapshot no longer survives a power loss"),
    ([], ["--skip-swap"], "Swap space counts as it did when this snapshot was taken"),
]


def carried_on(bench: Bench, begun: list[str], then: list[str]) -> Done:
    with bench.mounted("--store", bench.store, *begun):
        pass
    with bench.mounted("--store", bench.store, *then) as done:
        assert "Carrying on" in done.out
    return done


@pytest.mark.parametrize(("begun", "then", "said"), BEGUN_AND_CARRIED_ON)
def test_an_option_that_cannot_be_followed(bench: Bench, begun: list[str], then: list[str], said: str) -> None:
    assert carried_on(bench, begun, then).err.startswith(f"snapfs: {said}")


def test_options_that_are_followed(bench: Bench) -> None:
    assert carried_on(bench, ["--on-overflow=wait"], ["--on-overflow=break-write"]).err == ""


def test_a_disk_in_a_format_of_its_own_is_not_what_the_views_show(bench: Bench) -> None:
    with bench.image.open("r+b") as file:
        file.write(b"QFI\xfb")
    with bench.mounted() as done:
        assert done.err.startswith(f"snapfs: {bench.image} begins as a qcow2 file does")
