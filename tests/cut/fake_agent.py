"""A guest agent that speaks the protocol of qemu-ga over a UNIX socket, as its serial port is seen from the host."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class FakeAgent:
    """One connection after the other. `commands` are those it has got; `answers` replace its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.commands = path, list[str]()
        self.status, self.filesystems = "thawed", 3
        self.errors: dict[str, str] = {}
        self.silent: set[str] = set()
        self.unread = b""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.sendall(self.unread)
        lines = connection.makefile("rb")
        for line in lines:
            # The byte ends whatever stands before it; it is no part of a request.
            request = json.loads(line.rpartition(b"\xff")[2])
            command = request["execute"]
            self.commands.append(command)
            if command in self.silent:
                continue
            answer = self._answer(command, request.get("arguments", {}))
            before = b"\xff" if command == "guest-sync-delimited" else b""
            connection.sendall(before + json.dumps(answer).encode() + b"\n")

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command in self.errors:
            return {"error": {"class": "GenericError", "desc": self.errors[command]}}
        if command == "guest-sync-delimited":
            return {"return": arguments["id"]}
        if command == "guest-fsfreeze-status":
            return {"return": self.status}
        if command == "guest-fsfreeze-freeze":
            self.status = "frozen"
            return {"return": self.filesystems}
        if command == "guest-fsfreeze-thaw":
            count = self.filesystems if self.status == "frozen" else 0
            self.status = "thawed"
            return {"return": count}
        return {"error": {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}}
