"""A server seen from its supervisor: a child process with a pipe on which it says how it goes (see `pipe`)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from cow import CowError
from snapfs.errors import SnapfsError, shortage
from snapfs.servers.compactor import run_compactor
from snapfs.servers.instance import LIVE, SNAPSHOT, Instance
from snapfs.servers.live import run_live_server
from snapfs.servers.pipe import failure_line, heard
from snapfs.servers.process import STOP_SIGNAL
from snapfs.servers.snapshot import run_snapshot_server

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Server:
    """A running one. `pipe_fd` is what it says, `pidfd` can be read when it has ended."""

    name: str
    pid: int
    pidfd: int
    pipe_fd: int

    def heard(self) -> list[bytes]:
        """What it says now; nothing when it has closed its pipe."""
        return heard(self.pipe_fd)

    def stop(self) -> None:
        """Have it end when it has done its part."""
        self._send(STOP_SIGNAL)

    def wake(self) -> None:
        """One that somebody has stopped (SIGSTOP) could not end."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """It has had its time."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Until it has ended: its exit code, below 0 for the signal that killed it. What it says is closed."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe_fd)
        os.close(self.pidfd)
        return code


def start_server(name: str, instance: Instance) -> Server:
    """Fork it; the instance as it is now is what it works on."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(read_fd)
        _run(name, instance, write_fd)
    os.close(write_fd)
    return Server(name, pid, os.pidfd_open(pid), read_fd)


def _run(name: str, instance: Instance, pipe_fd: int) -> NoReturn:
    """In the child."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        if name == LIVE:
            code = run_live_server(instance, pipe_fd)
        elif name == SNAPSHOT:
            code = run_snapshot_server(instance, pipe_fd)
        else:
            code = run_compactor(instance)
    except BaseException as error:
        expected = all(isinstance(one, SnapfsError | CowError | OSError) for one in _single(error))
        _LOG.error("the %s server failed: %s", name, _reason(error), exc_info=None if expected else error)
        with contextlib.suppress(OSError):
            os.write(pipe_fd, failure_line(_reason(error)))
    finally:
        logging.shutdown()
        os._exit(code)


def _reason(error: BaseException) -> str:
    """Of several that came together, the first that can be explained."""
    several = list(_single(error))
    for one in several:
        if isinstance(one, SnapfsError):
            return one.sentence
        if (sentence := shortage(one)) is not None:
            return sentence
    return f"The view could not be mounted: {several[0]}; the messages above or the log may say why."


def _single(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _single(one)
