"""The supervisor: starts the servers of one image, ends them together, and leaves nothing behind.

    starting   both views answer -> running; a server fails -> everything is undone, the reason reported
    running    a view is unmounted by whomever -> the other one is unmounted too; while it is busy it goes on
               alone. SIGTERM, SIGINT: both are unmounted, busy or not, after what the kernel holds is written
    ending     the live server ends what is under way; then compactor, snapshot server, live server go, in this
               order, so that nothing waits for one that is gone; then the store is removed, unless the
               user named it or a server died: then the next mount carries its snapshot on

A compactor that dies is started again; any other death ends the instance.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cow.store import remove_store
from snapfs.control import request
from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.servers.compactor import run_compactor
from snapfs.servers.instance import Instance
from snapfs.servers.live import run_live_server
from snapfs.servers.session import GONE, READY, SERVED, STOP_SIGNAL
from snapfs.servers.snapshot import run_snapshot_server
from snapfs.system.holders import describe, holders_of_mount, unmount_unused
from snapfs.system.mounts import find_mount, flush_filesystem, is_mount_point, unmount
from snapfs.system.processes import readable

_LOG = logging.getLogger(__name__)
LIVE, SNAPSHOT, COMPACTOR = "live", "snapshot", "compactor"
_MAX_RESTARTS = 5
_FLUSH_TIMEOUT_S = 60.0
_SERVER_TIMEOUT_S = 30.0


@dataclass(slots=True)
class _Server:
    name: str
    pid: int
    pidfd: int
    pipe_fd: int


class Supervisor:
    """``report`` is called once, with "" when both views answer or with the sentence why they do not."""

    def __init__(self, instance: Instance, report: Callable[[str], None]) -> None:
        self._instance, self._report = instance, report
        self._servers: dict[str, _Server] = {}
        self._selector = selectors.DefaultSelector()
        self._ready: set[str] = set()
        self._gone: set[str] = set()
        self._restarts = 0
        self._ending = self._crashed = self._reported = False

    def run(self) -> int:
        """Start, watch and end the servers; the exit code of the daemon."""
        self._instance.supervisor_pid = os.getpid()
        with self._signals():
            try:
                for name in (LIVE, SNAPSHOT, COMPACTOR):
                    self._start(name)
                while not self._ending:
                    self._turn()
            finally:
                self._stop_servers()
        return self._end()

    # --- servers ---------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            os.close(read_fd)
            self._run_server(name, write_fd)
        os.close(write_fd)
        server = _Server(name, pid, os.pidfd_open(pid), read_fd)
        self._servers[name] = server
        self._selector.register(server.pipe_fd, selectors.EVENT_READ, lambda: self._hear(server))
        self._selector.register(server.pidfd, selectors.EVENT_READ, lambda: self._bury(server))

    def _run_server(self, name: str, pipe_fd: int) -> None:
        """In the child: never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            instance = self._instance
            if name == LIVE:
                code = run_live_server(instance, pipe_fd)
            elif name == SNAPSHOT:
                code = run_snapshot_server(instance, pipe_fd)
            else:
                code = run_compactor(instance)
        except BaseException as error:
            _LOG.error("the %s server failed\n%s", name, traceback.format_exc().rstrip())
            with contextlib.suppress(OSError):
                os.write(pipe_fd, f"failed {_reason(error)}\n".encode())
        finally:
            logging.shutdown()
            os._exit(code)

    def _hear(self, server: _Server) -> None:
        """A server said something on its pipe."""
        data = os.read(server.pipe_fd, 4096)
        if not data:
            with contextlib.suppress(KeyError):
                self._selector.unregister(server.pipe_fd)
            return
        for line in data.splitlines(keepends=True):
            if line == READY:
                self._ready.add(server.name)
                if self._ready >= {LIVE, SNAPSHOT} and not self._reported:
                    self._tell("")
            elif line == GONE:
                self._on_gone(server.name)
            else:
                self._tell(line.decode(errors="replace").removeprefix("failed ").strip())

    def _bury(self, server: _Server) -> None:
        """A server's process ended without having been told to."""
        # What it said last may still be in its pipe.
        if readable([server.pipe_fd], 0):
            self._hear(server)
        self._forget(server)
        status = os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1])
        how = f"was killed by signal {-status}" if status < 0 else f"ended with code {status}"
        if server.name == COMPACTOR and self._restarts < _MAX_RESTARTS:
            self._restarts += 1
            _LOG.error("the compactor %s; it is started again", how)
            self._start(COMPACTOR)
            return
        _LOG.error("the %s server %s; the views end, the store is kept", server.name, how)
        self._tell(f"The {server.name} server {how}; its log says more.")
        self._crashed = self._ending = True

    def _forget(self, server: _Server) -> None:
        for fd in (server.pipe_fd, server.pidfd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
            os.close(fd)
        self._servers.pop(server.name, None)

    # --- turning ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        receive, send = socket.socketpair()
        send.setblocking(False)
        with receive, send:
            old_fd = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
            old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._selector.register(receive, selectors.EVENT_READ, lambda: self._on_signal(receive))
            try:
                yield
            finally:
                self._selector.unregister(receive)
                signal.set_wakeup_fd(old_fd)
                for number, handler in old.items():
                    signal.signal(number, handler)

    def _turn(self) -> None:
        for key, _ in self._selector.select():
            # An earlier one of them may have closed it, and opened another under its number.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def _on_signal(self, receive: socket.socket) -> None:
        _LOG.info("ending on signal %d", receive.recv(64)[-1])
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, "ending")
        self._flush_live()
        self._ending = True

    def _flush_live(self) -> None:
        """Have the kernel write what it holds for the live view: in a child, for it may take for ever."""
        if not is_mount_point(self._instance.live):
            return
        pid = os.fork()
        if not pid:
            with contextlib.suppress(OSError):
                flush_filesystem(self._instance.live)
            os._exit(0)
        pidfd = os.pidfd_open(pid)
        if not readable([pidfd], _FLUSH_TIMEOUT_S):
            _LOG.error("%s could not be flushed in %d s", self._instance.live, _FLUSH_TIMEOUT_S)
            os.kill(pid, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)

    def _on_gone(self, name: str) -> None:
        """A view was unmounted: the other follows, unless somebody uses it."""
        self._gone.add(name)
        other, point = (SNAPSHOT, self._instance.snap) if name == LIVE else (LIVE, self._instance.live)
        if other in self._gone:
            self._ending = True
            return
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, "stop-map")
        try:
            unmount_unused(point)
        except BusyError as error:
            holders = ", ".join(error.holders) or "nobody knows by whom"
            _LOG.warning("%s is in use (%s) and goes on alone until it is unmounted", point, holders)
        except NotMountedError:
            self._gone.add(other)
            self._ending = True

    def _tell(self, sentence: str) -> None:
        if not self._reported:
            self._reported = True
            self._report(sentence)
            if sentence:
                self._crashed = self._ending = True

    # --- the end ---------------------------------------------------------------------------------------------

    def _stop_servers(self) -> None:
        for point in (self._instance.snap, self._instance.live):
            _unmount_anyway(point)
        if live := self._servers.get(LIVE):
            self._end_serving(live)
        for name in (COMPACTOR, SNAPSHOT, LIVE):
            server = self._servers.get(name)
            if server is not None:
                self._stop(server)

    def _end_serving(self, live: _Server) -> None:
        """Have the live server end what is under way, which may need the room that the compactor makes."""
        if COMPACTOR not in self._servers:
            with contextlib.suppress(SnapfsError):
                request(self._instance.store.path, "ending", compactor_is_gone=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(live.pid, STOP_SIGNAL)
        said = b""
        while SERVED not in said:
            ready = readable([live.pipe_fd, live.pidfd])
            if live.pipe_fd not in ready:
                return
            data = os.read(live.pipe_fd, 4096)
            if not data:
                return
            said += data

    def _stop(self, server: _Server) -> None:
        """The signal, and patience with the two that may still have data to write."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, STOP_SIGNAL)
        if server.name == SNAPSHOT and not readable([server.pidfd], _SERVER_TIMEOUT_S):
            os.kill(server.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1])
        if status:
            _LOG.error("the %s server ended with code %d", server.name, status)
            self._crashed = True
        self._forget(server)

    def _end(self) -> int:
        instance = self._instance
        if not instance.keeps_store and not self._crashed:
            remove_store(instance.store.path)
        return 1 if self._crashed else 0


def _unmount_anyway(point: Path) -> None:
    """Unmount a view; when it is busy, at least let nobody new in."""
    with contextlib.suppress(SnapfsError):
        if not is_mount_point(point):
            return
        try:
            unmount(point)
        except BusyError:
            mount = find_mount(point)
            _LOG.warning("%s is still in use: %s", point, describe(holders_of_mount(mount)) if mount else "")
            unmount(point, lazy=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, SnapfsError):
        return error.sentence
    return f"The view could not be mounted: {error}; the messages above or the log may say why."
