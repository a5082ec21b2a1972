"""The control socket: one JSON object a line each way, over a UNIX socket in the store.

Whoever may enter the store's directory may ask. The live server answers: it owns the state.
A request is ``{"op": NAME, ...}``, an answer ``{"ok": true, ...}`` or ``{"ok": false, "error": SENTENCE}``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from snapfs.errors import NotMountedError, SnapfsError

Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Message]]

_LOG = logging.getLogger(__name__)
SOCKET_NAME = "socket"
_MAX_MESSAGE_BYTES = 1 << 20
_ANSWER_TIMEOUT_S = 30.0


@contextlib.contextmanager
def _short_path(store: Path) -> Iterator[str]:
    """A path to the socket that fits into a socket address, however deep the store lies."""
    fd = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET_NAME}"
    finally:
        os.close(fd)


def request(store: Path, op: str, timeout_s: float = _ANSWER_TIMEOUT_S, **facts: Any) -> Message:
    """Ask the live server of the instance in ``store``; NotMountedError when there is none.

    SnapfsError carries the server's own sentence when it refuses.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(timeout_s)
        try:
            with _short_path(store) as path:
                connection.connect(path)
            connection.sendall(json.dumps({"op": op, **facts}).encode() + b"\n")
            line = connection.makefile("rb").readline(_MAX_MESSAGE_BYTES)
        except (FileNotFoundError, ConnectionError, NotADirectoryError) as error:
            raise NotMountedError(f"No snapfs is running on {store}; mount the image first.", path=store) from error
        except PermissionError as error:
            raise SnapfsError(f"{store} belongs to another user; ask as that user or as root.", path=store) from error
        except TimeoutError as error:
            raise SnapfsError(
                f"The snapfs on {store} does not answer; look into its log, {store / 'log'}.", path=store
            ) from error
    if not line:
        raise NotMountedError(f"The snapfs on {store} is just ending; try again.", path=store)
    answer: Message = json.loads(line)
    if not answer.get("ok"):
        raise SnapfsError(str(answer.get("error", "the server gave no reason")), path=store)
    return answer


def listen(store: Path) -> trio.SocketListener:
    """The listening socket of an instance; replaces what a killed one left behind."""
    (store / SOCKET_NAME).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(store) as path:
        sock.bind(path)
    sock.listen(16)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, handler: Handler) -> None:
    """Answer requests until cancelled; one that fails hurts nobody else."""

    async def talk(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                answer = await _answer(await _receive_line(stream), handler)
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    await trio.serve_listeners(talk, [listener])


async def _receive_line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _MAX_MESSAGE_BYTES:
        piece = await stream.receive_some()
        if not piece:
            break
        line += piece
    return bytes(line)


async def _answer(line: bytes, handler: Handler) -> Message:
    try:
        message = json.loads(line)
        return {"ok": True, **await handler(message)}
    except SnapfsError as error:
        return {"ok": False, "error": error.sentence}
    except (ValueError, KeyError, TypeError) as error:
        return {"ok": False, "error": f"The request is not understood: {error}."}
    except Exception:
        _LOG.exception("a request failed")
        return {"ok": False, "error": "The server failed; its log says how."}
