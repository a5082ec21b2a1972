"""The map of a cut is computed as long as there is somebody who wants it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cow import Protect
from snapfs.cut_facts import NOTHING_FROZEN
from snapfs.servers.maps import Maps


class Nursery:
    """Notes what is to be run."""

    def __init__(self) -> None:
        self.started: list[Any] = []

    def start_soon(self, task: Any, *arguments: Any) -> None:
        self.started.append(task)


@pytest.mark.parametrize("is_hidden", [False, True])
def test_of_a_cut_that_was_deleted_before_its_facts_were_told_there_is_none(is_hidden: bool) -> None:
    nursery: Any = Nursery()
    header = SimpleNamespace(protect=Protect.USED, cut=SimpleNamespace(is_hidden=is_hidden))
    instance: Any = SimpleNamespace(store=SimpleNamespace(header=header))
    nobody: Any = None
    Maps(instance, nobody, nobody, nursery).begin(NOTHING_FROZEN)
    assert bool(nursery.started) is not is_hidden
