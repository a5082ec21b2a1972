"""Holes of the views: copies are as large as what is used, and never lack anything."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chunk_rig import MIB, folder
from ground import Ground
from mounted import Mounted, run, snapfs, wait_until

IMAGE_BYTES = 24 * MIB


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def extents(path: Path) -> list[tuple[int, int]]:
    """The data, as whoever copies the file finds it."""
    fd, found, at = os.open(path, os.O_RDONLY), [], 0
    try:
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return found
            at = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, at))
    finally:
        os.close(fd)


@pytest.fixture
def full(ground: Ground) -> Mounted:
    """An ext4 with something in it, and something in all free blocks too: only the map knows what is free."""
    image = ground.image(os.urandom(IMAGE_BYTES))
    files = ground.path / "files"
    files.mkdir()
    (files / "file").write_bytes(os.urandom(MIB))
    run("mkfs.ext4", "-q", "-E", "nodiscard", "-d", files, image)
    instance = ground.mounted(image, "--store", ground.path / "store")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready")
    return instance


def copies(source: Path, directory: Path) -> Iterator[Path]:
    """By programs that look for holes by themselves."""
    run("cp", "--sparse=auto", source, directory / "by-cp")
    yield directory / "by-cp"
    run("tar", "-S", "-C", source.parent, "-cf", directory / "tar", source.name)
    run("tar", "-C", directory, "-xf", directory / "tar", "--transform=s/.*/by-tar/")
    assert allocated(directory / "tar") < IMAGE_BYTES // 2
    yield directory / "by-tar"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", source, directory / "by-qemu")
    yield directory / "by-qemu"


def test_copies_of_a_snapshot_are_as_large_as_what_is_used(ground: Ground, full: Mounted) -> None:
    assert full.status()["no_holes"] is None
    used_bytes = full.status()["snapshot"]["used_blocks"] * 4096
    assert used_bytes < IMAGE_BYTES // 2
    assert allocated(full.snap_file) == used_bytes
    # mkfs left holes in the image where it zeroed it.
    assert MIB < sum(end - start for start, end in extents(full.snap_file)) <= used_bytes
    content = full.snap_file.read_bytes()
    for copy in copies(full.snap_file, ground.path):
        assert copy.read_bytes() == content
        assert allocated(copy) <= used_bytes + MIB
        copy.unlink()


def test_snapshots_with_names_and_chunks_have_their_holes(full: Mounted) -> None:
    full.cut("--name", "mon")
    full.cut()
    mon = full.snap / ".snapshots/mon" / full.image.name
    assert allocated(mon) < IMAGE_BYTES // 2
    found = extents(mon)
    assert sum(end - start for start, end in found) < IMAGE_BYTES // 2
    chunks = folder(full, "mon")
    in_chunks = [
        (int(name.name.split("M")[0]) * MIB + start, int(name.name.split("M")[0]) * MIB + end)
        for name in sorted(chunks.iterdir())
        for start, end in extents(name)
    ]
    assert sum(end - start for start, end in in_chunks) == sum(end - start for start, end in found)
    assert {start for start, _ in found} <= {start for start, _ in in_chunks}


def test_where_nothing_is_there_is_nothing_to_be_found(full: Mounted) -> None:
    with full.snap_file.open("rb") as file:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(file.fileno(), IMAGE_BYTES, whence)
        full.cut()
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            os.lseek(file.fileno(), 0, os.SEEK_HOLE)


def test_a_single_pass_goes_on_behind_holes(ground: Ground) -> None:
    image = ground.image(200 * MIB)
    with image.open("r+b") as file:
        file.write(os.urandom(MIB))
    instance = ground.mounted(image, "--single-pass", "--protect", "all")
    run("cp", "--sparse=auto", instance.snap_file, ground.path / "copy")
    wait_until(lambda: instance.status()["snapshot"]["released_blocks"] == 200 * MIB // 4096)


def test_what_the_kernel_has_not_written_yet_is_no_hole_of_the_live_view(ground: Ground) -> None:
    instance = ground.mounted(ground.image(16 * MIB))
    assert extents(instance.live_file) == []
    written = [(5 * MIB, 5 * MIB + 4096), (9 * MIB, 9 * MIB + 4096)]
    with instance.live_file.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 16 * MIB) as memory:
        memory[5 * MIB] = 1
        os.pwrite(file.fileno(), b"x", 9 * MIB)
        assert extents(instance.live_file) == [(0, 16 * MIB)]
        assert extents(instance.snap_file) == []
    # The kernel tells of the end of the last mapping a little later.
    wait_until(lambda: extents(instance.live_file) == written)
    instance.cut()
    assert extents(instance.snap_file) == written


def test_where_pyfuse3_is_not_ours_to_help_all_is_as_before(ground: Ground) -> None:
    instance = ground.instance(ground.image(MIB))
    instance.program = (sys.executable, "-c", "import pyfuse3; from snapfs.startup import main; main()")
    instance.mount()
    assert instance.status()["no_holes"] == "pyfuse3 was loaded before"
    assert "holes        not shown: pyfuse3 was loaded before" in snapfs("status", instance.live).stdout
    assert extents(instance.live_file) == [(0, MIB)]
