"""The writers of files (`tree_writer.py`) of a campaign, as processes that go on, rest and end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cuts_content import Progress
from cuts_ground import child
from mounted import wait_until

_REST_S = 60.0


class Load:
    def __init__(self, progress: Progress, seed: int, writers: list[subprocess.Popen[str]]) -> None:
        self._progress, self.seed, self._writers = progress, seed, writers

    @property
    def done(self) -> tuple[int, ...]:
        return tuple(self._progress.done)

    @property
    def tried(self) -> tuple[int, ...]:
        return tuple(self._progress.tried)

    def go_on(self) -> None:
        self._progress.set_limits(None)

    def rest_after(self, count: int) -> None:
        """Until each has done so many actions more."""
        self._progress.set_limits([done + count for done in self._progress.done])
        wait_until(lambda: all(self._progress.rests), _REST_S, "the rest of the writers")
        self.assert_alive()

    def assert_alive(self) -> None:
        for writer, process in enumerate(self._writers):
            assert process.poll() is None, f"writer {writer} has ended"

    def end(self) -> None:
        for process in self._writers:
            process.kill()
            process.wait(20)


@contextlib.contextmanager
def resting_load(root: Path, path: Path, seed: int, writers: int, pause_s: float) -> Iterator[Load]:
    """They have done nothing yet; `path` is of a file for their progress."""
    progress = Progress(path, writers)
    progress.set_limits([0] * writers)
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                child("tree_writer.py", root, path, str(seed), str(writers), str(writer), str(pause_s))
            )
            for writer in range(writers)
        ]
        yield Load(progress, seed, started)
