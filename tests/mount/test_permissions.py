"""Who may open the views: nobody the snapshot who could not read the image at the cut, or cannot now."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, snapfs

NOBODY, GROUP = 65534, 4321


@pytest.fixture
def place() -> Iterator[Ground]:
    """Below a directory that every user can reach, which pytest's own are not."""
    path = Path("/tmp/snapfs-test-permissions") / str(os.getpid())
    path.mkdir(parents=True)
    path.chmod(0o755)
    ground = Ground(path)
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def views(place: Ground) -> Mounted:
    """An image that everybody may read, and may see."""
    image = place.image(bytes(1 << 20))
    image.chmod(0o644)
    return place.mounted(image, "-o", "allow_other")


def can_read(path: Path, *groups: int) -> bool:
    """Whether an ordinary user can, with these groups besides his own."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.close(os.open(path, os.O_RDONLY))
            code = 0
        except PermissionError:
            code = 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code != 1
    return code == 0


def test_what_is_taken_away_from_the_image_is_taken_away_from_the_snapshot_at_once(views: Mounted) -> None:
    for file in (views.image, views.live_file):
        assert can_read(views.snap_file)
        file.chmod(0o600)
        assert not can_read(views.snap_file)
        assert not can_read(views.live_file)
        file.chmod(0o644)
    assert can_read(views.snap_file)
    os.chown(views.image, 0, GROUP)
    views.image.chmod(0o640)
    assert can_read(views.snap_file, GROUP)
    assert not can_read(views.snap_file)


def test_who_could_not_read_it_at_the_cut_does_not_see_it_in_the_snapshot(views: Mounted) -> None:
    views.image.chmod(0o600)
    assert snapfs("snapshot", views.live).returncode == 0
    views.live_file.chmod(0o644)
    assert can_read(views.live_file)
    assert not can_read(views.snap_file)
    os.chown(views.image, NOBODY, NOBODY)
    assert can_read(views.live_file)
    assert not can_read(views.snap_file)


def test_who_owned_the_image_changes_it_no_more(views: Mounted) -> None:
    os.chown(views.image, NOBODY, NOBODY)
    assert can_read(views.live_file)
    os.chown(views.image, 0, 0)
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "chmod", "666", views.live_file]
    assert subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 1
    assert stat.S_IMODE(views.image.stat().st_mode) == 0o644


def test_a_device_whose_live_file_or_node_is_closed_has_a_closed_snapshot(place: Ground) -> None:
    device = place.loop(place.image(bytes(1 << 20)))
    node = place.path / "node"
    os.mknod(node, stat.S_IFBLK | 0o644, os.stat(device).st_rdev)
    node.chmod(0o644)
    views = place.mounted(node, "-o", "allow_other", "--store", place.path / "store")
    for file in (views.live_file, node):
        assert can_read(views.snap_file)
        file.chmod(0o600)
        assert not can_read(views.snap_file)
        file.chmod(0o644)
    views.live_file.chmod(0o600)
    assert snapfs("snapshot", views.live).returncode == 0
    views.live_file.chmod(0o644)
    assert can_read(views.live_file)
    assert not can_read(views.snap_file)
    assert stat.S_IMODE(node.stat().st_mode) == 0o644
