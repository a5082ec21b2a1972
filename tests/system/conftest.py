"""Directories and images for the tests of what is asked of the operating system."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_system import run


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """An empty directory that every user can reach and write to, which pytest's own are not."""
    path = Path("/tmp/snapfs-test-system") / f"{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir(parents=True)
    path.parent.chmod(0o755)
    path.chmod(0o777)
    try:
        yield path
    finally:
        run("rm", "-rf", "--one-file-system", path)


@pytest.fixture
def small_ext4(tmp_path: Path) -> Path:
    """A file of 8 MiB that holds an empty ext4."""
    path = tmp_path / "ext4.img"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", path)
    return path
