"""What a process of snapfs sets about itself, and how one process is told from a later one with its number.

Source: the manual pages proc(5), prctl(2), mallopt(3).

Rules:
- A setting that this user may not make is no error: it returns False, and snapfs works less protected.
- A process is known by its number and its start time together; numbers are used again.
- A program of our own finds modules where this process does, and never in the directory that it runs in.
"""

from __future__ import annotations

import mmap
import os
import resource
import select
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from snapfs.system import libc

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_NAME_BYTES: Final = 15  # TASK_COMM_LEN without its final zero
_MAX_STATM_BYTES: Final = 256

# The largest that glibc accepts. Above every request (1 MiB) and every record, so no buffer comes from mmap.
_HEAP_THRESHOLD_BYTES: Final = 32 << 20
# Freed memory up to this stays in the heap: it bounds what a server keeps after a burst.
_KEEP_BYTES: Final = 64 << 20


def program(module: str) -> list[str]:
    """The command line that runs a module of snapfs as a program."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]


def allow_open_files() -> bool:
    """As many open files as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return False
    return True


def set_oom_score(adjustment: int) -> bool:
    """Make the kernel less (down to -1000) or more (up to 1000) willing to kill this process for memory."""
    try:
        Path("/proc/self/oom_score_adj").write_text(f"{adjustment}\n")
    except OSError:
        return False
    return True


def set_io_flusher() -> bool:
    """Say that write-back depends on this process: the kernel then never makes it wait for write-back itself,
    which for the server of a FUSE file would be waiting for itself."""
    try:
        libc.prctl(libc.PR_SET_IO_FLUSHER, 1)
    except OSError:
        return False
    return True


def die_with_parent(signal_no: int = signal.SIGKILL, parent_pid: int | None = None) -> None:
    """Have this process get `signal_no` when the thread that started it ends.

    Give `parent_pid` (its os.getpid() before the start) so that a parent that has ended already counts too.
    """
    libc.prctl(libc.PR_SET_PDEATHSIG, int(signal_no))
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_no)


def keep_heap() -> bool:
    """Tell malloc to keep what is freed and give it out again: a fresh page from the kernel costs more than
    copying it, and every request has a buffer. False where the C library cannot be told."""
    settings = (
        (libc.M_ARENA_MAX, 1),  # threads share one heap; else each keeps its own
        (libc.M_MMAP_THRESHOLD, _HEAP_THRESHOLD_BYTES),
        (libc.M_TRIM_THRESHOLD, _KEEP_BYTES),
    )
    accepted = [libc.mallopt(parameter, value) for parameter, value in settings]
    return all(accepted)


def set_process_name(name: str) -> bool:
    """Name this process for ps, top and our own messages. Call it in the main thread."""
    try:
        libc.prctl_name(os.fsencode(name)[:_MAX_NAME_BYTES])
    except OSError:
        return False
    return True


def boot_id() -> str:
    """The id of this boot of the machine: another id means that all that was only in memory is gone."""
    return _BOOT_ID.read_text().strip()


def process_start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when there is no such process (any more)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = line.rpartition(b")")[2].split()  # the name may hold blanks and parentheses
    state, start_time = after_name[0], after_name[19]
    return None if state in (b"Z", b"X") else int(start_time)


def descends_from(pid: int, ancestor_pid: int) -> bool:
    """Whether `ancestor_pid` started process `pid`, itself or through others; False for one that is gone."""
    while pid > 1 and pid != ancestor_pid:
        try:
            line = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        pid = int(line.rpartition(b")")[2].split()[1])
    return pid == ancestor_pid


def readable(fds: Iterable[int], timeout_s: float | None = None) -> list[int]:
    """Which of `fds` can be read, or have ended, within the time. Unlike select(2) for any descriptor number."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]


class MappedMemory:
    """Looks at the process it was made in, whose requests wait meanwhile: to open the file costs 300 µs."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def bytes(self) -> int:
        """Resident memory that belongs to mapped files: the kernel can give it back at any time."""
        return int(os.pread(self._fd, _MAX_STATM_BYTES, 0).split()[2]) * mmap.PAGESIZE


def detach_streams(*, stderr_too: bool = True) -> None:
    """Let go of the caller's terminal and pipes, so that nobody waits for a daemon to close them."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2) if stderr_too else (0, 1):
        os.dup2(null_fd, fd)
    os.close(null_fd)
