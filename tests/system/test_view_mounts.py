"""A view is known by more than its number, which the kernel gives to the next filesystem at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapfs.system.mounts import Mount
from snapfs.system.view_mounts import ViewId, mounts_of

MOUNT = Mount(Path("/live"), "fuse.snapfs", "/srv/disk.img", (0, 57), ("rw",), 30, 1, "/")
VIEW = ViewId.of(MOUNT)


def test_a_view_is_found_wherever_it_is_mounted() -> None:
    moved = replace(MOUNT, mount_point=Path("/moved/live"), mount_id=31)
    assert mounts_of(VIEW, [MOUNT, moved]) == [MOUNT, moved]


@pytest.mark.parametrize(
    "other",
    [
        replace(MOUNT, fstype="btrfs", source="/dev/loop0"),
        replace(MOUNT, fstype="btrfs"),
        replace(MOUNT, source="/srv/other.img"),
        replace(MOUNT, device=(0, 58)),
    ],
    ids=["another filesystem", "of the same source", "the view of another image", "another number"],
)
def test_what_has_taken_its_number_is_no_view(other: Mount) -> None:
    assert mounts_of(VIEW, [other]) == []
