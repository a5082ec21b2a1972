"""Mounts found, judged dead or alive, and unmounted, without waiting for a server that never answers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_system import NOBODY, in_child, loop_device, mounted, run, silent_fuse_mount

from snapfs.errors import BusyError, NotMountedError, PermissionDeniedError
from snapfs.system import libc, mounts


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "live"
    path.mkdir()
    return path


@pytest.fixture
def tmpfs(point: Path) -> Iterator[Path]:
    with mounted("tmpfs", point, "-t", "tmpfs") as path:
        yield path


def test_a_line_of_mountinfo_is_read_with_its_escapes() -> None:
    line = rb"36 35 98:11 /a\134b /mnt/my\040disk rw,noatime master:1 - fuse.snapfs /srv/a\011b.img ro,user_id=7"
    mount = mounts.parse_mountinfo_line(line)
    assert mount.mount_point == Path("/mnt/my disk")
    assert (mount.fstype, mount.source, mount.device) == ("fuse.snapfs", "/srv/a\tb.img", (98, 11))
    assert mount.options == ("rw", "noatime", "ro", "user_id=7")
    assert (mount.mount_id, mount.parent_id, mount.root) == (36, 35, "/a\\b")
    assert (mount.option("user_id"), mount.option("noatime"), mount.option("x")) == ("7", "", None)


def test_optional_fields_and_an_empty_source_are_no_obstacle() -> None:
    mount = mounts.parse_mountinfo_line(b"1 0 0:5 / / rw shared:1 master:2 unbindable - tmpfs  rw")
    assert (mount.fstype, mount.source, mount.options) == ("tmpfs", "", ("rw",))


def test_a_path_lies_on_the_deepest_mount_above_it(tmpfs: Path) -> None:
    found = mounts.find_mount(tmpfs / "no" / "such" / "file")
    assert found is not None
    assert (found.mount_point, found.fstype) == (tmpfs, "tmpfs")


def test_a_mount_point_with_a_blank_in_its_name_is_found(tmp_path: Path) -> None:
    point = tmp_path / "my disk\t\\x"
    point.mkdir()
    with mounted("tmpfs", point, "-t", "tmpfs"):
        assert mounts.is_mount_point(point)


def test_a_symbolic_link_to_a_mount_point_is_a_mount_point(tmpfs: Path, tmp_path: Path) -> None:
    (tmp_path / "absolute").symlink_to(tmpfs)
    (tmp_path / "relative").symlink_to("sub/../live")
    (tmp_path / "sub").mkdir()
    assert mounts.is_mount_point(tmp_path / "absolute")
    assert mounts.is_mount_point(tmp_path / "relative")


def test_dot_dot_behind_a_symbolic_link_is_the_parent_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert mounts.canonical_path(tmp_path / "link" / ".." / "c") == tmp_path / "a" / "c"


def test_a_loop_of_symbolic_links_ends(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert mounts.canonical_path(tmp_path / "x").parent == tmp_path


def test_a_plain_directory_is_no_mount_point(point: Path) -> None:
    assert not mounts.is_mount_point(point)
    assert not mounts.is_mount_point(point / "missing")


def test_a_mount_hidden_under_a_later_one_is_not_taken(tmpfs: Path) -> None:
    inner = tmpfs / "inner"
    inner.mkdir()
    with mounted("tmpfs", inner, "-t", "tmpfs"), mounted("tmpfs", tmpfs, "-t", "tmpfs"):
        assert not mounts.is_mount_point(inner)
        assert mounts.find_mount(inner) == mounts.find_mount(tmpfs)


def test_of_mounts_on_one_point_the_topmost_counts(tmpfs: Path) -> None:
    with mounted("none", tmpfs, "-t", "ramfs"):
        found = mounts.find_mount(tmpfs)
        assert found is not None
        assert found.fstype == "ramfs"


def test_a_hung_snapfs_mount_is_found_without_asking_it(point: Path) -> None:
    with silent_fuse_mount(point, source="/srv/disk.img"):
        (found,) = [mount for mount in mounts.snapfs_mounts() if mount.mount_point == point]
        assert found.source == "/srv/disk.img"
        assert mounts.is_mount_point(point)
        assert mounts.find_mount(point / "disk.img") == found


def test_a_mount_is_stale_once_its_server_is_gone(point: Path) -> None:
    with silent_fuse_mount(point) as fd:
        mount = mounts.find_mount(point)
        assert mount is not None
        os.close(fd)
        assert mounts.is_stale(mount)


def test_a_stale_mount_of_another_user_is_stale_for_root_too(point: Path) -> None:
    with silent_fuse_mount(point, user=NOBODY) as fd:
        mount = mounts.find_mount(point)
        assert mount is not None
        os.close(fd)
        assert mounts.is_stale(mount)


def test_a_hung_mount_is_not_stale_and_is_not_waited_for(point: Path) -> None:
    with silent_fuse_mount(point):
        mount = mounts.find_mount(point)
        assert mount is not None
        begin_s = time.monotonic()
        assert not mounts.is_stale(mount, timeout_s=0.3)
        assert time.monotonic() - begin_s < 5


def test_a_mount_that_answers_is_not_stale(tmpfs: Path) -> None:
    mount = mounts.find_mount(tmpfs)
    assert mount is not None
    assert not mounts.is_stale(mount)


def test_root_unmounts_a_stale_mount(point: Path) -> None:
    with silent_fuse_mount(point) as fd:
        os.close(fd)
        mounts.unmount(point)
        assert not mounts.is_mount_point(point)


def test_a_busy_mount_is_a_busy_error_and_stays(tmpfs: Path) -> None:
    with (tmpfs / "file").open("w"), pytest.raises(BusyError, match="is busy"):
        mounts.unmount(tmpfs)
    assert mounts.is_mount_point(tmpfs)


def test_a_busy_mount_can_be_unmounted_lazily(tmpfs: Path) -> None:
    with (tmpfs / "file").open("w"):
        mounts.unmount(tmpfs, lazy=True)
    assert not mounts.is_mount_point(tmpfs)


def test_what_is_not_mounted_cannot_be_unmounted(point: Path) -> None:
    with pytest.raises(NotMountedError, match="is not mounted"):
        mounts.unmount(point)


def test_a_user_unmounts_his_own_stale_mount(open_dir: Path) -> None:
    with silent_fuse_mount(open_dir, user=NOBODY) as fd:
        os.close(fd)
        in_child(lambda: mounts.unmount(open_dir), user=NOBODY)
        assert not mounts.is_mount_point(open_dir)


def test_a_user_is_told_that_his_mount_is_busy(open_dir: Path) -> None:
    with silent_fuse_mount(open_dir, user=NOBODY):
        holding_fd = os.open(open_dir, os.O_PATH)
        try:
            with pytest.raises(BusyError, match="is busy"):
                in_child(lambda: mounts.unmount(open_dir), user=NOBODY)
            in_child(lambda: mounts.unmount(open_dir, lazy=True), user=NOBODY)
        finally:
            os.close(holding_fd)
    assert not mounts.is_mount_point(open_dir)


def test_a_user_may_not_unmount_what_another_mounted(open_dir: Path) -> None:
    with silent_fuse_mount(open_dir, user=1), pytest.raises(PermissionDeniedError, match="another user"):
        in_child(lambda: mounts.unmount(open_dir), user=NOBODY)


def test_syncfs_writes_back_what_a_loop_mounted_filesystem_holds(small_ext4: Path, point: Path) -> None:
    with loop_device(small_ext4) as device, mounted(device, point):
        (point / "file").write_bytes(b"snapfs" * 1000)
        fd = os.open(point, os.O_RDONLY)
        libc.syncfs(fd)
        os.close(fd)
        assert run("debugfs", "-R", "cat /file", device).encode() == b"snapfs" * 1000


def test_read_ahead_of_a_mount_is_set(point: Path) -> None:
    with silent_fuse_mount(point):
        mount = mounts.find_mount(point)
        assert mount is not None
        assert mounts.set_read_ahead(mount.device, 1024)
        bdi = Path("/sys/class/bdi/{}:{}/read_ahead_kb".format(*mount.device))
        assert bdi.read_text() == "1024\n"


def test_read_ahead_that_a_user_may_not_set_is_left_as_it_is(open_dir: Path) -> None:
    with silent_fuse_mount(open_dir, user=NOBODY):
        mount = mounts.find_mount(open_dir)
        assert mount is not None
        assert in_child(lambda: mounts.set_read_ahead(mount.device, 1024), user=NOBODY) is False


def test_the_mounts_of_another_namespace_are_listed(point: Path) -> None:
    command = f"mount -t tmpfs elsewhere '{point}' && echo ready && read -r _"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        found = [pid for pid, seen in mounts.namespace_mounts() if any(m.mount_point == point for m in seen)]
        other.communicate(b"\n")
    assert found == [other.pid]
