"""What the service manager is told that has started this process: sd_notify(3), by its socket.

Nobody has to listen: started otherwise, by a person or from fstab, nothing is told.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_TIMEOUT_S = 1.0


def tell_ready(status: str) -> None:
    """The service has started."""
    _tell("READY=1", _status(status))


def tell_status(status: str) -> None:
    """How it is, in one line for people."""
    _tell(_status(status))


def tell_stopping(status: str) -> None:
    """It ends by itself, or as it was asked to."""
    _tell("STOPPING=1", _status(status))


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"


def _tell(*lines: str) -> None:
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    # A manager that is gone, or does not read, keeps nobody from serving.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(_TIMEOUT_S)
        name = f"\0{address[1:]}" if address.startswith("@") else address
        channel.sendto("\n".join(lines).encode(errors="surrogateescape"), name)
