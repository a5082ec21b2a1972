"""Hooks: programs of the user. Those around a freeze quiet what runs on the filesystems, such as a database.

Every executable file of the directory, in the order of their names, is called with `freeze` before anything
is frozen, and in the reverse order with `thaw` after everything is thawed again.

Rules:
- A hook that fails, or takes too long, cancels the cut.
- Whoever was called with `freeze` is called with `thaw`, also the one that failed: it may have done half.
- A hook that takes too long is killed with all the processes that it has started in its group.
"""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError, UsageError

_FACT_PREFIX: Final = "SNAPFS_"
# A zero, and surrogates that stand for no byte.
_UNFIT: Final = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")


def find_hooks(directory: Path) -> list[Path]:
    """The hooks in `directory`; hidden files and what editors leave behind are none."""
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise UsageError(
            f"The hooks in {directory} cannot be found: {error.strerror}; give a directory of executables."
        ) from error
    return [path for path in entries if not path.name.startswith(".") and not path.name.endswith("~") and _runs(path)]


def _runs(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.X_OK)
    except OSError:
        # A dangling link, or a file that was removed meanwhile: nothing that could be called.
        return False


def _is_heard(fd: int) -> bool:
    """False when it is closed, or a pipe without a reader: a hook that said something would die of it."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


class Hooks:
    """The hooks of one cut. `facts` is their environment, beside that of the command."""

    def __init__(self, hooks: list[Path], timeout_s: float, facts: dict[str, str]) -> None:
        self._hooks, self._timeout_s, self.facts = hooks, timeout_s, facts
        self._called: list[Path] = []

    def freeze(self) -> None:
        """SnapfsError when one fails; `thaw` has to follow in any case."""
        for hook in self._hooks:
            self._called.append(hook)
            failure = self._failure_of(hook, "freeze")
            if failure:
                raise SnapfsError(f"The hook {hook} {failure}; there was no cut.", path=hook)

    def thaw(self) -> list[str]:
        """Sentences about those that failed: what they quieted may still be quiet."""
        sentences = []
        while self._called:
            hook = self._called.pop()
            failure = self._failure_of(hook, "thaw")
            if failure:
                sentences.append(f"The hook {hook} {failure} when it was to thaw; look after what it has stopped.")
        return sentences

    def _failure_of(self, hook: Path, action: str) -> str | None:
        return run_hook(hook, action, {**self.facts, "SNAPFS_ACTION": action}, self._timeout_s)


def hook_environment(facts: Mapping[str, str]) -> dict[str, str]:
    """That of this process with `facts`: none of another event, which a hook may have had that has called us, and
    nothing that no environment can hold, whatever names and answers the facts are made of."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith(_FACT_PREFIX)}
    return ours | {name: _UNFIT.sub("?", text) for name, text in facts.items()}


def run_hook(hook: Path, word: str, facts: Mapping[str, str], timeout_s: float) -> str | None:
    """Call it with `word`, and with `facts` in its environment. What went wrong, to follow the hook's name; None when
    nothing did."""
    words_fd = 2 if _is_heard(2) else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            [hook, word],
            env=hook_environment(facts),
            stdin=subprocess.DEVNULL,
            # Results go to stdout, and what a hook says is none.
            stdout=words_fd,
            stderr=words_fd,
            start_new_session=True,
        )
    except OSError as error:
        return f"could not be started: {error.strerror}"
    try:
        code = process.wait(timeout_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"did not end in {timeout_s:g} s"
        raise
    return f"failed with {f'signal {-code}' if code < 0 else f'code {code}'}" if code else None
