"""The program that computes a map of used blocks says in its last line why it could not, for whoever started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_says_why_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "snapfs.servers.mapper", "0:0", "disk.img", str(tmp_path), "--block-bytes=4096"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "the snapshot view is not mounted (0:0)\n")
