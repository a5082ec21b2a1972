"""What a snapshot costs: time, memory and space that do not follow the size of the image."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_rig import BOOT, QuickFiles, Rig

from cow.disk.files import PAGE_BYTES
from cow.disk.image import Image
from cow.live.engine import LiveEngine
from cow.mount.recovery import Opened, Request, open_store
from cow.snapshot import SnapshotReader

# What it measures others would spoil.
pytestmark = pytest.mark.alone

HUGE_BYTES = 16 << 40
MakeRig = Callable[..., Rig]


@pytest.fixture
def huge_image(tmp_path: Path) -> Iterator[Image]:
    """A sparse image of 16 TiB, where the filesystem can hold one (ext4 of 4 KiB blocks can, but for a page)."""
    fd = os.open(tmp_path / "huge", os.O_RDWR | os.O_CREAT)
    size_bytes = HUGE_BYTES - PAGE_BYTES
    os.ftruncate(fd, size_bytes)
    yield Image(fd, size_bytes, QuickFiles())
    os.close(fd)


def open_huge(image: Image, path: Path) -> Opened:
    return open_store(path, image, Request("huge", 4096, BOOT, staging_bytes=1 << 20), QuickFiles())


def used_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*"))


def test_16_tib_opens_at_once_and_untouched_takes_nothing(huge_image: Image, tmp_path: Path) -> None:
    started = time.process_time()
    opened = open_huge(huge_image, tmp_path / "store")
    assert time.process_time() - started < 1
    assert used_bytes(tmp_path / "store") < 2 << 20
    opened.store.close()


def test_16_tib_carries_on_at_once_with_blocks_at_both_ends(huge_image: Image, tmp_path: Path) -> None:
    opened = open_huge(huge_image, tmp_path / "store")
    engine = LiveEngine(opened.store, huge_image)
    last = huge_image.size_bytes - 1
    for offset in (0, last // 2, last):
        engine.write(offset, b"x")
    opened.store.close()
    started = time.process_time()
    opened = open_huge(huge_image, tmp_path / "store")
    assert time.process_time() - started < 1
    reader = SnapshotReader(opened.store, huge_image)
    assert reader.read(last, 1) == b"\0"
    assert LiveEngine(opened.store, huge_image).read(last, 1) == b"x"
    opened.store.close()


def realistic_bytes(length: int) -> bytes:
    """Programs, libraries and sources of this machine, a third each."""
    patterns = {"/usr/bin": "*", "/usr/lib": "*.so*", sys.prefix: "*.py"}
    parts = [files_of(Path(directory), pattern, length // 3) for directory, pattern in patterns.items()]
    return b"".join(parts)


def files_of(directory: Path, pattern: str, length: int) -> bytes:
    found = bytearray()
    for path in sorted(directory.rglob(pattern)):
        if len(found) < length and path.is_file() and not path.is_symlink():
            found += path.read_bytes()[: 1 << 20]
    return bytes(found[:length])


def test_realistic_data_is_preserved_in_60_percent(make_rig: MakeRig) -> None:
    old = realistic_bytes(32 << 20)
    rig = make_rig(old, staging_slots=8192)
    rig.open()
    for offset in range(0, len(old), 1 << 20):
        length = min(1 << 20, len(old) - offset)
        rig.write(offset, bytes(length))
        while rig.compactor.backlog_share > 0.4:
            rig.compactor.step()
    rig.compactor.drain()
    assert used_bytes(rig.cut.segments.directory) <= 0.6 * len(old)
    assert rig.snapshot() == old
