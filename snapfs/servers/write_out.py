"""Getting everything that was written to the live view, or to a filesystem mounted from it, into the image.

    1  the filesystems mounted from it write back what they hold (see `syncer`)
    2  the kernel hands over what it holds of the live file

The second is asked for by the file's inode, over the session: no path is needed, so it works wherever the view is
mounted, hidden, renamed, or unmounted and still in use. Both need the live server to go on answering, so each
happens outside its event loop, and for a bounded time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from pathlib import Path
from typing import Final

import trio

from snapfs.fuse.session import write_back
from snapfs.fuse.view import IMAGE_INODE
from snapfs.log import log_fd
from snapfs.servers.instance import LIVE, Instance
from snapfs.servers.syncer import DONE
from snapfs.system.processes import program
from snapfs.system.view_mounts import ViewId

_LOG = logging.getLogger(__name__)
# How long the end may be kept by it, also by the supervisor's patience.
WRITE_OUT_S: Final = 60.0
_LOOPS = Path("/sys/class/block")
_PIECE_BYTES = 1 << 16


async def write_out(instance: Instance, timeout_s: float) -> None:
    """Both steps; what cannot be written in time is said in the log."""
    view = instance.places.view(LIVE)
    if view is None:
        return
    done = False
    with trio.move_on_after(timeout_s):
        if _may_carry_filesystems():
            await _sync_filesystems(instance, view)
        await trio.to_thread.run_sync(write_back, abandon_on_cancel=True)
        done = True
    if not done:
        _LOG.error("what was written to %s could not be written out in %g s", instance.point(LIVE), timeout_s)


def _may_carry_filesystems() -> bool:
    """Without a loop device, or a server that reads the file itself, there is nothing on the view."""
    return any(_LOOPS.glob("loop*/loop")) or b" fuse" in Path("/proc/self/mountinfo").read_bytes()


async def _sync_filesystems(instance: Instance, view: ViewId) -> None:
    command = [*program("snapfs.servers.syncer"), view.device, str(IMAGE_INODE)]
    process = subprocess.Popen(
        [*command, os.fspath(instance.view_file(LIVE)), str(log_fd())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=(log_fd(),),
    )
    assert process.stdout is not None
    said = b""
    try:
        with process.stdout as pipe:
            os.set_blocking(pipe.fileno(), False)
            while True:
                await trio.lowlevel.wait_readable(pipe.fileno())
                piece = os.read(pipe.fileno(), _PIECE_BYTES)
                if not piece:
                    break
                said += piece
        if DONE not in said.decode(errors="backslashreplace").splitlines():
            _LOG.error("what writes back the filesystems mounted from the live view ended early; not all was synced")
    finally:
        # Killed or not, it is not waited for: a filesystem that hangs does not let go of it.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0)
        _tell(said)


def _tell(said: bytes) -> None:
    for line in said.decode(errors="backslashreplace").splitlines():
        what, _, name = line.partition(" ")
        if line == DONE:
            continue
        if what == "synced":
            _LOG.info("%s, which is mounted from the live view, was synced", name)
        else:
            _LOG.error("a filesystem mounted from the live view could not be synced: %s", name)
