"""One cut after the other: no process holds anything of those that have ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cut_rig import MIB, CutGround, cut
from ground import new_ground
from mounted import SERVERS, Mounted, wait_until

CUTS = 12
OLD = os.urandom(8 * MIB)


def held(view: Mounted, name: str) -> tuple[int, int]:
    """How many descriptors a process has open, and how many files of the store it has mapped."""
    pid = view.processes[name].pid
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len(os.listdir(f"/proc/{pid}/fd")), sum(str(view.store) in line for line in maps)


def use(view: Mounted) -> None:
    """Everything that opens files of a cut: preserve, compact, read from ring, segments and image."""
    with view.live_file.open("r+b", buffering=0) as file:
        file.write(os.urandom(3 * MIB))
        os.fsync(file.fileno())
    with view.snap_file.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def store_bytes(view: Mounted) -> int:
    return sum(path.lstat().st_blocks * 512 for path in view.store.rglob("*"))


def await_rest(view: Mounted) -> None:
    wait_until(lambda: view.status()["buffer"]["staged_bytes"] == 0, what="the compactor's rest")


@dataclass(frozen=True)
class Served:
    """An instance after many cuts, and what there was after the first: held by each process, and on disk."""

    view: Mounted
    first: dict[str, tuple[int, int]]
    first_bytes: int


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with new_ground(CutGround, "snapfs-cut-") as ground:
        view = ground.mounted(ground.image(OLD), "--protect", "all")
        use(view)
        cut(view.live)
        use(view)
        await_rest(view)
        first, first_bytes = {name: held(view, name) for name in SERVERS}, store_bytes(view)
        for _ in range(CUTS):
            cut(view.live)
            use(view)
        await_rest(view)
        yield Served(view, first, first_bytes)


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_held_of_cuts_that_have_ended(served: Served, name: str) -> None:
    view = served.view
    wait_until(lambda: len(list(view.store.glob("cut-*"))) == 1, what="the end of the cuts before")

    def is_as_after_the_first() -> bool:
        descriptors, mappings = held(view, name)
        first_descriptors, first_mappings = served.first[name]
        # Of the present cut there may be a few more readers at once than there were of the first.
        return descriptors <= first_descriptors + CUTS // 2 and mappings <= first_mappings

    wait_until(is_as_after_the_first, what="what was held after the first cut")
    assert store_bytes(view) <= served.first_bytes + MIB
