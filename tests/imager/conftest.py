"""A prepared ext4 image, and a place where nothing of a test stays."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, Original, digests, make_ext4, make_files, run


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    """64 MiB of ext4, about half of it used."""
    directory = Path(tempfile.mkdtemp(prefix="snapfs-imager-", dir="/var/tmp"))
    try:
        make_files(directory / "content", 28 * MIB)
        image = directory / "disk.img"
        make_ext4(image, 64 * MIB, directory / "content")
        yield Original(image, digests(directory / "content"))
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def bench(original: Original) -> Iterator[Bench]:
    """A directory with a copy of the image as disk.img."""
    bench = Bench(Path(tempfile.mkdtemp(prefix="snapfs-imager-", dir="/var/tmp")).resolve())
    run("cp", "--sparse=always", original.image, bench.image)
    bench.live.mkdir()
    bench.snap.mkdir()
    try:
        yield bench
    finally:
        bench.clean_up()


@pytest.fixture
def small() -> Iterator[Bench]:
    """2 MiB of random image, for its owner alone."""
    bench = Bench(Path(tempfile.mkdtemp(prefix="snapfs-dest-", dir="/var/tmp")).resolve())
    try:
        bench.image.write_bytes(os.urandom(2 * MIB))
        bench.image.chmod(0o600)
        bench.live.mkdir()
        bench.snap.mkdir()
        yield bench
    finally:
        bench.clean_up()
