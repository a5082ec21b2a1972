"""The engine that is beside or within `snapfs` is the one that is used, whatever else is called `cow`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import snapfs

ASK = "import snapfs, cow; print(cow.__file__)"


def found(root: Path, *others: Path) -> str:
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, (*others, root)))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def package(directory: Path, text: str = "") -> Path:
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(text)
    return directory


def test_another_package_of_the_name_is_not_met(tmp_path: Path) -> None:
    package(tmp_path / "other/cow", "raise SystemExit('the other one')")
    source = Path(snapfs.__file__)
    # Installed, it is within; in a clone, beside.
    for engine in ("snapfs/cow", "cow"):
        root = tmp_path / engine.replace("/", "-")
        package(root / "snapfs", source.read_text())
        package(root / engine)
        assert found(root, tmp_path / "other") == str(root / engine / "__init__.py")
