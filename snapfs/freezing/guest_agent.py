"""The QEMU guest agent: has the guest flush and freeze its own filesystems.

Source: the QEMU Guest Agent Protocol Reference: JSON objects over the socket of a serial port of the guest;
`guest-sync-delimited` puts a byte 0xFF before its answer, so that what an earlier client left unread is told
from it.

Rules:
- Every wait has an end: an agent that is not running in the guest never answers.
- The guest is thawed whenever its freeze was asked for, also when the answer did not come: the agent takes the
  requests one after the other.
- The connection is shared with the watchdog, and an answer goes to whoever reads first, so the two take turns. A
  process that dies gives up its turn; one that is stopped loses it after `_PATIENCE_S`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from snapfs.errors import SnapfsError, UsageError

_SENTINEL: Final = b"\xff"
_SYNC_TIMEOUT_S: Final = 5.0
_PATIENCE_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.01
_MAX_ANSWER_BYTES: Final = 1 << 20


class GuestAgent:
    """A connection to the agent behind `path`; made outside of any freeze."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._received = b""
        self._sync_no = 0
        self._turn_fd = os.memfd_create("snapfs-guest-agent")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_SYNC_TIMEOUT_S)
            self._socket.connect(os.fspath(path))
            self._sync()
        except OSError as error:
            self.close()
            reason = error.strerror or "it does not answer"
            raise SnapfsError(
                f"The guest agent behind {path} cannot be used ({reason}); start qemu-ga in the guest, or leave "
                "out --quiesce.",
                path=path,
            ) from error

    def close(self) -> None:
        self._socket.close()
        os.close(self._turn_fd)

    def check_thawed(self) -> None:
        """SnapfsError when somebody else has frozen the guest."""
        if self._ask("guest-fsfreeze-status", _SYNC_TIMEOUT_S) != "thawed":
            raise SnapfsError(
                f"The guest behind {self.path} is already frozen by somebody else; have it thawed first.",
                path=self.path,
            )

    def freeze(self, timeout_s: float) -> int:
        """Freeze the guest; how many of its filesystems that were, at least one. OSError: perhaps none."""
        with self._turn():
            count = int(self._ask("guest-fsfreeze-freeze", timeout_s))
        if not count:
            raise OSError(errno.EOPNOTSUPP, "it has no filesystem that can be frozen")
        return count

    def thaw(self) -> bool:
        """Thaw the guest; False when nothing was frozen (any more). OSError: not known, try again."""
        with self._turn():
            self._sync()
            return int(self._ask("guest-fsfreeze-thaw", _SYNC_TIMEOUT_S)) > 0

    # --- protocol --------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A lock of the process, so a fork does not inherit it and the kernel takes it from the dead."""
        until = time.monotonic() + _PATIENCE_S
        while not self._is_our_turn() and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN_S)
        try:
            yield
        finally:
            fcntl.lockf(self._turn_fd, fcntl.LOCK_UN)

    def _is_our_turn(self) -> bool:
        try:
            fcntl.lockf(self._turn_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _sync(self) -> None:
        """Throw away what is left of earlier requests, ours or another client's."""
        self._sync_no += 1
        # Not only counted: a watchdog's answers must not be taken for its parent's.
        sync_id = (os.getpid() << 20 | self._sync_no) & 0x7FFFFFFF
        # The byte before it ends a request that another client left half sent.
        self._send("guest-sync-delimited", {"id": sync_id}, _SENTINEL)
        until = time.monotonic() + _SYNC_TIMEOUT_S
        while True:
            self._read_past_sentinel(until)
            if self._read_answer(until) == sync_id:
                return

    def _ask(self, command: str, timeout_s: float) -> Any:
        self._send(command)
        return self._read_answer(time.monotonic() + timeout_s)

    def _send(self, command: str, arguments: dict[str, Any] | None = None, before: bytes = b"") -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._socket.settimeout(_SYNC_TIMEOUT_S)
        self._socket.sendall(before + json.dumps(message).encode() + b"\n")

    def _read_past_sentinel(self, until: float) -> None:
        while _SENTINEL not in self._received:
            self._received = b""
            self._receive(until)
        self._received = self._received.partition(_SENTINEL)[2]

    def _read_answer(self, until: float) -> Any:
        while b"\n" not in self._received:
            self._receive(until)
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise OSError(errno.EPROTO, f"the guest agent said what is no JSON: {line[:80]!r}") from error
        if "error" in answer:
            raise OSError(errno.EPROTO, f"the guest agent refused: {answer['error'].get('desc', 'no reason given')}")
        return answer.get("return")

    def _receive(self, until: float) -> None:
        self._socket.settimeout(max(0.001, until - time.monotonic()))
        piece = self._socket.recv(65536)
        if not piece:
            raise ConnectionError(errno.ECONNRESET, "the guest agent's connection was closed")
        self._received += piece
        if len(self._received) > _MAX_ANSWER_BYTES:
            raise OSError(errno.EPROTO, "the guest agent's answer does not end")


def connect_agent(address: str) -> GuestAgent:
    """The agent that `qga:SOCKET` names."""
    kind, _, path = address.partition(":")
    if kind != "qga" or not path:
        raise UsageError(f"{address!r} names no way to quiesce a guest; give qga: and the agent's socket.")
    return GuestAgent(Path(path))
