"""One view in one process: mounting, serving, and telling the supervisor how it goes.

A server says ``ready`` when it answers requests and ``gone`` when its view has been unmounted, each a line on
its pipe to the supervisor. After ``gone`` it stays until it is stopped: the live server still owns the state.

Only the supervisor stops a server, by a signal that nobody else sends. When the machine shuts down SIGTERM comes
to all processes at once, but the live server must stay until the kernel has given it what was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator

import trio

from snapfs.fuse import session
from snapfs.fuse.view import View
from snapfs.servers.instance import LIVE, Instance
from snapfs.system.processes import (
    detach_streams,
    die_with_parent,
    keep_heap,
    set_io_flusher,
    set_oom_score,
    set_process_name,
)
from snapfs.system.view_mounts import session_view

READY, GONE, SERVED = b"ready\n", b"gone\n", b"served\n"
STOP_SIGNAL = signal.SIGUSR1


def become_server(name: str, supervisor_pid: int) -> None:
    """What every server does first: end when the supervisor is gone, be spared, keep its memory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(STOP_SIGNAL, supervisor_pid)
    os.umask(0o077)  # what is in the store was in the image, and is for nobody else
    set_process_name(f"snapfs-{name}")
    set_oom_score(-900)
    keep_heap()


def mount_view(instance: Instance, name: str, view: View, options: Iterable[str]) -> None:
    """Mount ``view``, and note which filesystem it is; SnapfsError when FUSE refuses."""
    mount_point = instance.live if name == LIVE else instance.snap
    session.mount(view, mount_point, instance.image_path, options)
    instance.places.note(name, session_view(mount_point))
    set_io_flusher()


def failure_line(sentence: str) -> bytes:
    """What a process says on its pipe when it fails: one line, whatever names and line ends the sentence holds."""
    return b"failed " + json.dumps(sentence).encode() + b"\n"


def sentence_of(line: bytes) -> str:
    """The sentence of a ``failure_line``; "" when it is none, or its end is missing."""
    try:
        return str(json.loads(line.removeprefix(b"failed ")))
    except ValueError:
        return ""


def tell_supervisor(pipe_fd: int, what: bytes) -> None:
    """One of the lines above; nobody hears it when the supervisor was killed, and that is told by a signal."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe_fd, what)


async def serve_view(instance: Instance, view: str, pipe_fd: int) -> None:
    """Answer requests until the view is unmounted or the session is told to end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_ready, instance, view, pipe_fd)
        await session.serve()
        nursery.cancel_scope.cancel()
    # From here on the number may be given to somebody else's filesystem.
    instance.places.note(view, None)
    tell_supervisor(pipe_fd, GONE)


async def _tell_ready(instance: Instance, view: str, pipe_fd: int) -> None:
    await trio.to_thread.run_sync(session.tune, instance.places.view(view))
    if not instance.options.foreground:
        # Until here libfuse may have had something to say to the user.
        detach_streams()
    tell_supervisor(pipe_fd, READY)


@contextlib.contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """The STOP_SIGNALs that come, one after the other."""
    with trio.open_signal_receiver(STOP_SIGNAL) as signals:
        yield signals


async def until_stopped() -> None:
    """Return at STOP_SIGNAL."""
    with stop_signals() as signals:
        await anext(signals)
