"""A server as a process: what it does first, and how it is stopped.

Only the supervisor stops a server, by a signal that nobody else sends. When the machine shuts down SIGTERM comes
to all processes at once, but the live server must stay until the kernel has given it what was written.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import trio

from snapfs.log import name_log
from snapfs.system.processes import die_with_parent, keep_heap, set_oom_score, set_process_name

STOP_SIGNAL = signal.SIGUSR1


def become_server(name: str, supervisor_pid: int) -> None:
    """What every server does first: end when the supervisor is gone, be spared, keep its memory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(STOP_SIGNAL, supervisor_pid)
    os.umask(0o077)  # what is in the store was in the image, and is for nobody else
    set_process_name(f"snapfs-{name}")
    name_log(f"snapfs-{name}")
    set_oom_score(-900)
    keep_heap()


@contextlib.contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """The STOP_SIGNALs that come, one after the other."""
    with trio.open_signal_receiver(STOP_SIGNAL) as signals:
        yield signals


async def until_stopped() -> None:
    """Return at STOP_SIGNAL."""
    with stop_signals() as signals:
        await anext(signals)
