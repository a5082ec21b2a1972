"""Where LIVE, SNAP and the store may be: every wrong place has its sentence, and trying leaves nothing behind."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from real_system import NOBODY, in_child, loop_device, mounted, silent_fuse_mount

from snapfs.errors import PermissionDeniedError, SnapfsError
from snapfs.system.place import check_mount_points, check_store_place


class Views(NamedTuple):
    live: Path
    snap: Path


@pytest.fixture
def views(tmp_path: Path) -> Views:
    views = Views(tmp_path / "live", tmp_path / "snap")
    for view in views:
        view.mkdir()
    return views


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "point"
    path.mkdir()
    return path


def refusal(check: Callable[[], None]) -> str:
    """The sentence, with thing and reason before the semicolon and the way out behind it."""
    with pytest.raises(SnapfsError) as caught:
        check()
    assert re.fullmatch(r"[^\n;]+; [^\n;]+\.", caught.value.sentence)
    assert caught.value.path is not None
    return caught.value.sentence


def test_two_empty_directories_are_good_mount_points(views: Views) -> None:
    check_mount_points(*views)


def test_a_missing_mount_point_is_refused(views: Views) -> None:
    views.snap.rmdir()
    assert f"SNAP {views.snap} does not exist" in refusal(lambda: check_mount_points(*views))


def test_a_mount_point_that_is_a_file_is_refused(views: Views) -> None:
    views.live.rmdir()
    views.live.touch()
    assert f"LIVE {views.live} is not a directory" in refusal(lambda: check_mount_points(*views))


def test_a_mount_point_that_is_not_empty_is_refused(views: Views) -> None:
    (views.snap / "file").touch()
    assert f"SNAP {views.snap} is not empty" in refusal(lambda: check_mount_points(*views))


def test_the_same_directory_under_two_names_is_refused(views: Views) -> None:
    link = views.live.with_name("link")
    link.symlink_to(views.live)
    assert "are the same directory" in refusal(lambda: check_mount_points(views.live, link))


def test_the_same_directory_bound_to_two_places_is_refused(tmp_path: Path, point: Path) -> None:
    (tmp_path / "a" / "live").mkdir(parents=True)
    with mounted(tmp_path / "a", point, "--bind"):
        assert "are the same directory" in refusal(
            lambda: check_mount_points(tmp_path / "a" / "live", point / "live")
        )


def test_snap_inside_live_is_refused(views: Views) -> None:
    inner = views.live / "snap"
    inner.mkdir()
    assert f"SNAP {inner} is inside LIVE" in refusal(lambda: check_mount_points(views.live, inner))


def test_live_inside_snap_by_a_link_is_refused(views: Views) -> None:
    (views.snap / "live").mkdir()
    link = views.snap.with_name("link")
    link.symlink_to(views.snap / "live")
    assert f"LIVE {link} is inside SNAP" in refusal(lambda: check_mount_points(link, views.snap))


def test_a_directory_whose_name_only_begins_the_same_is_not_inside(tmp_path: Path) -> None:
    for name in ("view", "view2"):
        (tmp_path / name).mkdir()
    check_mount_points(tmp_path / "view", tmp_path / "view2")


def test_a_mount_point_that_is_a_mount_is_refused(views: Views) -> None:
    with mounted("tmpfs", views.live, "-t", "tmpfs"):
        assert f"LIVE {views.live} is already a mount" in refusal(lambda: check_mount_points(*views))


def test_a_hung_mount_is_refused_without_waiting(views: Views) -> None:
    with silent_fuse_mount(views.snap):
        assert f"SNAP {views.snap} is already a mount" in refusal(lambda: check_mount_points(*views))


def test_a_directory_of_another_user_is_refused(open_dir: Path) -> None:
    views = Views(open_dir / "live", open_dir / "snap")
    for view in views:
        view.mkdir()

    def check() -> None:
        in_child(lambda: check_mount_points(*views), user=NOBODY)

    assert f"LIVE {views.live} may not be mounted on" in refusal(check)


def test_a_store_that_exists_and_one_that_does_not_are_accepted(tmp_path: Path, views: Views) -> None:
    check_store_place(tmp_path / "store", *views)
    (tmp_path / "store").mkdir()
    check_store_place(tmp_path / "store", *views)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["", "store", "a/b/store"])
@pytest.mark.parametrize("view", ["live", "snap"])
def test_a_store_inside_a_view_is_refused(views: Views, view: str, name: str) -> None:
    store = getattr(views, view) / name
    assert f"is inside {view.upper()}" in refusal(lambda: check_store_place(store, *views))


def test_a_store_on_a_filesystem_mounted_from_the_live_view_is_refused(
    small_ext4: Path, views: Views, point: Path
) -> None:
    (views.live / "disk.img").write_bytes(small_ext4.read_bytes())
    with loop_device(views.live / "disk.img") as device, mounted(device, point):
        sentence = refusal(lambda: check_store_place(point / "store", *views))
    assert "is on a filesystem that is mounted from LIVE" in sentence


def test_a_store_on_a_loop_mount_of_something_else_is_accepted(small_ext4: Path, views: Views, point: Path) -> None:
    with loop_device(small_ext4) as device, mounted(device, point):
        check_store_place(point / "store", *views)


def test_a_store_below_a_missing_directory_is_refused(tmp_path: Path, views: Views) -> None:
    assert "cannot be made" in refusal(lambda: check_store_place(tmp_path / "no" / "store", *views))


def test_a_store_that_is_a_file_is_refused(tmp_path: Path, views: Views) -> None:
    (tmp_path / "store").touch()
    assert "is not a directory" in refusal(lambda: check_store_place(tmp_path / "store", *views))


def test_a_store_on_a_full_filesystem_is_refused(views: Views, point: Path) -> None:
    with mounted("tmpfs", point, "-t", "tmpfs", "-o", "size=64k"):
        with pytest.raises(OSError, match="space"):
            (point / "filler").write_bytes(bytes(1 << 20))
        assert "has no room" in refusal(lambda: check_store_place(point, *views))


def test_a_store_on_a_read_only_filesystem_is_refused(views: Views, point: Path) -> None:
    with mounted("tmpfs", point, "-t", "tmpfs", "-o", "ro"):
        assert "read-only filesystem" in refusal(lambda: check_store_place(point / "store", *views))


def test_a_store_that_this_user_may_not_write_is_refused(open_dir: Path, views: Views) -> None:
    open_dir.chmod(0o755)
    with pytest.raises(PermissionDeniedError, match="may not write to"):
        in_child(lambda: check_store_place(open_dir / "store", open_dir / "l", open_dir / "s"), user=NOBODY)


def test_a_store_on_a_filesystem_without_sparse_files_is_refused(
    tmp_path: Path, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_as_fat_does(fd: int, length: int) -> None:
        os.pwrite(fd, bytes(length), 0)

    monkeypatch.setattr(os, "ftruncate", fill_as_fat_does)
    assert "filesystem without sparse files" in refusal(lambda: check_store_place(tmp_path, *views))


def test_a_store_on_a_filesystem_without_mapping_is_refused(
    tmp_path: Path, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "without memory mapping" in refusal(lambda: check_store_place(tmp_path, *views))
