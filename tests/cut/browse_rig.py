"""Files of snapshots under test: disks with partitions, and what of a browse is mounted or left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cut_rig import MIB, CutGround, run, snapfs
from mounted import mount_points_below

START_MIB, PART_MIB = 1, 8


def ext4_with(directory: Path, image: Path, *options: str) -> Path:
    """A small ext4 with the files of `directory` that was never mounted."""
    run("mkfs.ext4", "-q", "-F", "-d", directory, *options, image, f"{PART_MIB}M")
    return image


def make_disk(ground: CutGround, *parts: Path | None) -> Path:
    """An image with a GPT, and partitions of 8 MiB with these contents; None: with nothing."""
    image = ground.image((START_MIB + PART_MIB * len(parts) + 1) * MIB)
    lines = [f"start={_start(index) * 2048}, size={PART_MIB * 2048}\n" for index in range(len(parts))]
    words = ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", os.fspath(image)]
    subprocess.run(words, input="label: gpt\n" + "".join(lines), text=True, check=True, timeout=20)
    for index, part in enumerate(parts):
        if part is not None:
            run("dd", f"if={part}", f"of={image}", "bs=1M", f"seek={_start(index)}", "conv=notrunc,sparse")
    return image


def _start(index: int) -> int:
    return START_MIB + PART_MIB * index


def files_of(ground: CutGround, text: str) -> Path:
    """A directory with a file of that text."""
    directory = ground.path / f"files-{text}"
    directory.mkdir()
    (directory / "file").write_text(text)
    return directory


def browsed(live: Path, directory: Path, *name: str) -> dict[str, Any]:
    """What `snapfs browse`, which must succeed, says of what it has mounted."""
    directory.mkdir(exist_ok=True)
    done = snapfs("browse", live, *name, directory, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_nothing_left(ground: CutGround, directory: Path) -> None:
    """No mount on the directory, nothing in it, and no loop device on any snapshot."""
    assert directory not in mount_points_below(ground.path)
    assert os.listdir(directory) == []
    backing = [path.read_text() for path in Path("/sys/class/block").glob("loop*/loop/backing_file")]
    assert not [path for path in backing if path.startswith(f"{ground.path}/") and "/snap/" in path]
