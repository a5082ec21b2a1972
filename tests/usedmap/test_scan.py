"""What an image is: ambivalent ones, containers and swap count as used; a parser's failure costs space only."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import pytest
from foreign_images import make_image, run
from linux_images import MIB, make_filesystem, only_region_reason, scan_image, stretches

from snapfs.usedmap import readers
from snapfs.usedmap.result import FreeMap
from snapfs.usedmap.source import Source

SIZE = 64 * MIB


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def test_two_filesystems_in_one_place_count_as_used(tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 320 * MIB, "-b", "4096")
    other = make_filesystem("xfs", tmp_path / "other", 320 * MIB)
    overwrite(image, 0, read(other, 0, 512))
    assert "more than one filesystem" in only_region_reason(image)


def test_a_filesystem_under_a_partition_table_counts_as_used(tmp_path: Path) -> None:
    """A leftover of one of them: nobody can say which."""
    image = make_filesystem("btrfs", tmp_path / "image", 300 * MIB)
    run("sgdisk", "-n", "1:2048:+200M", image)
    assert "at once" in only_region_reason(image)


def test_a_boot_record_without_partitions_does_not_hide_the_filesystem(tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", SIZE)
    overwrite(image, 510, b"\x55\xaa")
    (region,) = scan_image(image).regions
    assert (region.kind, region.state) == ("ext4", "trusted")


def lvm_label() -> bytes:
    content = struct.pack("<I8s", 32, b"LVM2 001") + b"a" * 32 + struct.pack("<Q", SIZE)
    content = content.ljust(512 - 20, b"\0")
    checksum = zlib.crc32(content, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return struct.pack("<8sQI", b"LABELONE", 1, checksum) + content


def md_superblock() -> bytes:
    """The start of a superblock of version 1.0, which lies behind the data; only what tells it is filled in."""
    sector = md_offset() // 512
    head = struct.pack(
        "<IIII16s32sQIIQIIIIII", 0xA92B4EFC, 1, 0, 0, b"u" * 16, b"name", 0, 1, 0, sector, 0, 2, 0, 0, 0, 0
    )
    return head + bytes(16) + struct.pack("<QQQQ", 0, sector, sector, 0)


def md_offset() -> int:
    return (SIZE // 512 - 16 & ~7) * 512


def bcache_superblock() -> bytes:
    """What tells a backing device: that it is at sector 8, its version, the magic, and the number of its keys."""
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    content = struct.pack("<QQ16s", 8, 1, magic).ljust(200, b"\0")
    return struct.pack("<Q", crc64(content)) + content


def crc64(content: bytes) -> int:
    """crc64 of ECMA-182 as bcache takes it: most significant bit first, start and result inverted."""
    crc = (1 << 64) - 1
    for byte in content:
        crc ^= byte << 56
        for _ in range(8):
            crc = (crc << 1 ^ (0x42F0E1EBA9EA3693 if crc >> 63 else 0)) & ((1 << 64) - 1)
    return crc ^ ((1 << 64) - 1)


CONTAINERS = {
    "bcache": (4096, bcache_superblock(), "device of bcache"),
    "LVM2_member": (512, lvm_label(), "volume of LVM"),
    "crypto_LUKS": (0, b"LUKS\xba\xbe\x00\x01".ljust(592, b"\0"), "encrypted volume"),
    "linux_raid_member": (md_offset(), md_superblock(), "MD array"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_count_as_used(kind: str, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", SIZE)
    offset, content, reason = CONTAINERS[kind]
    overwrite(image, offset, content)
    (region,) = scan_image(image).regions
    assert region.kind == kind
    assert reason in only_region_reason(image)


def test_a_filesystem_mirrored_by_md_counts_as_used(tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", SIZE)
    overwrite(image, md_offset(), md_superblock())
    assert only_region_reason(image)


def test_swap_counts_as_used_unless_it_is_skipped(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", SIZE)
    image.chmod(0o600)
    run("mkswap", image)
    assert "swap space counts as used" in only_region_reason(image)
    assert stretches(scan_image(image, skip_swap=True)) == [(0, 4096, True), (4096, SIZE - 4096, False)]


def test_a_bug_in_a_parser_costs_space_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
        raise IndexError("out of range")

    monkeypatch.setitem(readers.READERS, "ext4", broken)
    image = make_filesystem("ext4", tmp_path / "image", SIZE)
    assert "could not be understood" in only_region_reason(image)


def test_label_and_uuid_are_told(tmp_path: Path) -> None:
    uuid = "12345678-1234-4321-8765-123456789abc"
    image = make_filesystem("ext4", tmp_path / "image", SIZE, "-L", "photos", "-U", uuid)
    (region,) = scan_image(image).regions
    assert (region.kind, region.label, region.uuid) == ("ext4", "photos", uuid)


@pytest.mark.parametrize("block_bytes", [0, 256, 3000, 2 * MIB])
def test_senseless_blocks_are_refused(block_bytes: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="power of two"):
        scan_image(make_image(tmp_path / "image", SIZE), block_bytes)


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "options"), [("ext4", ("-E", "lazy_itable_init=1")), ("xfs", ()), ("btrfs", ())])
def test_a_tebibyte_takes_less_than_a_second(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_filesystem(kind, tmp_path / "image", 1 << 40, *options)
    scan_image(image)  # warms the cache
    start = time.process_time()
    image_map = scan_image(image)
    assert time.process_time() - start < 1
    assert image_map.regions[0].state == "trusted"
