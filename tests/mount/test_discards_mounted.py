"""Discards of the live view: the image gets its space back, and the snapshot keeps what it needs."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from chunk_rig import MIB
from ground import Ground
from mounted import SNAPFS, Mounted, run

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, COLLAPSE_RANGE = 0x01, 0x02, 0x10, 0x08
IMAGE_BYTES = 24 * MIB
_libc = ctypes.CDLL(None, use_errno=True)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    """From whoever serves it, not from the kernel's pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, IMAGE_BYTES, 0)
    finally:
        os.close(fd)


def test_fstrim_of_a_filesystem_on_the_live_view_gives_the_space_back(ground: Ground) -> None:
    """The kernel lets a loop device over FUSE discard."""
    image = ground.image(IMAGE_BYTES)
    run("mkfs.ext4", "-q", image)
    instance = ground.mounted(image, "--store", ground.path / "store")
    files = ground.mount(ground.loop(instance.live_file))
    (files / "file").write_bytes(os.urandom(8 * MIB))
    instance.cut("--name", "with-file")
    before, taken = content(instance.snap_file), allocated(image)
    (files / "file").unlink()
    # Until then the journal may bring it back.
    run("sync", "-f", files)
    run("fstrim", files)
    assert allocated(image) <= taken - 8 * MIB
    assert content(instance.snap_file) == before
    run("umount", files)
    instance.cut()
    assert content(instance.snap / ".snapshots/with-file" / image.name) == before
    # Nor is that a hole of it, though it is one of the image.
    copy = ground.path / "copy.img"
    run(SNAPFS, "backup", instance.live, copy, "--snapshot", "with-file")
    assert copy.read_bytes() == before


@pytest.fixture
def plain(ground: Ground) -> Mounted:
    """No block is free."""
    return ground.mounted(ground.image(os.urandom(IMAGE_BYTES)), "--protect", "all")


def test_a_hole_is_punched_into_the_image_and_not_into_the_snapshot(plain: Mounted) -> None:
    before, taken = content(plain.snap_file), allocated(plain.image)
    fallocate(plain.live_file, PUNCH_HOLE | KEEP_SIZE, 2 * MIB + 100, 10 * MIB)
    expected = before[: 2 * MIB + 100] + bytes(10 * MIB) + before[12 * MIB + 100 :]
    assert plain.live_file.read_bytes() == plain.image.read_bytes() == expected
    assert content(plain.snap_file) == before
    assert taken - 10 * MIB <= allocated(plain.image) <= taken - 10 * MIB + 8192
    assert allocated(plain.live_file) == allocated(plain.image)


def test_a_backup_has_what_was_discarded_since_the_cut(plain: Mounted, tmp_path: Path) -> None:
    before, copy = content(plain.snap_file), tmp_path / "copy.img"
    fallocate(plain.live_file, PUNCH_HOLE | KEEP_SIZE, 2 * MIB + 100, 10 * MIB)
    run(SNAPFS, "backup", plain.live, copy)
    assert copy.read_bytes() == before


def test_an_older_snapshot_is_as_large_as_before(plain: Mounted) -> None:
    """The image had its blocks, and a later snapshot has them now."""
    plain.cut("--name", "older")
    plain.cut()
    fallocate(plain.live_file, PUNCH_HOLE | KEEP_SIZE, 0, IMAGE_BYTES)
    assert allocated(plain.snap / ".snapshots/older" / plain.image.name) == IMAGE_BYTES


def test_what_the_kernel_holds_of_it_goes_too(plain: Mounted) -> None:
    with plain.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * MIB, MIB)
        fallocate(plain.live_file, PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
        assert os.pread(file.fileno(), MIB, MIB) == bytes(MIB)
        os.fsync(file.fileno())
    assert plain.image.read_bytes()[MIB : 2 * MIB] == bytes(MIB)


def test_zeros_that_keep_their_room_and_what_is_not_supported(plain: Mounted) -> None:
    taken = allocated(plain.image)
    fallocate(plain.live_file, ZERO_RANGE, 0, MIB)
    assert plain.live_file.read_bytes()[:MIB] == bytes(MIB)
    assert allocated(plain.image) == taken
    fallocate(plain.live_file, ZERO_RANGE | KEEP_SIZE, IMAGE_BYTES - 10, MIB)
    assert plain.live_file.read_bytes().endswith(bytes(10))
    for mode, code in ((0, errno.EOPNOTSUPP), (COLLAPSE_RANGE, errno.EOPNOTSUPP)):
        with pytest.raises(OSError, match=os.strerror(code)):
            fallocate(plain.live_file, mode, 0, MIB)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fallocate(plain.live_file, ZERO_RANGE, IMAGE_BYTES, MIB)
    assert plain.live_file.stat().st_size == IMAGE_BYTES
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        fallocate(plain.snap_file, PUNCH_HOLE | KEEP_SIZE, 0, MIB)


def test_qemu_passes_discards_on_to_a_device(ground: Ground) -> None:
    """Which gives the space back where it can: a loop device has that of its file."""
    backing = ground.image(os.urandom(IMAGE_BYTES))
    instance = ground.mounted(ground.loop(backing), "--protect", "all", "--store", ground.path / "store")
    live, snap = next(instance.live.iterdir()), next(instance.snap.iterdir())
    before, taken = content(snap), allocated(backing)
    run("qemu-io", "-f", "raw", "-d", "unmap", "-c", f"discard {4 * MIB} {8 * MIB}", live)
    assert content(live) == before[: 4 * MIB] + bytes(8 * MIB) + before[12 * MIB :]
    assert content(snap) == before
    assert allocated(backing) <= taken - 8 * MIB
