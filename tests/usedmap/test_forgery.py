"""Readers survive structures that lie although their checksums are right: refused, but no failure, no long wait.

The checksums are switched off, so that damage of every kind gets past them.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from foreign_images import Reader, fill
from linux_images import MIB, READERS, make_filesystem, mounted, scatter, survive_damage

from snapfs.usedmap import btrfs, btrfs_tree, ext, ext_geometry, ext_groups, xfs, xfs_log

IMAGES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "ext4": ("ext4", 64 * MIB, ("-b", "1024")),
    "ext4 with meta_bg": ("ext4", 100 * MIB, ("-b", "1024", "-O", "meta_bg,^resize_inode")),
    "ext4 with bigalloc": ("ext4", 100 * MIB, ("-b", "4096", "-O", "bigalloc", "-C", "16384")),
    "ext2": ("ext2", 64 * MIB, ()),
    "xfs": ("xfs", 320 * MIB, ("-b", "size=1024")),
    "btrfs": ("btrfs", 300 * MIB, ("-n", "4096")),
}
SLOWEST_MAP_S = 5


@pytest.fixture
def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (ext_geometry, "_check_superblock_checksum"),
        (ext_groups, "_check_descriptor_checksums"),
        (ext, "_check_bitmap_checksums"),
        (xfs, "_check_crc"),
        (btrfs, "check_checksum"),
        (btrfs_tree, "check_checksum"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(xfs_log, "_check_record_checksum", lambda *_: True)


@pytest.mark.alone
@pytest.mark.parametrize("name", IMAGES)
def test_lies_are_survived(name: str, without_checksums: None, tmp_path: Path) -> None:
    kind, size, options = IMAGES[name]
    image = make_filesystem(kind, tmp_path / "image", size, *options)
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        scatter(directory, 300, 5000)
    reader: Reader = READERS[kind]
    start = time.process_time()
    for free_map in survive_damage(reader, image, range(400)):
        assert len(free_map.free) * free_map.unit_bytes + free_map.data_offset <= size
        assert time.process_time() - start < SLOWEST_MAP_S
        start = time.process_time()
