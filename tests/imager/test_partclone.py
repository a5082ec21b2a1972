"""What snapfs shows and writes, read by an imager of other people, partclone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, Original, files_of, live_load, loop_device, make_files, mounted, run, snapfs


def clone_and_restore(bench: Bench, source: Path, kind: str) -> Path:
    """A partclone image of a filesystem, checked, and restored to a new image."""
    clone, restored, log = bench.path / "clone", bench.path / "cloned.img", bench.path / "partclone.log"
    run(f"partclone.{kind}", "-c", "-s", source, "-o", clone, "-L", log)
    run("partclone.chkimg", "-s", clone, "-L", log)
    with restored.open("wb") as file:
        file.truncate(bench.image.stat().st_size)
    run("partclone.restore", "-C", "-s", clone, "-O", restored, "-L", log)
    return restored


def make_xfs(image: Path, point: Path) -> None:
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    run("mkfs.xfs", "-q", image)
    with mounted(image, point, "-o", "loop"):
        make_files(point / "files", 10 * MIB)


def leave_ext4(image: Path, point: Path) -> None:
    """It is there already."""


KINDS = [("ext4", "extfs", leave_ext4, ("e2fsck", "-fn")), ("xfs", "xfs", make_xfs, ("xfs_repair", "-n"))]


@pytest.mark.parametrize(("kind", "tool", "make", "check"), KINDS, ids=["ext4", "xfs"])
def test_partclone_reads_a_backup(
    bench: Bench, kind: str, tool: str, make: Callable[[Path, Path], None], check: tuple[str, ...]
) -> None:
    make(bench.image, bench.path / "point")
    files = files_of(bench.image, kind, bench.path / "point")
    snapfs("backup", bench.image, bench.path / "backup").ok()
    restored = clone_and_restore(bench, bench.path / "backup", tool)
    run(*check, restored)
    assert files_of(restored, kind, bench.path / "point") == files


def test_partclone_reads_the_snapshot_under_live_load(bench: Bench, original: Original) -> None:
    with (
        bench.mounted(),
        mounted(bench.live_file, bench.path / "now", "-o", "loop") as point,
        live_load(point),
        loop_device(bench.snap_file, "--read-only") as device,
    ):
        restored = clone_and_restore(bench, device, "extfs")
    run("e2fsck", "-fn", restored)
    assert files_of(restored, "ext4", bench.path / "point") == original.files
