"""Write back what the filesystems mounted from the live view hold in memory, in a process of its own.

It is a program (`python -m snapfs.servers.syncer MAJOR:MINOR INODE LIVE_FILE LOG_FD`): one of those filesystems
may hang, and takes with it whoever waits for it. For each it prints a line, `synced NAME` or
`failed NAME: REASON`, and at the end `done`. What lies in a file of another filesystem is written before that
one; those of one depth are written side by side.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from snapfs.freezing.live_filesystems import LiveFilesystem, find_live_filesystems, open_filesystem
from snapfs.log import configure_log
from snapfs.shown import shown
from snapfs.stacks import dump_stacks_on_signal
from snapfs.system import libc

DONE = "done"
# One that hangs keeps those beneath it no longer than this.
_PATIENCE_S = 20.0


def main(arguments: list[str]) -> None:
    number, inode, live_file, log = arguments
    configure_log(int(log), "snapfs-syncer")
    dump_stacks_on_signal()
    major, minor = map(int, number.split(":"))
    found = find_live_filesystems(Path(live_file), (os.makedev(major, minor), int(inode)))
    written = [filesystem for filesystem in found if not filesystem.read_only]
    for _, beside in groupby(written, lambda filesystem: filesystem.depth):
        _sync_all(beside)
    print(DONE, flush=True)
    # A thread that hangs would keep an ordinary exit.
    os._exit(0)


def _sync_all(filesystems: Iterable[LiveFilesystem]) -> None:
    threads = [threading.Thread(target=_sync, args=(one,), daemon=True) for one in filesystems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S)


def _sync(filesystem: LiveFilesystem) -> None:
    name, fd = shown(filesystem.name), open_filesystem(filesystem)
    if fd is None:
        print(f"failed {name}: no mount of it can be reached", flush=True)
        return
    try:
        libc.syncfs(fd)
    except OSError as error:
        print(f"failed {name}: {error.strerror}", flush=True)
    else:
        print(f"synced {name}", flush=True)
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
