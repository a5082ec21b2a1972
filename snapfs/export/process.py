"""Who serves an export: a program of others, started so that it ends when we do, and in no other hands."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.export.address import Address
from snapfs.system.processes import die_with_parent

_READY_S: Final = 30.0
_LOOK_S: Final = 0.01
_END_S: Final = 10.0
# A socket is its owner's alone.
_UMASK: Final = 0o177
_PACKAGES: Final = {"nbdkit": "nbdkit and nbdkit-plugin-python", "qemu-nbd": "qemu-utils"}


class Server:
    """One that serves at `address`, until `ended`."""

    def __init__(self, name: str, process: subprocess.Popen[str], address: Address) -> None:
        self._name, self._process, self._address = name, process, address

    def await_ready(self) -> None:
        """SnapfsError: it ended instead, and why."""
        until = time.monotonic() + _READY_S
        while not self._address.answers():
            if self._process.poll() is not None:
                raise SnapfsError(f"{self._name} does not serve {self._address.uri}: {self.complaint()}.")
            if time.monotonic() > until:
                raise SnapfsError(f"{self._name} does not begin to serve {self._address.uri}; try it by hand.")
            time.sleep(_LOOK_S)

    def watch(self, check: Callable[[], None], every_s: float) -> None:
        """Return never: SnapfsError when it has ended, or of `check`, which is asked now and then."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(every_s)
                raise SnapfsError(f"{self._name} ended ({self.complaint()}); export again.")
            check()

    def complaint(self) -> str:
        """The last thing it said, after its end."""
        _, said = self._process.communicate(timeout=_END_S)
        lines = said.strip().splitlines()
        return lines[-1].rstrip(".") if lines else f"code {self._process.returncode}"


@contextlib.contextmanager
def serving(command: Sequence[str], address: Address, fds: Sequence[int]) -> Iterator[Server]:
    """`command`, with the descriptors; ended afterwards, and its socket gone."""
    name = command[0]
    if shutil.which(name) is None:
        raise SnapfsError(f"An export needs {name}, which is not installed; install {_PACKAGES[name]}.")
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A session of its own: Ctrl-C is for us, and we end it.
        start_new_session=True,
        pass_fds=fds,
        umask=_UMASK,
        preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
    )
    try:
        yield Server(name, process, address)
    finally:
        _end(process)
        if address.path is not None:
            address.path.unlink(missing_ok=True)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        # A client that does not read keeps it from ending.
        process.kill()
        process.communicate()
