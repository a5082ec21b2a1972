"""An image with two mount points, whatever becomes of them cleaned up; and a place where a user may mount."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import FUSE_FOR_ALL, NOBODY, Bench, Room, own_room, reachable_script


@pytest.fixture
def bench() -> Iterator[Bench]:
    """1 MiB of random image; in a directory that every user can reach, which pytest's own are not."""
    path = Path("/tmp/snapfs-test-cli") / f"{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir(parents=True)
    bench = Bench(path)
    try:
        bench.image.write_bytes(os.urandom(1 << 20))
        bench.live.mkdir()
        bench.snap.mkdir()
        yield bench
    finally:
        bench.clean_up()


@pytest.fixture(scope="session")
def room() -> Iterator[Room]:
    """Mounts in which every user may open /dev/fuse and reach this project; fuse.conf allows nothing."""
    with own_room(FUSE_FOR_ALL + reachable_script()) as room:
        yield room


@pytest.fixture
def user_bench(bench: Bench) -> Bench:
    """The same, belonging to an ordinary user."""
    for path in (bench.path, bench.image, bench.live, bench.snap):
        os.chown(path, NOBODY, NOBODY)
    return bench
