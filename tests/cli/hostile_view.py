"""A user's own FUSE server that says it is a snapfs: POINT, the IMAGE it names, the STORE its hidden link leads to.

In that store it answers as the live server would, with the status that comes on standard input.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pyfuse3
import trio

from snapfs.fuse.view import View
from snapfs.serving.permissions import Permission, Permissions
from snapfs.serving.served import Attributes, Served


class HostileView(View):
    def __init__(self, name: bytes, store: str) -> None:
        Served.__init__(self, Permissions(os.open(__file__, os.O_RDONLY)), 4096, 4096)
        View.__init__(self, name, store.encode)

    def attributes(self) -> Attributes:
        return Attributes(Permission(0o444, os.getuid(), os.getgid()), 8, 0, 0, 0)


def answer_all(listener: socket.socket, status: bytes) -> None:
    while True:
        connection = listener.accept()[0]
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(b'{"ok": true, "status": %s}\n' % status)


def main() -> None:
    point, image, store = sys.argv[1:]
    status = sys.stdin.buffer.read()
    if status:
        os.mkdir(store, 0o700)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{store}/socket")
        listener.listen(8)
        (Path(store) / "lock").touch()
        threading.Thread(target=answer_all, args=(listener, status), daemon=True).start()
    view = HostileView(os.path.basename(image).encode(), store)
    pyfuse3.init(view, point, {"subtype=snapfs", f"fsname={image}", "allow_other"})
    print("serving", flush=True)
    trio.run(pyfuse3.main)


main()
