"""Asking the live server of an instance, over the UNIX socket in its store.

The server is believed when the kernel says that the process which listens belongs to the store's owner
(SO_PEERCRED). Whoever asks waits no longer than he has said, and has cancelled what he asked for by closing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from snapfs.errors import NotMountedError, PermissionDeniedError, SnapfsError
from snapfs.protocol import SOCKET_NAME, AnswerT, GetStatus, Request, Timed
from snapfs.system.stores import hold_store, let_go, name_of
from snapfs.wire import BadMessageError, parse_answer, request_line

_ANSWER_TIMEOUT_S: Final = 30.0
# What is answered at once, or the server is stopped or hangs.
_STATUS_TIMEOUT_S: Final = 4.0
# After its deadline a server that works says that it is over.
_GRACE_S: Final = 2.0
_FULL_S: Final = 0.02
_PIECE_BYTES: Final = 1 << 18
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


def request(store: Path, message: Request[AnswerT], timeout_s: float | None = None) -> AnswerT:
    """Ask the live server of the instance in `store`; NotMountedError when there is none.

    SnapfsError carries the server's own sentence when it refuses, or says that there was no answer within
    `timeout_s`; without one until shortly after the message's own deadline.
    """
    until = time.monotonic() + _patience_s(message) if timeout_s is None else time.monotonic() + timeout_s
    with connected(store, until) as connection:
        return connection.ask(message, until)


def _patience_s(message: Request[Any]) -> float:
    if isinstance(message, Timed):
        return message.left_s + _GRACE_S
    return _STATUS_TIMEOUT_S if isinstance(message, GetStatus) else _ANSWER_TIMEOUT_S


@contextlib.contextmanager
def connected(store: Path, until: float | None = None) -> Iterator[Connection]:
    """A connection for several requests, the first of which may depend on it; errors as of `request`. It gives up
    what was begun over it when it is closed."""
    name = name_of(store)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with _explained(name), _short_path(store) as path:
            _connect(sock, path, time.monotonic() + _ANSWER_TIMEOUT_S if until is None else until)
            _check_peer(sock, os.stat(os.path.dirname(path)).st_uid, name)
        yield Connection(sock, name)


class Connection:
    """To the live server of the store that is called `name`."""

    def __init__(self, sock: socket.socket, name: Path) -> None:
        self._socket, self._name = sock, name

    def fileno(self) -> int:
        """As long as any process has this open, the server takes the asker for present."""
        return self._socket.fileno()

    def ask(self, message: Request[AnswerT], until: float | None = None) -> AnswerT:
        """The answer, by the time `until` of CLOCK_MONOTONIC; errors as of `request`. After one that the server
        did not send itself there is nothing more to ask."""
        if until is None:
            until = time.monotonic() + _patience_s(message)
        name = self._name
        with _explained(name):
            self._socket.settimeout(_left_s(until))
            self._socket.sendall(request_line(message))
            line = self._receive(until)
        if not line:
            raise NotMountedError(f"The snapfs on {name} is just ending; try again.", path=name)
        try:
            return parse_answer(message, line)
        except BadMessageError as error:
            raise SnapfsError(
                f"What the snapfs on {name} answers is not understood ({error.sentence}); mount it again.", path=name
            ) from error

    def _receive(self, until: float) -> bytes:
        """One line, however slowly it comes and however long it is, but not after `until`."""
        pieces: list[bytes] = []
        while not (pieces and pieces[-1].endswith(b"\n")):
            self._socket.settimeout(_left_s(until))
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)


@contextlib.contextmanager
def _explained(name: Path) -> Iterator[None]:
    """What the system says, as a sentence about the instance."""
    try:
        yield
    except (FileNotFoundError, ConnectionError, NotADirectoryError) as error:
        raise NotMountedError(f"No snapfs is running on {name}; mount the image first.", path=name) from error
    except PermissionError as error:
        raise SnapfsError(f"{name} belongs to another user; ask as that user or as root.", path=name) from error
    except TimeoutError as error:
        raise SnapfsError(
            f"The snapfs on {name} does not answer; its processes are stopped, or its log, {name / 'log'}, says why.",
            path=name,
        ) from error
    except OSError as error:
        raise SnapfsError(
            f"The snapfs on {name} cannot be asked: {error.strerror}; check the disk that the store is on.",
            path=name,
        ) from error


@contextlib.contextmanager
def _short_path(store: Path) -> Iterator[str]:
    """A path to the socket that fits into a socket address, however deep the store lies."""
    held = hold_store(store)
    try:
        yield f"{held}/{SOCKET_NAME}"
    finally:
        if held != store:
            let_go(held)


def _connect(sock: socket.socket, path: str, until: float) -> None:
    """TimeoutError when the server takes nobody in before `until`: a full socket refuses at once (EAGAIN)."""
    while True:
        sock.settimeout(_left_s(until))
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            time.sleep(_FULL_S)


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _check_peer(sock: socket.socket, owner: int, name: Path) -> None:
    """SnapfsError unless the process that listens belongs to the store's owner."""
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != owner:
        raise PermissionDeniedError(
            f"The socket in {name} is served by another user (uid {uid}) and is not believed; "
            "look at who does so and end that.",
            path=name,
        )
