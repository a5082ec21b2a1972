"""What the two views show and refuse."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, run

BYTES = 1 << 20


@pytest.fixture
def views(ground: Ground) -> Mounted:
    """Both views of an image of 1 MiB and 300 bytes, writethrough."""
    image = ground.image(os.urandom(BYTES + 300))
    os.chmod(image, 0o640)
    os.chown(image, 1234, 4321)
    os.utime(image, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    return ground.mounted(image, "--cache", "writethrough")


@pytest.fixture(scope="module")
def unchanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all tests that change nothing."""
    ground = Ground(tmp_path_factory.mktemp("views").resolve())
    try:
        image = ground.image(os.urandom(BYTES + 300))
        os.chmod(image, 0o640)
        os.chown(image, 1234, 4321)
        os.utime(image, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
        yield ground.mounted(image)
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)


def errno_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def test_one_directory_with_one_file(unchanging: Mounted) -> None:
    assert os.listdir(unchanging.live) == os.listdir(unchanging.snap) == [unchanging.image.name]


def test_attributes_of_the_image(unchanging: Mounted) -> None:
    image, live, snap = (os.stat(path) for path in (unchanging.image, unchanging.live_file, unchanging.snap_file))
    for view in (live, snap):
        assert (view.st_uid, view.st_gid) == (1234, 4321)
        assert view.st_size == image.st_size == BYTES + 300
        assert view.st_mtime_ns == image.st_mtime_ns
        assert view.st_nlink == 1
    assert stat.S_IMODE(live.st_mode) == 0o640
    assert stat.S_IMODE(snap.st_mode) == 0o440


# --- the snapshot view -----------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda view, file: os.open(file, os.O_WRONLY),
    "read and write": lambda view, file: os.open(file, os.O_RDWR),
    "open truncating": lambda view, file: os.open(file, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda view, file: os.truncate(file, 0),
    "truncate to its size": lambda view, file: os.truncate(file, BYTES + 300),
    "create": lambda view, file: os.open(view / "new", os.O_WRONLY | os.O_CREAT),
    "rename": lambda view, file: os.rename(file, view / "new"),
    "unlink": lambda view, file: os.unlink(file),
    "chmod": lambda view, file: os.chmod(file, 0o600),
    "chown": lambda view, file: os.chown(file, 0, 0),
    "utime": lambda view, file: os.utime(file),
    "mkdir": lambda view, file: os.mkdir(view / "new"),
    "symlink": lambda view, file: os.symlink("a", view / "new"),
    "link": lambda view, file: os.link(file, view / "new"),
    "mknod": lambda view, file: os.mknod(view / "new"),
    "setxattr": lambda view, file: os.setxattr(file, "user.a", b"b"),
    "chmod of the directory": lambda view, file: os.chmod(view, 0o700),
}


@pytest.mark.parametrize("change", CHANGES)
def test_snapshot_view_refuses(unchanging: Mounted, change: str) -> None:
    code = errno_of(lambda: CHANGES[change](unchanging.snap, unchanging.snap_file))
    assert errno.errorcode.get(code) == "EROFS"
    assert unchanging.snap_file.read_bytes() == unchanging.image.read_bytes()


# --- the live view ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["create", "rename", "unlink", "mkdir", "symlink", "link", "mknod", "truncate"])
def test_live_view_refuses(unchanging: Mounted, change: str) -> None:
    code = errno_of(lambda: CHANGES[change](unchanging.live, unchanging.live_file))
    assert errno.errorcode.get(code) == "EPERM"
    assert os.stat(unchanging.live_file).st_size == BYTES + 300


def test_live_view_refuses_to_grow(unchanging: Mounted) -> None:
    assert errno_of(lambda: os.truncate(unchanging.live_file, 2 * BYTES)) == errno.EPERM


def test_truncate_to_the_same_size(views: Mounted) -> None:
    os.truncate(views.live_file, BYTES + 300)
    assert views.live_file.read_bytes() == views.image.read_bytes()


def test_attributes_set_on_live_reach_the_image(views: Mounted) -> None:
    os.chmod(views.live_file, 0o600)
    os.chown(views.live_file, 7, 8)
    os.utime(views.live_file, ns=(1_111_111_111_000_000_001, 1_222_222_222_000_000_002))
    image, live = os.stat(views.image), os.stat(views.live_file)
    assert stat.S_IMODE(image.st_mode) == stat.S_IMODE(live.st_mode) == 0o600
    assert (image.st_uid, image.st_gid) == (live.st_uid, live.st_gid) == (7, 8)
    assert image.st_mtime_ns == live.st_mtime_ns == 1_222_222_222_000_000_002
    assert os.stat(views.snap_file).st_mtime_ns == 1_500_000_000_987_654_321


def test_chmod_leaves_the_times(views: Mounted) -> None:
    before = os.stat(views.image)
    os.chmod(views.live_file, 0o666)
    after = os.stat(views.image)
    assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["writethrough", "O_DIRECT"])
def test_write_past_the_end(views: Mounted, flags: int) -> None:
    fd = os.open(views.live_file, os.O_RDWR | flags)
    try:
        buffer = mmap.mmap(-1, 4096)
        buffer[:] = b"x" * 4096
        assert errno_of(lambda: os.pwrite(fd, buffer, 2 * BYTES)) == errno.ENOSPC
        assert os.pread(fd, 4096, BYTES) == views.snap_file.read_bytes()[BYTES:]
    finally:
        os.close(fd)
    assert os.stat(views.image).st_size == BYTES + 300


def test_write_across_the_end_keeps_what_fits(views: Mounted) -> None:
    fd = os.open(views.live_file, os.O_RDWR)
    try:
        done = os.pwrite(fd, b"y" * 1000, BYTES + 200)
        assert done == 100
    finally:
        os.close(fd)
    assert views.image.read_bytes()[-101:] == views.snap_file.read_bytes()[-101:-100] + b"y" * 100


def test_write_past_the_end_does_not_change_the_size_shown(ground: Ground) -> None:
    """With the kernel's write-back cache nobody can refuse the write; it must not look as if it were kept."""
    instance = ground.mounted(ground.image(BYTES))
    instance.expect_log("write of the image failed")
    fd = os.open(instance.live_file, os.O_RDWR)
    try:
        with_errors = errno_of(lambda: os.pwrite(fd, b"x" * 4096, 2 * BYTES)) or errno_of(lambda: os.fsync(fd))
        assert with_errors
    finally:
        os.close(fd)
    assert os.stat(instance.image).st_size == BYTES


def test_append_is_refused(views: Mounted) -> None:
    fd = os.open(views.live_file, os.O_WRONLY | os.O_APPEND)
    try:
        assert errno_of(lambda: os.write(fd, b"more")) == errno.ENOSPC
    finally:
        os.close(fd)


def test_df_shows_the_image_full(unchanging: Mounted) -> None:
    for view in (unchanging.live, unchanging.snap):
        info = os.statvfs(view)
        assert info.f_blocks * info.f_frsize == -(-(BYTES + 300) // 4096) * 4096
        assert info.f_bfree == info.f_bavail == 0
        assert run("df", "--output=size,avail", "-B4096", view).split()[-2:] == ["257", "0"]


def test_fsync(unchanging: Mounted) -> None:
    for path, flags in (
        (unchanging.live_file, os.O_RDWR),
        (unchanging.snap_file, os.O_RDONLY),
        (unchanging.live, os.O_RDONLY),
    ):
        fd = os.open(path, flags)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)


def test_mmap_reads(unchanging: Mounted) -> None:
    content = unchanging.image.read_bytes()
    for path in (unchanging.live_file, unchanging.snap_file):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == content


@pytest.mark.parametrize("extra", [0, 1, 511, 1000])
def test_direct_read_at_the_odd_end(ground: Ground, extra: int) -> None:
    content = os.urandom(8192 + extra)
    instance = ground.mounted(ground.image(content))
    for path in (instance.live_file, instance.snap_file):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            buffer = mmap.mmap(-1, 65536)
            assert os.preadv(fd, [buffer], 4096) == 4096 + extra
            assert buffer[: 4096 + extra] == content[4096:]
            assert os.preadv(fd, [buffer], 1 << 20) == 0
        finally:
            os.close(fd)


# --- names and devices -----------------------------------------------------------------------------------------

NAMES = [
    b"two words.img",
    b"a,b,c.img",
    b"back\\slash.img",
    b"back\\,both\\\\.img",
    b"tab\tnew\nline.img",
    "größe-日本.img".encode(),
    b"\xff\xfe not text.img",
    b"quote'\"$`.img",
    b"#octal\\040.img",
    b"-o ro.img",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_the_image(ground: Ground, name: bytes) -> None:
    image = ground.image(os.urandom(10000), name=os.path.join("dir " + os.fsdecode(name), os.fsdecode(name)))
    instance = ground.mounted(image)
    assert os.listdir(os.fsencode(instance.live)) == os.listdir(os.fsencode(instance.snap)) == [name]
    assert instance.live_file.read_bytes() == instance.snap_file.read_bytes() == image.read_bytes()
    instance.umount(image)
    assert not instance.store.exists()


def test_any_name_of_the_mount_points(ground: Ground) -> None:
    instance = ground.mounted(ground.image(10000), name="views, \\odd\t\udcff ü")
    assert instance.snap_file.read_bytes() == bytes(10000)
    instance.umount()


def test_block_device(ground: Ground) -> None:
    backing = ground.image(os.urandom(4 * BYTES), name="backing")
    content = backing.read_bytes()
    device = ground.loop(backing)
    node = os.stat(device)
    instance = ground.mounted(device, "--store", ground.path / "store")
    for path in (instance.live_file, instance.snap_file):
        info = os.stat(path)
        assert stat.S_ISREG(info.st_mode)
        assert info.st_size == 4 * BYTES
    fd = os.open(instance.live_file, os.O_RDWR)
    os.pwrite(fd, b"new" * 3000, 12345)
    os.fsync(fd)
    os.fchmod(fd, 0o644)
    os.close(fd)
    expected = content[:12345] + b"new" * 3000 + content[21345:]
    assert instance.live_file.read_bytes() == expected
    assert instance.snap_file.read_bytes() == content
    assert os.stat(device).st_mode == node.st_mode
    instance.umount(device)
    assert device.read_bytes() == expected
    ground.drop_loop(device)
    assert backing.read_bytes() == expected
