"""`--skip-swap`: a backup without what swap files hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, make_ext4, mounted, read_manifest, run, snapfs, wait_until

SWAP_BYTES = 4 * MIB
SKIPPED = [{"name": "/swapfile", "bytes": SWAP_BYTES - 4096}]


@pytest.fixture
def swapping(small: Bench) -> Bench:
    """An ext4 with a swap file whose pages hold something."""
    content = small.path / "content"
    content.mkdir()
    (content / "file").write_bytes(os.urandom(MIB))
    (content / "swapfile").write_bytes(os.urandom(SWAP_BYTES))
    (content / "swapfile").chmod(0o600)
    run("mkswap", content / "swapfile")
    make_ext4(small.image, 32 * MIB, content)
    return small


def check_backup(bench: Bench, backup: Path) -> None:
    """Other files and the header are as they were, the pages are zeros, and the manifest says so."""
    assert read_manifest(backup)["regions"][0]["skipped"] == SKIPPED
    snapfs("restore", backup, bench.path / "back", "--verify").ok()
    run("e2fsck", "-fn", bench.path / "back")
    content = bench.path / "content"
    with mounted(bench.path / "back", bench.path / "point", "-o", "loop,ro,noload") as point:
        assert (point / "file").read_bytes() == (content / "file").read_bytes()
        pages = (point / "swapfile").read_bytes()
    assert pages == (content / "swapfile").read_bytes()[:4096] + bytes(SWAP_BYTES - 4096)


def test_a_backup_of_an_image_leaves_out_what_swap_files_hold(swapping: Bench) -> None:
    snapfs("backup", swapping.image, swapping.path / "all").ok()
    assert read_manifest(swapping.path / "all")["regions"][0]["skipped"] == []
    snapfs("backup", swapping.image, swapping.path / "backup", "--skip-swap").ok()
    check_backup(swapping, swapping.path / "backup")


def test_of_a_mounted_image_the_mount_says_so(swapping: Bench) -> None:
    with swapping.mounted("--skip-swap"):
        wait_until(lambda: swapping.status()["snapshot"]["map"] == "ready")
        snapfs("backup", swapping.live, swapping.path / "backup", "--skip-swap").refuses(2, "snapfs mount")
        snapfs("backup", swapping.live, swapping.path / "backup").ok()
    check_backup(swapping, swapping.path / "backup")


def test_what_a_new_cut_skips_is_said_before_it_is_made(swapping: Bench) -> None:
    with swapping.mounted():
        before = swapping.status()["snapshot"]["id"]
        done = snapfs("backup", "--cut", swapping.live, swapping.path / "backup", "--skip-swap")
        done.refuses(2, "snapfs mount")
        assert swapping.status()["snapshot"]["id"] == before
