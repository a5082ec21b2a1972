"""Qcow2 files as one raw file, read-only, by qemu-storage-daemon over FUSE, as long as loop devices are on it.

    command                      keeper                             qemu-storage-daemon
    forks                    ->  starts                         ->  shows the image as a file
    has the file             <-  opens it, takes its name away
    attaches loop devices
    closes file and socket   ->  looks which loop devices are on it,
                                 waits until they are gone,
                                 ends                           ->  ends

Rules:
- The file has no name once it is open, and its mount no place. So nothing but loop devices and what is mounted from
  them is left by whoever is killed, and they go with the mounts (see `system.attached`).
- The daemon ends with the keeper, however that ends. Then reading fails, and unmounting works.
- The keeper has the file open to the end: of a file that goes while it is served QEMU 7.2 crashes.
- What was open and locked at the fork stays so until the keeper ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final

from snapfs.errors import SnapfsError
from snapfs.imager.qemu import Link, chain_node
from snapfs.system import libc
from snapfs.system.block_devices import DETACHED, SYS_BLOCK, loop_identity
from snapfs.system.browses import BROWSE_SOURCE
from snapfs.system.kernel_text import kernel_value
from snapfs.system.processes import detach_streams, die_with_parent, set_process_name
from snapfs.system.scratch import scratch

_READY_S: Final = 30.0
_READY_LOOK_S: Final = 0.01
# Who ends it waits for that.
_LOOK_S: Final = 0.2
_NODE: Final = "image"
_MAX_SENTENCE_BYTES: Final = 8192
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


@contextlib.contextmanager
def shown_as_file(links: Sequence[Link]) -> Iterator[int]:
    """The image that the links show, as in `Export`, open as a raw file; a loop device on it stays after this."""
    if shutil.which("qemu-storage-daemon") is None:
        raise SnapfsError(
            "To show the files of a backup takes qemu-storage-daemon, which is not installed; install "
            "qemu-system-common."
        )
    for link in links:
        link.check()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            if not os.fork():
                ours.close()
                _keep(links, theirs)
        said, fds, *_ = socket.recv_fds(ours, _MAX_SENTENCE_BYTES, 1)
        if not fds:
            why = said.decode(errors="replace") or "whoever kept it was killed"
            raise SnapfsError(f"{links[0].path} cannot be shown: {why}; try again.", path=links[0].path)
        try:
            os.set_inheritable(fds[0], False)
            yield fds[0]
        finally:
            os.close(fds[0])


def _keep(links: Sequence[Link], command: socket.socket) -> None:
    """In the child: never returns."""
    try:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.chdir("/")
        detach_streams()
        set_process_name(BROWSE_SOURCE)
        with tempfile.TemporaryFile() as errors, scratch() as directory:
            process = _started(links, directory / _NODE, errors)
            try:
                fd = _opened(process, directory / _NODE, errors)
            finally:
                with contextlib.suppress(OSError):
                    libc.umount2(directory / _NODE, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
        socket.send_fds(command, [b"+"], [fd])
        # Until the command has done what it can, or is no more.
        command.recv(1)
        command.close()
        _await_end(process, _loops_on(os.fstat(fd).st_dev))
        process.kill()
        process.wait()
    except BaseException as error:
        with contextlib.suppress(OSError):
            command.send(str(error).encode())
    finally:
        os._exit(0)


def _started(links: Sequence[Link], file: Path, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    file.touch(0o600)
    node = {"node-name": _NODE, "read-only": True, **chain_node(links, {"direct": False})}
    export = {"type": "fuse", "id": _NODE, "node-name": _NODE, "mountpoint": str(file), "allow-other": "off"}
    return subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--export", json.dumps(export)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=tuple(link.fd for link in links),
        preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
    )


def _opened(process: subprocess.Popen[bytes], file: Path, errors: IO[bytes]) -> int:
    """The file, when the daemon shows it. SnapfsError: it does not, and why."""
    until = time.monotonic() + _READY_S
    try:
        while os.stat(file).st_dev == os.stat(file.parent).st_dev:
            if process.poll() is not None:
                raise SnapfsError(_complaint(errors))
            if time.monotonic() > until:
                raise SnapfsError("qemu-storage-daemon does not begin to show it")
            time.sleep(_READY_LOOK_S)
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _complaint(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read(_MAX_SENTENCE_BYTES).decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("qemu-storage-daemon: ").rstrip(".") if lines else "qemu-storage-daemon ended"


# --- loop devices ------------------------------------------------------------------------------------------------


def _loops_on(device: int) -> list[tuple[Path, bytes]]:
    """The loop devices on a file of that filesystem, each with its number among all that there ever were."""
    return [
        (directory, _number(directory))
        for directory in SYS_BLOCK.glob("loop*")
        if _is_detached(directory) and (loop_identity(Path("/dev", directory.name)) or ())[:1] == (device,)
    ]


def _await_end(process: subprocess.Popen[bytes], loops: Sequence[tuple[Path, bytes]]) -> None:
    while process.poll() is None and any(_is_detached(path) and _number(path) == number for path, number in loops):
        time.sleep(_LOOK_S)


def _is_detached(directory: Path) -> bool:
    try:
        return kernel_value(directory / "loop" / "backing_file") == os.fsencode(DETACHED)
    except OSError:
        return False


def _number(directory: Path) -> bytes:
    """Nothing before Linux 5.15: then one that is used again by the same kind passes for the one before."""
    try:
        return kernel_value(directory / "diskseq")
    except OSError:
        return b""
