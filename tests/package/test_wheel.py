"""The wheel and the sdist: the same bytes wherever they are built, with no package but `snapfs` in them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.machine import run

ROOT = Path(__file__).parents[2]


def built(place: Path, umask: int) -> dict[str, bytes]:
    """What is built of a copy of the project in `place`, by name."""
    run("git", "-C", ROOT, "checkout-index", "--all", f"--prefix={place}/source/")
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source"),
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        umask=umask,
    )
    return {path.name: path.read_bytes() for path in (place / "dist").iterdir()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("first")
    built(place, 0o022)
    return place / "dist"


def test_both_are_the_same_bytes_wherever_they_are_built(dist: Path, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in dist.iterdir()}
    assert sorted(name.rpartition(".")[2] for name in first) == ["gz", "whl"]
    again = built(tmp_path / "elsewhere", 0o077)
    assert [name for name in first if first[name] != again.get(name)] == []


def test_the_wheel_has_one_package_and_all_of_its_files(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"snapfs", "snapfs_image-0.1.0.dist-info"}
    tracked = run("git", "-C", ROOT, "ls-files", "snapfs", "cow").split()
    ours = {name if name.startswith("snapfs") else f"snapfs/{name}" for name in tracked if not name.endswith(".c")}
    assert ours - set(names) == set()


def test_the_sdist_can_be_built_from_alone(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"setup.py", "cow/_faults.c", "snapfs/output.schema.json", "packaging/example.conf", "LICENSE"}


def test_what_is_installed_from_the_wheel_works_beside_another_package_of_the_engines_name(
    dist: Path, tmp_path: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    # What it depends on is that of this environment; nothing else of this clone is.
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "lib", wheel)
    (tmp_path / "lib/cow.py").write_text("raise SystemExit('the other one')")
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    program = "import sys; sys.argv[0] = 'snapfs'; from snapfs.startup import main; main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "map", "--json", tmp_path / "image"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert '"version"' in done.stdout
    where = [sys.executable, "-P", "-c", "import snapfs, cow; print(cow.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == str(tmp_path / "lib/snapfs/cow/__init__.py")


@pytest.mark.parametrize(
    ("shell", "path"), [("zsh", "zsh/vendor-completions/_snapfs"), ("fish", "fish/vendor_completions.d/snapfs.fish")]
)
def test_the_completion_is_one_of_its_shell(tmp_path: Path, shell: str, path: str) -> None:
    run(sys.executable, "-m", "snapfs.cli.manual", tmp_path)
    run(shell, "-n", tmp_path / path)
