"""The supervisor: starts the servers of one image, ends them together, and leaves nothing behind.

    starting   both views answer -> running; a server fails -> everything is undone, the reason reported
    running    a view is unmounted by whomever -> the other one is unmounted too; while it is busy it goes on
               alone. SIGTERM, SIGINT: both are unmounted, busy or not, after what was written to the live view,
               or to filesystems mounted from it, is in the image
    ending     the live server ends what is under way; then compactor, snapshot server, live server go, in this
               order, so that nothing waits for one that is gone; then the store is removed, unless the
               user named it or a server died: then the next mount carries its snapshot on

A compactor or a snapshot server that dies is started again, if need be after a while (see `restarts`); meanwhile
the live view goes on without it, and status says so. Only the death of the live server ends the instance.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from snapfs.client import request
from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.events.queue import EventQueue
from snapfs.protocol import ExpectEnd, NoteServer, StopMap, WriteOut, deadline_in
from snapfs.servers.instance import COMPACTOR, LIVE, SNAPSHOT, Instance
from snapfs.servers.pipe import GONE, READY, SERVED, event_of, sentence_of
from snapfs.servers.process import STOP_SIGNAL
from snapfs.servers.restarts import Restarts
from snapfs.servers.start import Server, start_server
from snapfs.system.holders import describe, holders_of_mount, unmount_unused
from snapfs.system.mounts import SNAPFS_TYPE, find_mount
from snapfs.system.processes import readable
from snapfs.system.service_manager import tell_status, tell_stopping
from snapfs.system.store_files import remove_held
from snapfs.system.view_mounts import ViewId, mounts_of, unmount_all

_LOG = logging.getLogger(__name__)
# The live server has a limit of its own for writing out, which is a little less.
_FLUSH_TIMEOUT_S = 65.0
_SERVER_TIMEOUT_S = 30.0
_TELL_TIMEOUT_S = 2.0
_STOP_MAP_TIMEOUT_S = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT)
_MISSING = {
    SNAPSHOT: "the snapshot server died: the snapshot cannot be read until it is started again",
    COMPACTOR: "the compactor died: the side buffer is full sooner until it is started again",
}


class Supervisor:
    """`report` is called once, with "" when both views answer or with the sentence why they do not.

    `caller_fd` is the end of a pipe on which that is reported: when nobody has its other end any more before,
    everything is undone.
    """

    def __init__(self, instance: Instance, report: Callable[[str], None], caller_fd: int | None = None) -> None:
        self._instance, self._report, self._caller_fd = instance, report, caller_fd
        self._servers: dict[str, Server] = {}
        self._selector = selectors.DefaultSelector()
        self._events = EventQueue(instance.options.on_event, self._selector, self._known)
        self._ready: set[str] = set()
        self._gone: set[str] = set()
        self._restarts = {name: Restarts() for name in (SNAPSHOT, COMPACTOR)}
        # When to start the servers that are missing, and what is wrong as long as they are.
        self._due_s: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._ending = self._crashed = self._reported = self._is_running = False

    def run(self) -> int:
        """Start, watch and end the servers; the exit code of the daemon."""
        self._instance.supervisor_pid = os.getpid()
        with self._signals():
            try:
                self._watch_caller()
                for name in (LIVE, SNAPSHOT, COMPACTOR):
                    self._start(name)
                while not self._ending:
                    self._turn()
            finally:
                self._stop_servers()
                self._events.finish()
        return self._end()

    # --- servers ---------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        server = start_server(name, self._instance)
        _LOG.debug("started %s, process %d", name, server.pid)
        self._servers[name] = server
        if name == LIVE:
            self._instance.live_pidfd = server.pidfd
        self._selector.register(server.pipe_fd, selectors.EVENT_READ, lambda: self._hear(server))
        self._selector.register(server.pidfd, selectors.EVENT_READ, lambda: self._bury(server))

    def _hear(self, server: Server) -> None:
        """A server said something on its pipe."""
        lines = server.heard()
        if not lines:
            with contextlib.suppress(KeyError):
                self._selector.unregister(server.pipe_fd)
        for line in lines:
            _LOG.debug("%s says %s", server.name, line.decode(errors="replace").rstrip())
            if line == READY:
                self._on_ready(server.name)
            elif line == GONE:
                self._on_gone(server.name)
            elif (facts := event_of(line)) is not None:
                self._events.add(facts)
            else:
                self._tell(sentence_of(line) or f"The {server.name} server failed; its log says how.")

    def _on_ready(self, name: str) -> None:
        self._ready.add(name)
        if self._reported:
            self._note_server(name, None)
        elif self._ready >= {LIVE, SNAPSHOT}:
            self._tell("")
            if self._ending:
                return
            self._is_running = True
            # Whoever is started from here on opens the cut that is present then.
            self._instance.store.let_go_older()
            self._instance.store.cut.let_go()

    def _bury(self, server: Server) -> None:
        """A server's process ended without having been told to."""
        # What it said last may still be in its pipe.
        if readable([server.pipe_fd], 0):
            self._hear(server)
        code = self._end_of(server)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if server.name in self._restarts and (self._reported or server.name == COMPACTOR):
            self._replace(server.name, how)
            return
        _LOG.error("the %s server %s; the views end, the store is kept", server.name, how)
        self._tell(f"The {server.name} server {how}; its log says more.")
        self._crashed = self._ending = True

    def _known(self) -> dict[str, str]:
        """What hooks are told with every event."""
        instance = self._instance
        return {
            "SNAPFS_IMAGE": str(instance.present_image_path),
            "SNAPFS_LIVE": str(instance.point(LIVE)),
            "SNAPFS_SNAP": str(instance.point(SNAPSHOT)),
            "SNAPFS_STORE": str(instance.store_path),
        }

    # --- servers that died -----------------------------------------------------------------------------------

    def _replace(self, name: str, how: str) -> None:
        """Start the server again, now or when it is due; nothing else waits for it."""
        if name == SNAPSHOT and not self._clear_view():
            return
        wait_s = self._restarts[name].take(time.monotonic())
        self._due_s[name] = time.monotonic() + wait_s
        title = "the compactor" if name == COMPACTOR else f"the {name} server"
        when = f"in {wait_s:.0f} s, for it died often" if wait_s else "again"
        _LOG.error("%s %s; it is started %s", title, how, when)
        self._note_server(name, _MISSING[name])

    def _clear_view(self) -> bool:
        """Unmount what the dead snapshot server left; False when there is nothing to be shown again."""
        view = self._instance.places.view(SNAPSHOT)
        if SNAPSHOT in self._gone:
            return False
        if view is None:
            return True  # it ended before it had mounted anything
        if not mounts_of(view):
            self._on_gone(SNAPSHOT)
            return False
        self._instance.snap = self._instance.point(SNAPSHOT)
        for error in unmount_all(view, lazy=True):
            _LOG.error("the view of the snapshot server that died cannot be unmounted: %s", error.sentence)
        self._instance.places.note(SNAPSHOT, None)
        return True

    def _start_due(self) -> None:
        for name, due_s in list(self._due_s.items()):
            if due_s <= time.monotonic():
                del self._due_s[name]
                self._start(name)
                if name == COMPACTOR:
                    self._note_server(name, None)

    def _note_server(self, name: str, trouble: str | None) -> None:
        if trouble is None:
            self._troubles.pop(name, None)
        else:
            self._troubles[name] = trouble
        tell_status("; ".join(self._troubles.values()) or self._instance.summary)
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, NoteServer(name, trouble), _TELL_TIMEOUT_S)

    def _end_of(self, server: Server) -> int:
        """Its exit code; from then on it is none of ours."""
        for fd in (server.pipe_fd, server.pidfd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
        self._servers.pop(server.name, None)
        return server.wait()

    # --- the caller ------------------------------------------------------------------------------------------

    def _watch_caller(self) -> None:
        if self._caller_fd is not None:
            # Of a pipe's writing end no more is heard than that nobody reads.
            self._selector.register(self._caller_fd, selectors.EVENT_READ, self._on_abandoned)

    def _on_abandoned(self) -> None:
        _LOG.error("the command that mounts ended before the views answered")
        self._forget_caller()
        self._reported = self._ending = True

    def _forget_caller(self) -> None:
        if self._caller_fd is not None:
            self._selector.unregister(self._caller_fd)
            self._caller_fd = None

    # --- turning ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        receive, send = socket.socketpair()
        send.setblocking(False)
        with receive, send:
            old_fd = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
            old = {number: signal.signal(number, lambda *_: None) for number in _ENDING}
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
        timeout_s = max(0.0, min(self._due_s.values()) - time.monotonic()) if self._due_s else None
        for key, _ in self._selector.select(timeout_s):
            # An earlier one of them may have closed it, and opened another under its number.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        if not self._ending:
            self._start_due()

    def _on_signal(self, receive: socket.socket) -> None:
        # Others that are handled come this way, too.
        numbers = [number for number in receive.recv(64) if number in _ENDING]
        if not numbers:
            return
        _LOG.info("ending on signal %d", numbers[-1])
        tell_stopping("writing out what is held of the live view")
        self._wake_servers()
        store = self._instance.store.path
        with contextlib.suppress(SnapfsError):
            request(store, ExpectEnd())
        try:
            # Before the views are unmounted: then nobody who still writes is cut off half-way.
            request(store, WriteOut(deadline_s=deadline_in(_FLUSH_TIMEOUT_S)))
        except SnapfsError as error:
            _LOG.error("what was written to the live view may not be in the image: %s", error.sentence)
        self._ending = True

    def _on_gone(self, name: str) -> None:
        """A view was unmounted: the other follows, unless somebody uses it."""
        self._gone.add(name)
        other = SNAPSHOT if name == LIVE else LIVE
        if other in self._gone or other not in self._servers:
            self._ending = True
            return
        with contextlib.suppress(SnapfsError):
            request(self._instance.store.path, StopMap(deadline_s=deadline_in(_STOP_MAP_TIMEOUT_S)))
        try:
            unmount_unused(self._instance.places.view(other))
        except BusyError as error:
            holders = ", ".join(error.holders) or "nobody knows by whom"
            point = self._instance.point(other)
            _LOG.warning("%s is in use (%s) and goes on alone until it is unmounted", point, holders)
        except NotMountedError:
            self._gone.add(other)
            self._ending = True

    def _tell(self, sentence: str) -> None:
        if not self._reported:
            self._reported = True
            self._forget_caller()
            try:
                self._report(sentence)
            except BrokenPipeError:
                # Killed after we last looked.
                self._on_abandoned()
                return
            if sentence:
                self._crashed = self._ending = True

    # --- the end ---------------------------------------------------------------------------------------------

    def _wake_servers(self) -> None:
        for server in self._servers.values():
            server.wake()

    def _stop_servers(self) -> None:
        tell_stopping("ending the views")
        self._wake_servers()
        self._unmount_views()
        if live := self._servers.get(LIVE):
            self._end_serving(live)
        for name in (COMPACTOR, SNAPSHOT, LIVE):
            server = self._servers.get(name)
            if server is not None:
                self._stop(server)
        # One that was just starting may have mounted its view after the first look.
        self._unmount_views()

    def _unmount_views(self) -> None:
        for view in (SNAPSHOT, LIVE):
            shown = self._instance.places.view(view)
            if shown is None and view not in self._gone:
                # Its server may have failed between mounting and noting it: nobody else mounts there meanwhile.
                shown = self._view_at(self._instance.point(view))
            _unmount_anyway(shown)

    def _view_at(self, point: Path) -> ViewId | None:
        mount = find_mount(point)
        is_left = mount is not None and mount.mount_point == point and mount.fstype == SNAPFS_TYPE
        return ViewId.of(mount) if mount is not None and is_left else None

    def _end_serving(self, live: Server) -> None:
        """Have the live server end what is under way, which may need the room that the compactor makes."""
        if COMPACTOR not in self._servers:
            with contextlib.suppress(SnapfsError):
                request(self._instance.store.path, ExpectEnd(compactor_is_gone=True))
        live.stop()
        lines: list[bytes] = []
        while SERVED not in lines:
            if live.pipe_fd not in readable([live.pipe_fd, live.pidfd]):
                return
            lines = live.heard()
            if not lines:
                return
            for facts in filter(None, map(event_of, lines)):
                self._events.add(facts)

    def _stop(self, server: Server) -> None:
        """The signal, and patience with the two that may still have data to write."""
        _LOG.debug("stopping %s", server.name)
        server.stop()
        if server.name == SNAPSHOT and not readable([server.pidfd], _SERVER_TIMEOUT_S):
            server.kill()
        code = self._end_of(server)
        # Of the very signal one ends that had not begun to serve.
        if code not in (0, -STOP_SIGNAL):
            _LOG.error("the %s server ended with code %d", server.name, code)
            self._crashed = True

    def _end(self) -> int:
        _LOG.debug("every server has ended")
        instance = self._instance
        # A snapshot that was carried on, and never shown, is still to be carried on.
        is_ours = self._is_running or instance.store.control.is_unseen
        if not instance.keeps_store and not self._crashed and is_ours:
            remove_held(instance.store.path)
        return 1 if self._crashed else 0


def _unmount_anyway(view: ViewId | None) -> None:
    """Unmount a view wherever it is; when it is busy, at least let nobody new in."""
    for error in unmount_all(view):
        if isinstance(error, BusyError):
            holders = [holder for mount in mounts_of(view)[:1] for holder in holders_of_mount(mount)]
            _LOG.warning("%s is still in use: %s", error.path, describe(holders))
        else:
            _LOG.warning("%s", error.sentence)
    unmount_all(view, lazy=True)
