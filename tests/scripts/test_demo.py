"""scripts/demo shows what it says, and leaves nothing behind whenever it is interrupted."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "scripts/demo")


def leftovers(folder: Path) -> list[str]:
    """What a demo in `folder` has left: files, mounts, loop devices, processes."""
    lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    lines += subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines += command_lines()
    return [line for line in lines if f"{folder}/" in line] + [str(path) for path in folder.iterdir()]


def command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape"))
    return lines


@contextmanager
def started_demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, so that it can be interrupted as from a terminal."""
    demo = subprocess.Popen(
        [DEMO],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        yield demo
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGTERM)
        demo.communicate(timeout=60)


def test_demo_shows_the_old_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    with started_demo(tmp_path) as demo:
        output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, output
    assert "the same as before" in output
    assert "deleted" in output
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "number"),
    [(step, signal.SIGINT) for step in ("1.", "2.", "3.", "4.", "5.", "7.")] + [("3.", signal.SIGTERM)],
)
def test_interrupted_demo_leaves_nothing(tmp_path: Path, step: str, number: signal.Signals) -> None:
    with started_demo(tmp_path) as demo:
        assert demo.stdout is not None
        seen = next((line for line in demo.stdout if line.startswith(step)), None)
        assert seen is not None
        os.killpg(demo.pid, number)
        output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number, output
    assert leftovers(tmp_path) == []
