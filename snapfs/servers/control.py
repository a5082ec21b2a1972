"""The live server's end of the control socket: it owns the state, so it answers.

Whoever may enter the store's directory may ask. One task a connection, which bears one request after the other; a
request is answered to its end even when nobody waits for the answer any more, unless it looks itself (`Client`).
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from snapfs.errors import SnapfsError
from snapfs.protocol import SOCKET_NAME, Request
from snapfs.wire import answer_line, parse_request, refusal_line

_LOG = logging.getLogger(__name__)
_MAX_REQUEST_BYTES: Final = 1 << 20
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


class Client:
    """Who asks, as long as the connection lasts."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        # 0 for a process that cannot be seen from here.
        self.pid: int = _UCRED.unpack(credentials)[0]

    @property
    def is_gone(self) -> bool:
        """Whether the other end is closed at this moment, whatever is still to be read; from any thread."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def check_waits(self) -> None:
        """SnapfsError when nobody waits for the answer."""
        if self.is_gone:
            raise SnapfsError("Whoever asked has gone, so nothing was done.")


Handler = Callable[[Request[Any], Client], Awaitable[Any]]
OnLeft = Callable[[Client], Awaitable[None]]


def listen(store: Path) -> trio.SocketListener:
    """The listening socket of an instance, whose `store` is held; replaces what a killed one left behind."""
    (store / SOCKET_NAME).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(store / SOCKET_NAME))
    sock.listen(16)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, handler: Handler, on_left: OnLeft) -> None:
    """Answer requests until cancelled; one that fails hurts nobody else. `on_left` is told of every client that
    has closed its connection, when all it asked for is answered."""

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            client = Client(stream)
            try:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while line := await _receive_line(stream):
                        await stream.send_all(await _answer(line, client, handler))
            finally:
                with trio.CancelScope(shield=True):
                    await on_left(client)

    await trio.serve_listeners(talk, [listener])


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """b"" when there is no more; a client sends nothing while it waits for an answer."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _MAX_REQUEST_BYTES:
        piece = await stream.receive_some()
        if not piece:
            break
        line += piece
    return bytes(line)


async def _answer(line: bytes, client: Client, handler: Handler) -> bytes:
    try:
        request = parse_request(line)
        _LOG.debug("process %d asks: %s", client.pid, request)
        return answer_line(await handler(request, client))
    except SnapfsError as error:
        _LOG.debug("process %d is refused: %s", client.pid, error.sentence)
        return refusal_line(error.sentence)
    except Exception:
        _LOG.exception("a request failed")
        return refusal_line("The server failed; its log says how.")
