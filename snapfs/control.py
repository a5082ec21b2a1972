"""The control socket: one JSON object a line each way, over a UNIX socket in the store.

Whoever may enter the store's directory may ask. The live server answers: it owns the state. Its answer is believed
when the kernel says that the process which listens belongs to the store's owner (SO_PEERCRED).
A request is ``{"op": NAME, ...}``, an answer ``{"ok": true, ...}`` or ``{"ok": false, "error": SENTENCE}``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from snapfs.errors import NotMountedError, PermissionDeniedError, SnapfsError
from snapfs.system.stores import hold_store, name_of

Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Message]]

_LOG = logging.getLogger(__name__)
SOCKET_NAME = "socket"
# Only of requests: an answer is as long as a disk of thousands of partitions makes it.
_MAX_REQUEST_BYTES = 1 << 20
_ANSWER_TIMEOUT_S = 30.0
# What is answered at once, or the server is stopped or hangs.
_STATUS_TIMEOUT_S = 4.0
_FULL_S = 0.02
_PIECE_BYTES = 1 << 18
_UCRED = struct.Struct("3i")  # pid, uid, gid


@contextlib.contextmanager
def _short_path(store: Path) -> Iterator[str]:
    """A path to the socket that fits into a socket address, however deep the store lies."""
    held = hold_store(store)
    try:
        yield f"{held}/{SOCKET_NAME}"
    finally:
        if held != store:
            os.close(int(held.name))


def request(store: Path, op: str, timeout_s: float | None = None, **facts: Any) -> Message:
    """Ask the live server of the instance in ``store``; NotMountedError when there is none.

    SnapfsError carries the server's own sentence when it refuses.
    """
    if timeout_s is None:
        timeout_s = _STATUS_TIMEOUT_S if op == "status" else _ANSWER_TIMEOUT_S
    until = time.monotonic() + timeout_s
    name = name_of(store)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        try:
            with _short_path(store) as path:
                _connect(connection, path, until)
                _check_peer(connection, os.stat(os.path.dirname(path)).st_uid, name)
            connection.sendall(json.dumps({"op": op, **facts}).encode() + b"\n")
            line = _receive(connection, until)
        except (FileNotFoundError, ConnectionError, NotADirectoryError) as error:
            raise NotMountedError(f"No snapfs is running on {name}; mount the image first.", path=name) from error
        except PermissionError as error:
            raise SnapfsError(f"{name} belongs to another user; ask as that user or as root.", path=name) from error
        except TimeoutError as error:
            raise SnapfsError(
                f"The snapfs on {name} does not answer; its processes are stopped, or its log, {name / 'log'}, "
                "says why.",
                path=name,
            ) from error
        except OSError as error:
            raise SnapfsError(
                f"The snapfs on {name} cannot be asked: {error.strerror}; check the disk that the store is on.",
                path=name,
            ) from error
    if not line:
        raise NotMountedError(f"The snapfs on {name} is just ending; try again.", path=name)
    return _understood(line, name)


def _connect(connection: socket.socket, path: str, until: float) -> None:
    """TimeoutError when the server takes nobody in before ``until``: a full socket refuses at once (EAGAIN)."""
    while True:
        connection.settimeout(_left_s(until))
        try:
            connection.connect(path)
            return
        except BlockingIOError:
            time.sleep(_FULL_S)


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _check_peer(connection: socket.socket, owner: int, name: Path) -> None:
    """SnapfsError unless the process that listens belongs to the store's owner."""
    _pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != owner:
        raise PermissionDeniedError(
            f"The socket in {name} is served by another user (uid {uid}) and is not believed; "
            "look at who does so and end that.",
            path=name,
        )


def _receive(connection: socket.socket, until: float) -> bytes:
    """One line, however slowly it comes and however long it is, but not after ``until``."""
    pieces: list[bytes] = []
    while not (pieces and pieces[-1].endswith(b"\n")):
        connection.settimeout(_left_s(until))
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _understood(line: bytes, name: Path) -> Message:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SnapfsError(f"The snapfs on {name} answers what is not understood; mount it again.", path=name)
    if not answer.get("ok"):
        raise SnapfsError(str(answer.get("error", "the server gave no reason")), path=name)
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
    while not line.endswith(b"\n") and len(line) < _MAX_REQUEST_BYTES:
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
