"""Questions that may never be answered: asked from a child, with a deadline, several at once.

Who asks the server of a FUSE mount waits in the kernel until it answers, and cannot be killed once the server has
taken the request. So a child asks. It holds nothing of ours, no terminal and no pipe that somebody waits for, and
is left behind when there is no answer in time.

A child of root asks as the user whose mount it is: FUSE answers nobody else without allow_other, and what that
user's server says then leads nowhere that the user could not go himself.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

ANSWER_TIMEOUT_S: Final = 2.0
_MAX_ANSWER_BYTES: Final = 1 << 16
_PIPE_FD: Final = 3

User = tuple[int, int]


@dataclass(frozen=True)
class Answer:
    """`error` is an errno. Without data and error there was no answer in time."""

    data: bytes | None = None
    error: int | None = None

    @property
    def is_silence(self) -> bool:
        return self.data is None and self.error is None


def become(user: User | None) -> None:
    """Be `user` from here on, without a way back; None, or without root: stay who one is."""
    if user is None or os.geteuid() != 0 or user[0] == 0:
        return
    uid, gid = user
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def ask(question: Callable[[], bytes], timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
    """The answer to one question, see `ask_all`."""
    return ask_all([question], timeout_s)[0]


def ask_all(questions: Sequence[Callable[[], bytes]], timeout_s: float = ANSWER_TIMEOUT_S) -> list[Answer]:
    """The answers to all questions, in their order, after at most `timeout_s`; asked at the same time.

    A question runs in a child process and gives bytes or raises OSError.
    """
    children = [_start(question) for question in questions]
    until = time.monotonic() + timeout_s
    return [_finish(pid, read_fd, until) for pid, read_fd in children]


def _start(question: Callable[[], bytes]) -> tuple[int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            _hold_only(write_fd)
            os.write(_PIPE_FD, _said(question))
        finally:
            os._exit(0)
    os.close(write_fd)
    return pid, read_fd


def _hold_only(pipe_fd: int) -> None:
    """Whoever waits for the end of one of our pipes must not wait for a child that hangs."""
    os.dup2(pipe_fd, _PIPE_FD)
    os.closerange(_PIPE_FD + 1, os.sysconf("SC_OPEN_MAX"))
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null_fd, fd)
    os.close(null_fd)


def _said(question: Callable[[], bytes]) -> bytes:
    try:
        return b"+" + question()[:_MAX_ANSWER_BYTES]
    except OSError as error:
        return b"-%d" % (error.errno or 0)


def _finish(pid: int, read_fd: int, until: float) -> Answer:
    said = _read_until(read_fd, until)
    os.close(read_fd)
    if said is None:
        os.kill(pid, signal.SIGKILL)
    # One that cannot be killed is left behind: it ends when its server does.
    os.waitpid(pid, os.WNOHANG if said is None else 0)
    if not said:
        return Answer()
    return Answer(data=said[1:]) if said.startswith(b"+") else Answer(error=int(said[1:]))


def _read_until(fd: int, until: float) -> bytes | None:
    """All that comes from `fd` up to its end; None when the end does not come in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = b""
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        piece = os.read(fd, _MAX_ANSWER_BYTES)
        if not piece:
            return said
        said += piece
    return None
