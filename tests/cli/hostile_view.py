"""A user's own FUSE server that says it is a snapfs: POINT, the IMAGE it names, the STORE its hidden link leads to.

In that store it answers as the live server would, with the status that comes on standard input.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pyfuse3
import trio

from snapfs.fuse.permissions import Permissions
from snapfs.fuse.view import IMAGE_INODE, View


class HostileView(View):
    def image_attributes(self) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = IMAGE_INODE, stat.S_IFREG | 0o444, 1
        entry.st_size, entry.st_blksize, entry.st_blocks = self._image_bytes, 4096, 8
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry


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
    view = HostileView(
        os.path.basename(image).encode(), store.encode, Permissions(os.open(__file__, os.O_RDONLY)), 4096, 4096
    )
    pyfuse3.init(view, point, {"subtype=snapfs", f"fsname={image}", "allow_other"})
    print("serving", flush=True)
    trio.run(pyfuse3.main)


main()
