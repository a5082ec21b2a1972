"""`snapfs` that stops before one of its requests, or after it, until it is told to go on.

The first argument is the operation, with a "+" for when it has been answered, the second what becomes of its deadline
meanwhile: `renewed`, `kept`, or `told`, which is kept and tells of the request's further fate.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from snapfs.cli import main
from snapfs.client import Connection
from snapfs.errors import SnapfsError
from snapfs.protocol import Timed, deadline_in

ask: Any = Connection.ask
receive: Any = Connection._receive
_, OP, DEADLINE, *WORDS = sys.argv


def stopping(self: Connection, message: Any, until: float | None = None) -> Any:
    if message.op != OP.rstrip("+"):
        return ask(self, message, until)
    if OP.endswith("+"):
        answer = ask(self, message, until)
        stop()
        return answer
    stop()
    if DEADLINE == "renewed" and isinstance(message, Timed):
        message = replace(message, deadline_s=deadline_in(30))
    if DEADLINE == "told":
        Connection._receive = telling  # type: ignore[method-assign]
    try:
        return ask(self, message, until)
    except SnapfsError:
        tell("given up")
        raise


def stop() -> None:
    os.write(1, b"stopped\n")
    os.read(0, 1)


def telling(self: Connection, until: float) -> Any:
    tell("asked")
    return receive(self, until)


def tell(what: str) -> None:
    if DEADLINE == "told":
        os.write(1, f"{what}\n".encode())


Connection.ask = stopping  # type: ignore[method-assign]
sys.argv = ["snapfs", *WORDS]
main()
