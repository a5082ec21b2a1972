"""qcow2, through QEMU's own tools: `qemu-img` makes the file, `qemu-nbd` reads and writes it.

`qemu-nbd` ends by itself when the connection does, also when we are killed, and leaves a whole qcow2 behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from snapfs.errors import SnapfsError
from snapfs.imager.extents import CELL_BYTES
from snapfs.imager.nbd import NbdClient
from snapfs.imager.sparse import data_runs
from snapfs.imager.target import vanished, write_errors

_READY_S: Final = 30.0
_END_S: Final = 600.0
_LOOK_S: Final = 0.005
_SECTOR_BYTES: Final = 512
_MAX_REQUEST_BYTES: Final = 2 << 20


class Export:
    """A qcow2 file behind a `qemu-nbd` of our own."""

    def __init__(self, path: Path, *, compress: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._directory = Path(tempfile.mkdtemp(prefix="snapfs-nbd-"))
        self._process: subprocess.Popen[str] | None = None
        try:
            socket_path = self._directory / "socket"
            self._process = _start(path, socket_path, compress, read_only)
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
            except (FileNotFoundError, ConnectionRefusedError):
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
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._process is None:
            return 0
        if kill:
            self._process.kill()
        self._process.communicate(timeout=_END_S)
        return self._process.returncode


class Qcow2Target:
    """A qcow2 file as the place of a backup; with `keep` the one that is already there."""

    is_durable = True

    def __init__(self, path: Path, size_bytes: int, *, compress: bool, keep: bool, way_out: str) -> None:
        self.path, self.name, self._way_out = path, str(path), way_out
        if not keep:
            _create(path, size_bytes)
        self._export = Export(path, compress=compress)
        self._client = self._export.client
        self._inode = os.stat(path).st_ino
        self._is_whole = True

    def write(self, view: memoryview, offset: int) -> None:
        with self._errors():
            for start, stop in data_runs(view):
                self._client.write(view[start:stop], offset + start)

    def write_zeros(self, offset: int, length: int) -> None:
        """A new qcow2 is zeros already."""

    def sync(self) -> None:
        with self._errors():
            self._client.flush()
            if os.stat(self.path).st_ino != self._inode:
                raise vanished(self.name)

    def finish(self) -> None:
        """A qcow2 has its size from the beginning."""

    def close(self) -> None:
        self._export.close(cleanly=self._is_whole)

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            with write_errors(self.name, self._way_out):
                yield
        except SnapfsError:
            self._is_whole = False
            raise


class Qcow2Reader:
    """A qcow2 backup, read."""

    def __init__(self, path: Path) -> None:
        self._export = Export(path, read_only=True)
        self.size_bytes = self._export.client.size_bytes

    def read_into(self, view: memoryview, offset: int) -> None:
        self._export.client.read_into(view, offset)

    def close(self) -> None:
        with contextlib.suppress(SnapfsError):
            self._export.close()


def _create(path: Path, size_bytes: int) -> None:
    rounded = -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
    _check_tool("qemu-img")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", _plain(path), str(rounded)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_END_S, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SnapfsError(f"{path} cannot be made: {said[-1] if said else 'qemu-img gives no reason'}.", path=path)


def _start(path: Path, socket_path: Path, compress: bool, read_only: bool) -> subprocess.Popen[str]:
    _check_tool("qemu-nbd")
    direct = {"direct": _takes_direct(path)}
    image: dict[str, Any] = {
        "driver": "qcow2",
        "cache": direct,
        "file": {"driver": "file", "filename": str(path.absolute()), "cache": direct},
    }
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
        start_new_session=True,
    )


def _takes_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _plain(path: Path) -> str:
    """A name that qemu-img takes for a file, whatever is in it."""
    return f"{path.absolute()}"


def _check_tool(name: str) -> None:
    if shutil.which(name) is None:
        raise SnapfsError(f"qcow2 needs {name}, which is not installed; install qemu-utils, or use --format raw.")
