"""What no instance may do: a `Fault`, and what has to end in time and say a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SNAPFS = Path(sys.executable).with_name("snapfs")
HANG_S = 10.0


class Fault(AssertionError):
    """snapfs did what it must never do."""


def in_time(what: str, work: Callable[[], Any], limit_s: float = HANG_S) -> Any:
    """The result of `work`, which may hang in the kernel; Fault when it does."""
    ended: list[Any] = []

    def go() -> None:
        try:
            ended.append(work())
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        raise Fault(f"{what} did not end in {limit_s:g} s")
    return ended[0]


def until(condition: Callable[[], object], what: str, limit_s: float = HANG_S) -> None:
    """Look until `condition` holds; Fault when it does not in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise Fault(f"{what} did not come in {limit_s:g} s")
        time.sleep(0.01)


def snapfs(*words: str | Path, closed: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command; `closed` are redirections of a shell."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *map(os.fspath, (SNAPFS, *words))]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=HANG_S * 2)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Fault(f"snapfs {words[0]} did not end in {HANG_S * 2:g} s") from None
    if "Traceback" in err or "internal error" in err:
        raise Fault(f"snapfs {words[0]} broke: {err[-800:]}")
    if process.returncode not in (0, 4) and not closed and not err.startswith("snapfs: ") and not out:
        raise Fault(f"snapfs {words[0]} failed with {process.returncode} and no sentence: {err!r}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)
