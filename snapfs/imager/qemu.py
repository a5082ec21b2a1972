"""QEMU's tools at work on qcow2 files: `qemu-nbd` reads and writes them, `qemu-img` makes and checks them.

`qemu-nbd` ends by itself when the connection does, also when we are killed, and leaves a whole qcow2 behind.
All get the open file, not a name: nothing in a name can be taken for a protocol or an option, and nobody can put
another file there. Nor may the file send them to a third one (see `qcow2_header`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import CELL_BYTES
from snapfs.imager.nbd import NbdClient
from snapfs.imager.qcow2_header import check_header
from snapfs.system.descriptors import path_of
from snapfs.system.processes import die_with_parent
from snapfs.system.scratch import make_scratch, remove_scratch

_READY_S: Final = 30.0
_END_S: Final = 600.0
_LOOK_S: Final = 0.005
# How `qemu-img check` ends when clusters are used by nothing, and that is all.
_ONLY_LEAKS: Final = 3
_MAX_REQUEST_BYTES: Final = 2 << 20


@dataclass(frozen=True)
class Link:
    """A qcow2 file, open as `fd`, that is called `path` and says that `backing` is below it."""

    fd: int
    path: Path
    backing: str | None = None

    def check(self) -> None:
        """BackupDamagedError when it asks for anything else."""
        check_header(self.fd, self.path, self.named)

    @property
    def named(self) -> str | None:
        """`backing` as the header has it: a name in the same directory, also with a colon in it."""
        return f"./{self.backing}" if self.backing is not None and ":" in self.backing else self.backing


class Export:
    """Qcow2 files behind a `qemu-nbd` of our own: the first is what is read and written, each other one is below the
    one before it, whatever their names say. Below the last there is nothing."""

    def __init__(self, *links: Link, compress: bool = False, read_only: bool = False) -> None:
        for link in links:
            link.check()
        self.path = links[0].path
        self._directory = make_scratch()
        self._process: subprocess.Popen[str] | None = None
        try:
            socket_path = self._directory / "socket"
            self._process = _start(links, socket_path, compress, read_only)
            # A request a cluster, so that clusters are compressed side by side.
            self.client = self._connect(socket_path, CELL_BYTES if compress else _MAX_REQUEST_BYTES)
        except BaseException:
            self._end(kill=True)
            raise

    def _connect(self, socket_path: Path, write_bytes: int) -> NbdClient:
        assert self._process is not None
        until = time.monotonic() + _READY_S
        while True:
            try:
                return NbdClient(str(socket_path), write_bytes)
            except (FileNotFoundError, ConnectionError):
                if self._process.poll() is not None:
                    raise SnapfsError(f"{self.path}: {self.complaint()}.", path=self.path) from None
                if time.monotonic() > until:
                    raise SnapfsError(f"qemu-nbd does not begin to serve {self.path}; try it by hand.") from None
            time.sleep(_LOOK_S)

    def complaint(self) -> str:
        """The last thing that qemu-nbd said, after it has ended."""
        assert self._process is not None
        _, said = self._process.communicate(timeout=_END_S)
        lines = said.strip().splitlines()
        return lines[-1].removeprefix("qemu-nbd: ").rstrip(".") if lines else "qemu-nbd ended without a word"

    @contextlib.contextmanager
    def noticing_its_end(self, way_out: str) -> Iterator[None]:
        """A connection that breaks means that qemu-nbd has ended; say so, and why."""
        try:
            yield
        except ConnectionError as error:
            raise SnapfsError(
                f"The qemu-nbd of {self.path} ended half-way ({self.complaint()}); {way_out}.", path=self.path
            ) from error

    def close(self, *, cleanly: bool = True) -> None:
        """SnapfsError when qemu-nbd says that the file is not whole."""
        try:
            with contextlib.suppress(OSError):
                self.client.close(cleanly=cleanly)
        finally:
            code = self._end(kill=False)
        if cleanly and code:
            raise SnapfsError(f"qemu-nbd ended with code {code} when it closed {self.path}; begin again.")

    def _end(self, *, kill: bool) -> int:
        remove_scratch(self._directory)
        if self._process is None:
            return 0
        if kill:
            self._process.kill()
        self._process.communicate(timeout=_END_S)
        return self._process.returncode


def create(link: Link, size_bytes: int) -> None:
    """Make it a qcow2 that holds nothing yet, and says what is below it, which is not looked for."""
    below = [] if link.named is None else ["-u", "-b", link.named, "-F", "qcow2"]
    _run_qemu_img(link, "create", "-q", "-f", "qcow2", *below, str(path_of(link.fd)), str(size_bytes))


def grow(link: Link, size_bytes: int) -> None:
    """Its image, which is no longer than that, becomes as long, with zeros at the end."""
    _run_qemu_img(link, "resize", "-q", _alone(link), str(size_bytes))


def shorten(link: Link, size_bytes: int) -> None:
    """Its image becomes as long as that, and loses what is behind."""
    _run_qemu_img(link, "resize", "-q", "--shrink", _alone(link), str(size_bytes))


def check_structure(link: Link) -> None:
    """BackupDamagedError when QEMU finds errors in what the file says about itself; clusters that are lost to nobody
    are none."""
    link.check()
    done = _failed_qemu_img(link, "check", "-q", _alone(link))
    if done and done.returncode != _ONLY_LEAKS:
        said = (done.stdout + done.stderr).strip().splitlines()
        reason = said[0].removeprefix("qemu-img: ").rstrip(".") if said else "qemu-img gives no reason"
        raise BackupDamagedError(f"{link.path} is damaged ({reason}); take another copy.", path=link.path)


def _run_qemu_img(link: Link, *words: str) -> None:
    if done := _failed_qemu_img(link, *words):
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("qemu-img: ").rstrip(".") if said else "qemu-img gives no reason"
        raise SnapfsError(f"{link.path} cannot be made: {reason}; name another place.", path=link.path)


def _failed_qemu_img(link: Link, *words: str) -> subprocess.CompletedProcess[str] | None:
    _check_tool("qemu-img")
    done = subprocess.run(
        ["qemu-img", *words],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_END_S,
        check=False,
        pass_fds=(link.fd,),
    )
    return done if done.returncode else None


def _alone(link: Link) -> str:
    """Its own content and nothing below it, as a name for QEMU's tools."""
    return "json:" + json.dumps(_node(link, {"direct": False}, None))


def _node(link: Link, cache: dict[str, bool], backing: dict[str, Any] | None) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(path_of(link.fd)), "cache": cache}
    return {"driver": "qcow2", "cache": cache, "backing": backing, "file": file}


def chain_node(links: Sequence[Link], cache: dict[str, bool]) -> dict[str, Any]:
    """The image that the links show, as in `Export`, as a node of QEMU's."""
    node = _node(links[-1], cache, None)
    for link in reversed(links[:-1]):
        node = _node(link, cache, node)
    return node


def _start(links: Sequence[Link], socket_path: Path, compress: bool, read_only: bool) -> subprocess.Popen[str]:
    _check_tool("qemu-nbd")
    direct = {"direct": _takes_direct(links[0].fd)}
    image = chain_node(links, direct)
    if compress:
        image = {"driver": "compress", "cache": direct, "file": image}
    command = [
        "qemu-nbd",
        f"--socket={socket_path}",
        "--discard=unmap",
        f"--cache={'none' if direct['direct'] else 'writeback'}",
    ]
    command += ["--read-only"] if read_only else []
    # A session of its own: Ctrl-C is for us, and we end it properly.
    return subprocess.Popen(
        [*command, "json:" + json.dumps(image)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=tuple(link.fd for link in links),
        # Without us nobody connects to it, and it would wait for ever.
        preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
    )


def _takes_direct(fd: int) -> bool:
    try:
        os.close(os.open(str(path_of(fd)), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _check_tool(name: str) -> None:
    if shutil.which(name) is None:
        raise SnapfsError(f"qcow2 needs {name}, which is not installed; install qemu-utils, or use --format raw.")
