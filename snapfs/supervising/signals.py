"""The signals that end an instance, heard in turn with all else that the supervisor waits for."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

_HEARD: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def ending_signals(selector: selectors.BaseSelector, on_signal: Callable[[int], None]) -> Iterator[None]:
    """Within it they are told to `on_signal`, by their number, through the selector."""
    receive, send = socket.socketpair()
    send.setblocking(False)
    with receive, send:
        old_fd = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
        old = {number: signal.signal(number, lambda *_: None) for number in _HEARD}
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        selector.register(receive, selectors.EVENT_READ, lambda: _hear(receive, on_signal))
        try:
            yield
        finally:
            selector.unregister(receive)
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)


def _hear(receive: socket.socket, on_signal: Callable[[int], None]) -> None:
    # Others that are handled come this way, too.
    numbers = [number for number in receive.recv(64) if number in _HEARD]
    if numbers:
        on_signal(numbers[-1])
