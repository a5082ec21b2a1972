"""Bitmaps of ext without checksums are compared with what the inodes claim."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from foreign_images import copy_image, fill, read_map, run
from linux_images import MIB, DamagedImage, frozen, make_filesystem, mounted

from snapfs.usedmap import ext
from snapfs.usedmap.result import MapError

OPTIONS: dict[str, tuple[str, ...]] = {
    "ext2 of 1K": ("ext2", "-b", "1024", "-I", "128"),
    "ext3": ("ext3", "-b", "2048"),
    "ext4 without checksums": ("ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg"),
    "ext4 with gdt_csum": ("ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg", "-E", "lazy_itable_init=1"),
    "bigalloc": ("ext4", "-b", "1024", "-C", "4096", "-O", "^metadata_csum,uninit_bg,bigalloc"),
}


def fill_with_everything(directory: Path) -> None:
    """Every way in which an inode can hold blocks."""
    fill(directory)
    with (directory / "deep").open("wb") as file:
        for offset in (0, 20 * 1024, MIB, 80 * MIB):  # direct, and through one, two and three blocks of pointers
            file.seek(offset)
            file.write(b"deep")
    with (directory / "pieces").open("wb") as file:
        for number in range(700):  # more extents than fit into an inode, and than one block holds
            file.seek(number * 8192)
            file.write(b"piece")
            if number % 100 == 0:
                os.fsync(file.fileno())
    os.setxattr(directory / "deep", "user.large", b"a" * 700)
    (directory / "link").symlink_to("x" * 200)
    (directory / "short").symlink_to("x" * 20)
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "device", 0o60600, os.makedev(7, 99))


@pytest.fixture(scope="module", params=OPTIONS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("claims")
    kind, *options = OPTIONS[request.param]
    image = make_filesystem(kind, work / "image", 48 * MIB, *options)
    with mounted(image, work / "mnt") as directory:
        fill_with_everything(directory)
    if kind == "ext4" and "bigalloc" not in options[-1]:
        run("tune2fs", "-O", "quota", image)
    return image


class Bitmaps:
    """The block bitmaps of an image, to exchange a used block for a free one, which keeps every count."""

    def __init__(self, path: Path) -> None:
        text = run("dumpe2fs", path)
        self.block_bytes = number(r"^Block size:\s+(\d+)", text)
        self.first_block = number(r"^First block:\s+(\d+)", text)
        self.per_group = number(r"^Blocks per group:\s+(\d+)", text)
        self.ratio = number(r"^Cluster size:\s+(\d+)", text) // self.block_bytes if "Cluster size" in text else 1
        self.places = [int(place) for place in re.findall(r"[Bb]lock bitmap at (\d+)", text)]
        self.damaged = DamagedImage(path)
        self.free = read_map(ext.read_free_map, path).free

    def partner(self, unit: int) -> int:
        """A free cluster in the group of the used one, -1 without."""
        start = unit - unit % (self.per_group // self.ratio)
        return self.free.find(1, start, start + self.per_group // self.ratio)

    def flip(self, unit: int) -> None:
        group, bit = divmod(unit, self.per_group // self.ratio)
        self.damaged.content[self.places[group] * self.block_bytes + bit // 8] ^= 1 << bit % 8

    def refusal(self, unit: int) -> str:
        """What the reader says when the used cluster `unit` has changed places with a free one.

        "the same" where the bitmap does not count, since nothing was ever written to its group.
        """
        free_unit = self.partner(unit)
        for changed in (unit, free_unit):
            self.flip(changed)
        try:
            free = ext.read_free_map(self.damaged.source()).free
        except MapError as error:
            return str(error)
        finally:
            for changed in (unit, free_unit):
                self.flip(changed)
        return "the same" if free == self.free else "trusted"


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, pattern
    return int(found[1])


def test_a_used_block_that_changed_places_with_a_free_one_is_noticed(image: Path) -> None:
    bitmaps = Bitmaps(image)
    used = [unit for unit in (~bitmaps.free).search(1) if bitmaps.partner(unit) >= 0]
    for unit in random.Random(5).sample(used, 300):
        assert re.search("call free|number of free blocks|the same", bitmaps.refusal(unit)), unit


def test_blocks_of_pointers_and_attributes_are_claimed_too(image: Path) -> None:
    bitmaps = Bitmaps(image)
    text = "".join(run("debugfs", "-R", f"stat {name}", image) for name in ("/deep", "/pieces", "<3>", "<7>", "<8>"))
    blocks = re.findall(r"\((?:IND|DIND|TIND|ETB\d+)\):(\d+)", text) + re.findall(r"File ACL: ([1-9]\d*)", text)
    assert len(blocks) >= 5
    for block in map(int, blocks):
        unit = (block - bitmaps.first_block) // bitmaps.ratio
        assert re.search("call free|number of free blocks", bitmaps.refusal(unit)), block


def test_a_deleted_file_that_is_open_still_counts(tmp_path: Path) -> None:
    image = make_filesystem("ext3", tmp_path / "image", 32 * MIB, "-b", "1024")
    with mounted(image, tmp_path / "mnt") as directory, (directory / "gone").open("wb") as file:
        file.write(bytes(range(256)) * 64)
        file.flush()
        os.fsync(file.fileno())
        inode = os.fstat(file.fileno()).st_ino
        (directory / "gone").unlink()
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    bitmaps = Bitmaps(copy)
    block = number(r"\(0(?:-\d+)?\):(\d+)", run("debugfs", "-R", f"stat <{inode}>", copy))
    assert "call free" in bitmaps.refusal(block - bitmaps.first_block)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    image = make_filesystem("ext2", tmp_path / "image", 16 * MIB, "-b", "1024")
    with mounted(image, tmp_path / "mnt") as directory:
        (directory / "file").write_bytes(bytes(400_000))
    return image


def refusal(image: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(ext.read_free_map, image)
    return str(caught.value)


def block_of(image: Path, kind: str) -> int:
    return number(rf"\({kind}\):(\d+)", run("debugfs", "-R", "stat /file", image))


def test_pointers_that_go_round_in_circles_end(small: Path) -> None:
    double = block_of(small, "DIND")
    with small.open("r+b") as file:
        file.seek(double * 1024)
        file.write(double.to_bytes(4, "little") * 256)
    assert "two ways to one block" in refusal(small)


def test_a_pointer_outside_is_refused(small: Path) -> None:
    run("debugfs", "-w", "-R", "sif /file block[3] 99999999", small)
    assert "points outside" in refusal(small)


def test_a_file_in_an_inode_called_free_is_refused(small: Path) -> None:
    run("debugfs", "-w", "-R", "mkdir /second", small)
    inode = number(r"Inode: (\d+)", run("debugfs", "-R", "stat /file", small))
    free = number(r"free blocks, (\d+) free inodes", run("debugfs", "-R", "stats", small))
    run("debugfs", "-w", "-R", f"freei <{inode}>", small)
    run("debugfs", "-w", "-R", f"set_bg 0 free_inodes_count {free + 1}", small)
    assert "in an inode that its bitmap calls free" in refusal(small)


def test_an_inode_bitmap_that_contradicts_its_count_is_refused(small: Path) -> None:
    run("debugfs", "-w", "-R", "set_bg 0 free_inodes_count 7", small)
    assert "number of free inodes" in refusal(small)


def test_translators_of_the_hurd_are_claimed(tmp_path: Path) -> None:
    image = make_filesystem("ext2", tmp_path / "image", 16 * MIB, "-b", "1024", "-o", "hurd", "-I", "128")
    run("debugfs", "-w", "-R", "mkdir /node", image)
    run("debugfs", "-w", "-R", "sif /node translator 9000", image)
    assert "block 9000" in refusal(image)


@pytest.mark.parametrize(("offset", "value", "reason"), [(0, 0, "broken"), (6, 6, "depth"), (6, 1, "outside|free")])
def test_a_broken_extent_tree_is_refused(offset: int, value: int, reason: str, tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 16 * MIB, "-O", "^metadata_csum,^uninit_bg")
    block_bytes = number(r"^Block size:\s+(\d+)", run("dumpe2fs", "-h", image))
    where = run("debugfs", "-R", "imap /lost+found", image)
    place = number(r"block (\d+)", where) * block_bytes + int(re.search(r"offset (0x\w+)", where)[1], 16)  # type: ignore[index]
    with image.open("r+b") as file:
        file.seek(place + 0x28 + offset)
        file.write(value.to_bytes(2, "little"))
    assert re.search(reason, refusal(image))


@pytest.mark.parametrize("options", [("ext3",), ("ext4", "-O", "^resize_inode,metadata_csum")])
def test_a_lost_write_of_all_bitmaps_and_counts_is_noticed(options: tuple[str, ...], tmp_path: Path) -> None:
    """Superblock, descriptors and bitmaps of yesterday are right among themselves; the inodes are newer."""
    kind, *more = options
    image = make_filesystem(kind, tmp_path / "image", 32 * MIB, "-b", "2048", "-O", "meta_bg,^resize_inode", *more)
    before = image.read_bytes()[: 5 * 2048]
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    with image.open("r+b") as file:
        file.write(before)
    assert refusal(image)
