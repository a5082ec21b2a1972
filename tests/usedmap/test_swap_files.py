"""Swap files, page files and files of hibernation: what is skipped of them, and what is never taken for one."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bitarray import bitarray
from foreign_images import copy_image, digests, make_image, run
from foreign_images import mounted as mounted_by
from linux_images import mounted
from ntfs_images import MIB, make_ntfs

from snapfs.usedmap.ext_geometry import read_geometry
from snapfs.usedmap.ext_groups import read_groups
from snapfs.usedmap.ext_layout import EXTENT_MAGIC, INODE_FLAG_EXTENTS
from snapfs.usedmap.result import ImageMap
from snapfs.usedmap.scan import scan
from snapfs.usedmap.source import Source

SIZE = 24 * MIB
BLOCK_BYTES = 4096
SWAP_BYTES = 3 * MIB
MAP_OFFSET, MAP_BYTES = 0x28, 60
DEPTH_OFFSET = 6
PIECE_BYTES = 128 << 10


def scanned(image: Path, *, skip_swap: bool = True) -> ImageMap:
    with image.open("rb") as file:
        return scan(file.fileno(), image.stat().st_size, BLOCK_BYTES, skip_swap=skip_swap)


def skipped(image: Path) -> list[dict[str, object]]:
    (region,) = scanned(image).regions
    assert region.state == "trusted", region.reason
    return region.skipped


def poisoned(image: Path) -> bitarray:
    """Overwrite what counts as free only because it is skipped; which blocks those are."""
    freed = scanned(image, skip_swap=False).used & ~scanned(image).used
    with image.open("r+b") as file:
        for block in freed.search(1):
            file.seek(block * BLOCK_BYTES)
            file.write(b"\xa5" * BLOCK_BYTES)
    return freed


def make_swap(path: Path, size_bytes: int = SWAP_BYTES) -> Path:
    """A swap file in use: its pages hold something."""
    path.write_bytes(random.Random(7).randbytes(size_bytes))
    path.chmod(0o600)
    run("mkswap", path)
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "content"
    path.mkdir()
    for number in range(40):
        (path / f"file{number}").write_bytes(random.Random(number).randbytes(50_000))
    make_swap(path / "swapfile")
    return path


@pytest.fixture(scope="module")
def made(content: Path) -> Path:
    image = make_image(content.parent / "ext4.img", SIZE)
    run("mkfs.ext4", "-q", "-b", str(BLOCK_BYTES), "-O", "^metadata_csum", "-d", content, image)
    return image


@pytest.fixture
def ext4(made: Path, tmp_path: Path) -> Path:
    return copy_image(made, tmp_path / "ext4.img")


def test_of_a_swap_file_the_header_stays(ext4: Path, content: Path, tmp_path: Path) -> None:
    assert skipped(ext4) == [{"name": "/swapfile", "bytes": SWAP_BYTES - 4096}]
    assert poisoned(ext4).count() == SWAP_BYTES // BLOCK_BYTES - 1
    run("e2fsck", "-fn", ext4)
    with mounted(ext4, tmp_path / "point", "ro,noload") as point:
        found, expected = digests(point), digests(content)
        assert found.pop("swapfile") != expected.pop("swapfile")
        assert {name: found[name] for name in expected} == expected
        assert (point / "swapfile").read_bytes()[:4096] == (content / "swapfile").read_bytes()[:4096]


def test_without_being_asked_nothing_is_skipped(ext4: Path) -> None:
    image_map = scanned(ext4, skip_swap=False)
    assert image_map.regions[0].skipped == []


def test_a_swap_file_in_many_pieces(ext4: Path, tmp_path: Path) -> None:
    """Its extents need a tree with blocks of its own."""
    with mounted(ext4, tmp_path / "point") as point:
        (point / "swapfile").unlink()
        source = make_swap(tmp_path / "swap", 2 * MIB)
        with (point / "swap.img").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, 2 * MIB)
            # Every other piece stays unwritten: larger ones than the kernel writes zeros into for simplicity.
            for offset in range(0, 2 * MIB, 2 * PIECE_BYTES):
                os.pwrite(file.fileno(), source.read_bytes()[offset : offset + PIECE_BYTES], offset)
        run("sync", "-f", point)
        expected = digests(point)
    with ext4.open("rb") as file:
        file.seek(inode_offset(ext4, inode_number(ext4, "swap.img")) + MAP_OFFSET + DEPTH_OFFSET)
        assert file.read(1) == b"\1"
    assert skipped(ext4) == [{"name": "/swap.img", "bytes": 2 * MIB - 4096}]
    poisoned(ext4)
    run("e2fsck", "-fn", ext4)
    with mounted(ext4, tmp_path / "point", "ro,noload") as point:
        found = digests(point)
        assert found.pop("swap.img") != expected.pop("swap.img")
        assert found == expected


def _no_header(point: Path) -> None:
    with (point / "swapfile").open("r+b") as file:
        file.write(bytes(4096))


def _hibernated(point: Path) -> None:
    with (point / "swapfile").open("r+b") as file:
        file.seek(4086)
        file.write(b"S1SUSPEND\0")


def _second_name(point: Path) -> None:
    os.link(point / "swapfile", point / "also")


def _elsewhere(point: Path) -> None:
    (point / "directory").mkdir()
    (point / "swapfile").rename(point / "directory" / "swapfile")


def _other_name(point: Path) -> None:
    (point / "swapfile").rename(point / "precious")


def _too_short(point: Path) -> None:
    os.truncate(point / "swapfile", MIB)


def _hole(point: Path) -> None:
    """No system swaps to such a file."""
    run("fallocate", "--punch-hole", "--offset", str(MIB), "--length", str(MIB), point / "swapfile")


def _link(point: Path) -> None:
    (point / "swapfile").rename(point / "precious")
    (point / "swapfile").symlink_to("precious")


@pytest.mark.parametrize(
    "change", [_no_header, _hibernated, _second_name, _elsewhere, _other_name, _too_short, _hole, _link]
)
def test_what_is_no_swap_file_stays(ext4: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    with mounted(ext4, tmp_path / "point") as point:
        change(point)
    assert skipped(ext4) == []
    assert scanned(ext4).used == scanned(ext4, skip_swap=False).used


def inode_number(image: Path, name: str) -> int:
    return int(run("debugfs", "-R", f"stat /{name}", image).split("Inode: ")[1].split()[0])


def inode_offset(image: Path, number: int) -> int:
    with image.open("rb") as file:
        source = Source(file.fileno(), image.stat().st_size)
        geometry = read_geometry(source)
        groups = read_groups(source, geometry)
    group, index = divmod(number - 1, geometry.inodes_per_group)
    return int(groups.inode_table[group]) * geometry.block_bytes + index * geometry.inode_bytes


@pytest.mark.parametrize("step", [0, 1, 300])
def test_blocks_that_another_file_claims_too_stay(ext4: Path, step: int) -> None:
    swap, other = (inode_offset(ext4, inode_number(ext4, name)) for name in ("swapfile", "file0"))
    with ext4.open("r+b") as file:
        file.seek(swap + MAP_OFFSET)
        blocks = bytearray(file.read(MAP_BYTES))
        (start,) = struct.unpack_from("<I", blocks, 12 + 8)
        if step:
            # One extent, of one block, somewhere in the swap file.
            struct.pack_into("<H", blocks, 2, 1)
            struct.pack_into("<IHHI", blocks, 12, 0, 1, 0, start + step)
        file.seek(other + MAP_OFFSET)
        file.write(blocks)
        file.seek(other + 0x20)
        assert struct.unpack("<I", file.read(4))[0] & INODE_FLAG_EXTENTS
    assert skipped(ext4) == []


def test_a_tree_without_end_is_not_walked(ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an inode which is not in use the map has not looked at."""
    number = 5000
    with mounted(ext4, tmp_path / "point") as point:
        (point / "swapfile").unlink()
    with ext4.open("r+b") as file:
        file.seek(inode_offset(ext4, inode_number(ext4, "file0")))
        inode = file.read(MAP_OFFSET + MAP_BYTES)
        (start,) = struct.unpack_from("<I", inode, MAP_OFFSET + 12 + 8)
        for depth in range(5):
            # All children of a node are the same one; the last have none.
            entries = b"".join(struct.pack("<IIHH", index, start + depth - 1, 0, 0) for index in range(340))
            file.seek((start + depth) * BLOCK_BYTES)
            file.write(struct.pack("<HHHHI", EXTENT_MAGIC, 340 if depth else 0, 340, depth, 0) + entries)
        file.seek(inode_offset(ext4, number))
        tree = struct.pack("<HHHHI", EXTENT_MAGIC, 1, 4, 5, 0) + struct.pack("<IIHH", 0, start + 4, 0, 0)
        file.write(inode[:MAP_OFFSET] + tree)
    run("debugfs", "-w", "-R", f"link <{number}> swapfile", ext4)
    read, reads = Source.read, 0

    def counted(source: Source, offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads > 200_000:
            pytest.fail("It is walked for ever.")
        return read(source, offset, length)

    monkeypatch.setattr(Source, "read", counted)
    assert skipped(ext4) == []
    assert reads > 1000, "the tree was not come to"


NTFS_FILES = ("pagefile.sys", "swapfile.sys", "hiberfil.sys")


@pytest.fixture(scope="module")
def made_ntfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ntfs")
    image = make_ntfs(directory / "ntfs.img", SIZE)
    with mounted_by(image, "ntfs-3g", directory / "point") as point:
        for number, name in enumerate((*NTFS_FILES, "precious.sys", "other")):
            (point / name).write_bytes(b"wake" + random.Random(number).randbytes(MIB + 100))
        (point / "directory").mkdir()
        (point / "directory" / "pagefile.sys").write_bytes(random.Random(9).randbytes(MIB))
    return image


@pytest.fixture
def ntfs(made_ntfs: Path, tmp_path: Path) -> Path:
    return copy_image(made_ntfs, tmp_path / "ntfs.img")


def test_of_ntfs_the_contents_of_its_files_of_memory_are_skipped(ntfs: Path, tmp_path: Path) -> None:
    with mounted_by(ntfs, "ntfs-3g", tmp_path / "point", "-o", "ro") as point:
        expected = digests(point)
    assert skipped(ntfs) == [{"name": f"/{name}", "bytes": MIB + 4096} for name in NTFS_FILES]
    poisoned(ntfs)
    with mounted_by(ntfs, "ntfs-3g", tmp_path / "point", "-o", "ro") as point:
        found = digests(point)
    for name in NTFS_FILES:
        assert found.pop(name) != expected.pop(name)
    assert found == expected


def test_a_hibernated_windows_keeps_all(ntfs: Path, tmp_path: Path) -> None:
    with mounted_by(ntfs, "ntfs-3g", tmp_path / "point") as point, (point / "hiberfil.sys").open("r+b") as file:
        file.write(b"HIBR")
    (region,) = scanned(ntfs).regions
    assert "hibernated" in region.reason
    assert region.skipped == []


def _ntfs_second_name(point: Path) -> None:
    os.link(point / "pagefile.sys", point / "also")


def _ntfs_other_name(point: Path) -> None:
    (point / "pagefile.sys").rename(point / "precious")


def _ntfs_moved(point: Path) -> None:
    (point / "pagefile.sys").rename(point / "directory" / "was in the root")


def _ntfs_swapped(point: Path) -> None:
    """The record is that of another file now."""
    (point / "pagefile.sys").unlink()
    (point / "new").write_bytes(random.Random(3).randbytes(MIB))


@pytest.mark.parametrize("change", [_ntfs_second_name, _ntfs_other_name, _ntfs_moved, _ntfs_swapped])
def test_of_ntfs_what_is_no_page_file_stays(ntfs: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    with mounted_by(ntfs, "ntfs-3g", tmp_path / "point") as point:
        change(point)
    assert [one["name"] for one in skipped(ntfs)] == ["/swapfile.sys", "/hiberfil.sys"]
