"""One snapfs instance under test: the real command, its processes, its log.

Rules:
- Every command has a time limit. A watchdog kills the servers of an instance that hangs: what waits for them
  then fails instead of waiting for ever.
- A process is known by its pidfd, so that nothing else is ever killed or waited for.
- The log is held open from the start: it can be read after the store is gone.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from snapfs.system.processes import readable
from tests.machine import SNAPFS, mount_points_below, run, status_of, unmount, wait_until

__all__ = ["SNAPFS", "mount_points_below", "run", "wait_until"]

COMMAND_TIMEOUT_S = 40.0
WATCHDOG_S = 240.0
SERVERS = ("supervisor", "live", "snapshot", "compactor")
_TROUBLE = re.compile(r" (WARNING|ERROR|CRITICAL) |Traceback|panicked")


def snapfs(
    *words: str | Path, timeout_s: float = COMMAND_TIMEOUT_S, program: tuple[str | Path, ...] = (SNAPFS,)
) -> subprocess.CompletedProcess[str]:
    """Run `snapfs` (or `program` in its place) with `words`; the caller judges the exit code."""
    command = [*map(os.fspath, (*program, *words))]
    return subprocess.run(
        command, capture_output=True, text=True, errors="surrogateescape", timeout=timeout_s, check=False
    )


def _text_of(fd: int) -> str:
    """What of a log can still be read: a test may have its disk fail."""
    with suppress(OSError):
        return os.pread(fd, 1 << 20, 0).decode(errors="replace")
    return ""


class Process:
    """One process of an instance, known by a pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid, self._fd = pid, os.pidfd_open(pid)

    @property
    def is_running(self) -> bool:
        return not readable([self._fd], 0)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def ends_in(self, timeout_s: float) -> bool:
        return bool(readable([self._fd], timeout_s))

    def await_end(self, timeout_s: float = 20.0) -> None:
        assert self.ends_in(timeout_s), f"process {self.pid} did not end"

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def close(self) -> None:
        os.close(self._fd)


def find_processes(supervisor_pid: int) -> dict[str, Process]:
    """The processes of the instance that is led by `supervisor_pid`, by their short names."""
    found = {"supervisor": Process(supervisor_pid)}
    children = Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children").read_text().split()
    for pid in children:
        name = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("snapfs-")
        # comm holds 15 bytes: the compactor's is cut short.
        full = next((server for server in SERVERS if name and server.startswith(name)), None)
        if full is not None:
            found[full] = Process(int(pid))
    return found


class Mounted:
    """`IMAGE` with its two mount points; `mount` and `umount` as often as a test likes."""

    def __init__(self, image: Path, directory: Path, *options: str | Path) -> None:
        self.image, self.options = image, options
        # What is run to mount it.
        self.program: tuple[str | Path, ...] = (SNAPFS,)
        self.live, self.snap = directory / "live", directory / "snap"
        self.processes: dict[str, Process] = {}
        self._logs: list[int] = []
        self._expected: list[re.Pattern[str]] = []
        self._watchdog: threading.Timer | None = None
        self._foreground: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for point in (self.live, self.snap):
            point.mkdir(exist_ok=True)

    @property
    def live_file(self) -> Path:
        return self.live / self.image.name

    @property
    def snap_file(self) -> Path:
        return self.snap / self.image.name

    @property
    def store(self) -> Path:
        for at, word in enumerate(self.options):
            if word == "--store":
                return Path(self.options[at + 1])
        return self.image.with_name(self.image.name + ".snapfs")

    # --- commands --------------------------------------------------------------------------------------------

    def mount(self, *more: str | Path) -> subprocess.CompletedProcess[str]:
        """Mount; must succeed."""
        done = self.try_mount(*more)
        assert done.returncode == 0, done.stderr
        return done

    def try_mount(self, *more: str | Path) -> subprocess.CompletedProcess[str]:
        done = snapfs("mount", self.image, self.live, self.snap, *self.options, *more, program=self.program)
        if done.returncode == 0:
            self._adopt()
        return done

    def mount_in_front(self, log: Path) -> subprocess.Popen[bytes]:
        """`snapfs mount -f` with its stderr in `log`; returns when both views answer."""
        with log.open("wb") as stderr:
            words = [SNAPFS, "mount", self.image, self.live, self.snap, *self.options, "-f"]
            self._foreground = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
        assert self._foreground.stdout is not None
        assert readable([self._foreground.stdout.fileno()], COMMAND_TIMEOUT_S), log.read_text()
        self._adopt(log)
        return self._foreground

    def _adopt(self, log: Path | None = None) -> None:
        pid = self.status()["pid"]

        def are_all_there() -> bool:
            self._let_go()
            self.processes = find_processes(pid)
            return set(self.processes) == set(SERVERS)

        # The views may answer before the compactor has come as far as to have its name.
        wait_until(are_all_there, what=f"the processes of {self.image}")
        self._logs.append(os.open(log or self.store / "log", os.O_RDONLY | os.O_CLOEXEC))
        self._watchdog = threading.Timer(WATCHDOG_S, self._end_all)
        self._watchdog.daemon = True
        self._watchdog.start()

    def status(self) -> dict[str, Any]:
        """What the live server says, without the time that a command takes."""
        return status_of(self.live)

    def cut(self, *options: str) -> None:
        """A new cut, with its map known: one that is replaced before that never has one."""
        done = snapfs("snapshot", self.live, *options)
        assert done.returncode == 0, done.stderr
        self.await_map()

    def await_map(self) -> None:
        """Until it is known, or known that there is none."""
        wait_until(lambda: self.status()["snapshot"]["map"] != "computing")

    def umount(self, path: Path | None = None) -> None:
        """`snapfs umount`; must succeed and end every process."""
        done = snapfs("umount", path or self.live)
        assert done.returncode == 0, done.stderr + self.log()
        self.await_end()

    # --- processes -------------------------------------------------------------------------------------------

    def await_end(self, timeout_s: float = 20.0) -> None:
        """Every process of the instance is gone, and both views with them."""
        for process in self.processes.values():
            process.await_end(timeout_s)
        assert not mount_points_below(self.live.parent), "the instance ended and left a mount behind"

    def kill(self, *names: str) -> None:
        """SIGKILL some processes (all without names), and wait until every one that is named is gone."""
        for name in names or SERVERS:
            self.processes[name].send(signal.SIGKILL)
        for name in names or SERVERS:
            self.processes[name].await_end()

    @property
    def is_running(self) -> bool:
        return any(process.is_running for process in self.processes.values())

    def _end_all(self) -> None:
        for process in self.processes.values():
            process.send(signal.SIGKILL)

    # --- the log ---------------------------------------------------------------------------------------------

    def log(self) -> str:
        """What all runs of the instance have logged, also when their store is gone."""
        return "".join(map(_text_of, self._logs[-1:]))

    def drop_logs(self) -> None:
        """Read them no more: their filesystem is to be unmounted."""
        while self._logs:
            os.close(self._logs.pop())

    def expect_log(self, pattern: str) -> None:
        """A warning or error that matches `pattern` is no failure of this test."""
        self._expected.append(re.compile(pattern))

    def trouble(self) -> list[str]:
        """Warnings and errors in the logs that nobody expected."""
        lines = dict.fromkeys(line for fd in self._logs for line in _text_of(fd).splitlines())
        return [
            line
            for line in lines
            if _TROUBLE.search(line) and not any(pattern.search(line) for pattern in self._expected)
        ]

    # --- the end ---------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """End whatever is left; sentences about what should not have been."""
        wrong = []
        if self.is_running:
            wrong += self._end()
            self._end_all()
            for process in self.processes.values():
                process.await_end()
        trouble = self.trouble()
        wrong += trouble
        if any("Traceback" in line for line in trouble):
            wrong.append(self.log())
        if self._foreground is not None:
            self._foreground.wait(COMMAND_TIMEOUT_S)
            assert self._foreground.stdout is not None
            self._foreground.stdout.close()
        self._let_go()
        for fd in self._logs:
            os.close(fd)
        self._logs = []
        return wrong

    def _end(self) -> list[str]:
        """By system calls: the command costs ten times as much, and is asked only where a view is in use."""
        for view in (self.live, self.snap):
            if unmount(view) == errno.EBUSY:
                done = snapfs("umount", view, timeout_s=WATCHDOG_S)
                # Of the second view the instance may have been faster, for the first is gone.
                if done.returncode and view in mount_points_below(view.parent):
                    return [f"the instance could not be ended: {done.stderr}"]
        running = [name for name, process in self.processes.items() if not process.ends_in(WATCHDOG_S)]
        return [f"{running} did not end"] if running else []

    def _let_go(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        for process in self.processes.values():
            process.close()
        self.processes = {}
