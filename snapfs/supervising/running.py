"""The servers that run: started, heard on their pipes, and buried when their pidfd says that they have ended."""

from __future__ import annotations

import contextlib
import logging
import selectors
from collections.abc import Callable

from snapfs.servers.instance import LIVE, Instance
from snapfs.servers.start import Server, start_server
from snapfs.system.processes import readable

_LOG = logging.getLogger(__name__)


class Running:
    """`on_line` is called with a server's name and each line that it says, `on_end` with its name and exit code when
    it has ended without having been told to."""

    def __init__(
        self,
        instance: Instance,
        selector: selectors.BaseSelector,
        on_line: Callable[[str, bytes], None],
        on_end: Callable[[str, int], None],
    ) -> None:
        self._instance, self._selector = instance, selector
        self._on_line, self._on_end = on_line, on_end
        self._servers: dict[str, Server] = {}

    def get(self, name: str) -> Server | None:
        """None: it does not run."""
        return self._servers.get(name)

    def start(self, name: str) -> None:
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
            self._on_line(server.name, line)

    def _bury(self, server: Server) -> None:
        """A server's process ended without having been told to."""
        # What it said last may still be in its pipe.
        if readable([server.pipe_fd], 0):
            self._hear(server)
        self._on_end(server.name, self.end_of(server))

    def end_of(self, server: Server) -> int:
        """Its exit code; from then on it is none of ours."""
        for fd in (server.pipe_fd, server.pidfd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
        self._servers.pop(server.name, None)
        return server.wait()

    def wake(self) -> None:
        """All of them: one that somebody has stopped could not end."""
        for server in self._servers.values():
            server.wake()
