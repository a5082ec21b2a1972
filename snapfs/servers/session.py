"""One FUSE mount in one process: mounting, serving, and telling the supervisor how it goes.

A server says ``ready`` when it answers requests and ``gone`` when its view has been unmounted, each a line on
its pipe to the supervisor. After ``gone`` it stays until it is stopped: the live server still owns the state.

Only the supervisor stops a server, by a signal that nobody else sends. When the machine shuts down SIGTERM comes
to all processes at once, but the live server must stay until the kernel has given it what was written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pyfuse3
import trio

from snapfs.errors import SnapfsError
from snapfs.fuse.receive import hurry_receive
from snapfs.fuse.view import View
from snapfs.servers.instance import LIVE, Instance
from snapfs.system.mounts import set_read_ahead
from snapfs.system.processes import (
    detach_streams,
    die_with_parent,
    keep_heap,
    set_io_flusher,
    set_oom_score,
    set_process_name,
)
from snapfs.system.view_mounts import ViewId, session_fd, session_view

_LOG = logging.getLogger(__name__)
READY, GONE, SERVED = b"ready\n", b"gone\n", b"served\n"
STOP_SIGNAL = signal.SIGUSR1
_READ_AHEAD_KIB = 4096
# Enough for a loop device or a deep queue to keep both cores busy; the default is 12.
_MAX_BACKGROUND = 64
_MAX_HEARD_BYTES = 4096
_NOBODY_ASKS = os.strerror(errno.ENOENT)


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
    fuse_options = {"default_permissions", "subtype=snapfs", f"fsname={_escaped(instance.image_path)}", *options}
    said: list[str] = []
    try:
        with _overheard(said):
            pyfuse3.init(view, str(mount_point), {_Option(option) for option in fuse_options})
    except RuntimeError as error:
        reason = ", ".join(dict.fromkeys(said)) or str(error)
        raise SnapfsError(
            f"FUSE cannot mount {mount_point}: {reason.replace(';', ',')}; change that or the options after -o.",
            path=mount_point,
        ) from error
    instance.places.note(name, session_view(mount_point))
    logging.getLogger(pyfuse3.__name__).addFilter(_is_news)
    set_io_flusher()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether pyfuse3 has something to tell: not when the kernel takes no answer any more.

    That is usual when a view is unmounted: the kernel waits for no answer to the last RELEASE, and for none at all
    when it is forced. libfuse itself is silent about it for the same reason.
    """
    text = record.getMessage()
    return not ("fuse_reply_" in text and text.endswith(_NOBODY_ASKS))


@contextlib.contextmanager
def _overheard(said: list[str]) -> Iterator[None]:
    """What libfuse or fusermount3 writes to stderr meanwhile goes to ``said``, a line an item."""
    stderr_fd, heard_fd = os.dup(2), os.memfd_create("heard")
    os.dup2(heard_fd, 2)
    try:
        yield
    finally:
        os.dup2(stderr_fd, 2)
        text = os.pread(heard_fd, _MAX_HEARD_BYTES, 0).decode(errors="replace")
        said += [line.removeprefix("fuse: ").rstrip(".") for line in text.splitlines()]
        os.close(stderr_fd)
        os.close(heard_fd)


class _Option(str):
    """pyfuse3 encodes options as ASCII and fails at any other letter; a path may hold any bytes."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def _escaped(path: Path) -> str:
    """A path as a mount option's value: commas and backslashes would end it."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


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
    hurry_receive(session_fd())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_ready, instance, view, pipe_fd)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    # From here on the number may be given to somebody else's filesystem.
    instance.places.note(view, None)
    tell_supervisor(pipe_fd, GONE)


async def _tell_ready(instance: Instance, view: str, pipe_fd: int) -> None:
    await trio.to_thread.run_sync(_tune, instance.places.view(view))
    if not instance.options.foreground:
        # Until here libfuse may have had something to say to the user.
        detach_streams()
    tell_supervisor(pipe_fd, READY)


def _tune(view: ViewId | None) -> None:
    """Let the kernel ask ahead and in parallel; without permission it is only slower."""
    if view is None:
        return
    set_read_ahead((view.major, view.minor), _READ_AHEAD_KIB)
    connection = Path(f"/sys/fs/fuse/connections/{view.minor}")
    for name, value in (("max_background", _MAX_BACKGROUND), ("congestion_threshold", _MAX_BACKGROUND * 3 // 4)):
        try:
            (connection / name).write_text(f"{value}\n")
        except OSError:
            return


@contextlib.contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """The STOP_SIGNALs that come, one after the other."""
    with trio.open_signal_receiver(STOP_SIGNAL) as signals:
        yield signals


async def until_stopped() -> None:
    """Return at STOP_SIGNAL."""
    with stop_signals() as signals:
        await anext(signals)
