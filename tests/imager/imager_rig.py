"""Images with real files, the imager as a user runs it, and what a restored image must be."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.command_line import SNAPFS, TIMEOUT_S, Bench, Done, loop_device, mounted, run, snapfs, wait_until

__all__ = ["Bench", "Done", "loop_device", "mounted", "run", "snapfs", "wait_until"]

MIB = 1 << 20
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "ntfs": "ro"}


def make_ext4(path: Path, size_bytes: int, content: Path) -> None:
    """An ext4 with the files of `content`, as the real mkfs makes it."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.ext4", "-q", "-b", "4096", "-d", content, path)


def make_files(directory: Path, total_bytes: int, seed: int = 3) -> None:
    """Files of many sizes: random ones, compressible ones, one of zeros."""
    dice = random.Random(seed)
    directory.mkdir(exist_ok=True)
    number = written = 0
    while written < total_bytes:
        length = dice.choice((100, 5000, 70_000, 900_000, 3_000_000))
        data = dice.randbytes(length) if number % 2 else dice.randbytes(64) * (length // 64 + 1)
        (directory / f"file{number:04}").write_bytes(data)
        number, written = number + 1, written + len(data)
    (directory / "zeros").write_bytes(bytes(MIB))


def digests(directory: Path) -> dict[str, str]:
    """Content of every file below, by its name."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def files_of(image: Path, kind: str, point: Path, offset: int = 0) -> dict[str, str]:
    """The files of a filesystem in an image, read without changing it."""
    with loop_device(image, "--read-only", f"--offset={offset}") as device:
        driver = ["-t", "ntfs-3g"] if kind == "ntfs" else []
        with mounted(device, point, *driver, "-o", READ_ONLY[kind]):
            return digests(point)


def checked_qcow2(path: Path, raw: Path) -> None:
    """QEMU's own tools find a qcow2 whole, and equal to a raw image."""
    run("qemu-img", "check", "-q", path)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, raw)


class Running:
    """A `snapfs backup` or `restore` under way; its progress lines as they come."""

    def __init__(self, *words: str | Path) -> None:
        command = [os.fspath(SNAPFS), *map(os.fspath, words), "--progress", "json"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()

    def _collect(self) -> None:
        assert self._process.stderr is not None
        self.lines.extend(iter(self._process.stderr.readline, ""))

    @property
    def progress(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    @property
    def done_bytes(self) -> int:
        return max((progress["done_bytes"] for progress in self.progress), default=0)

    def kill_child(self, name: str) -> None:
        """SIGKILL to the one process of this name that it has started."""
        run("pkill", "--signal", "KILL", "--parent", str(self._process.pid), "--exact", name)

    def await_bytes(self, count: int) -> None:
        wait_until(lambda: self.done_bytes >= count or self._process.poll() is not None)
        assert self._process.poll() is None, self.lines

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It comes no further within this, however long that takes."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def interrupt(self) -> None:
        self.send(signal.SIGINT)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> Done:
        code = self._process.wait(TIMEOUT_S)
        self._reader.join()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        out = self._process.stdout.read()
        self._process.stdout.close()
        self._process.stderr.close()
        return Done(code, out, "".join(line for line in self.lines if not line.startswith("{")))

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self.wait()


@contextmanager
def running(*words: str | Path) -> Iterator[Running]:
    process = Running(*words)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def live_load(point: Path) -> Iterator[None]:
    """Somebody rewrites, adds and deletes files at `point` all the time."""
    stopped = threading.Event()
    dice = random.Random(5)

    def work() -> None:
        names = [path for path in sorted(point.rglob("file*")) if path.is_file()]
        number = 0
        while not stopped.is_set():
            path = dice.choice(names)
            with suppress(OSError), path.open("r+b") as file:
                file.write(dice.randbytes(path.stat().st_size))
                os.fsync(file.fileno())
            number += 1
            new = point / f"new{number % 8}"
            with suppress(OSError):
                new.unlink(missing_ok=True)
                new.write_bytes(dice.randbytes(200_000))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def overwrite(path: Path, offset: int, length: int) -> None:
    """Random bytes over a range of a file, durably."""
    fd = os.open(path, os.O_RDWR)
    try:
        for start in range(offset, offset + length, MIB):
            os.pwrite(fd, os.urandom(min(MIB, offset + length - start)), start)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_manifest(backup: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(backup.with_name(backup.name + ".json").read_text())
    return data


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@dataclass(frozen=True)
class Original:
    """An image and the files in it."""

    image: Path
    files: dict[str, str]
