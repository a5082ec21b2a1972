"""Sectors that say which they are: what one holds follows from its number and its version, all 512 bytes.

Word 0 is the sector's number, word 1 its version; the others are drawn from both. So whatever is read can be
judged alone: a sector torn between two versions, or found in another's place, is told from every good one.

Run as a program, this rewrites sectors by several threads until it is killed or a write fails, and says which
writes are acknowledged.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECTOR = 512
_WORDS = SECTOR // 8
# Whole pages, so that no two threads meet in one page: the kernel keeps O_DIRECT and mmap apart only by pages.
ZONE = 16384
ZONE_SECTORS = ZONE // SECTOR
WAYS = ("buffered", "direct", "mapped")

Versions = NDArray[np.uint64]


def sectors(numbers: NDArray[np.uint64], versions: Versions) -> bytes:
    """The bytes of these sectors."""
    words = np.empty((len(numbers), _WORDS), np.uint64)
    words[:, 0], words[:, 1] = numbers, versions
    seed = numbers * np.uint64(0x9E3779B97F4A7C15) + versions * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(1)
    words[:, 2:] = seed[:, None] * (np.arange(2, _WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1))
    return words.tobytes()


def content(length: int, version: int = 0) -> bytes:
    """An image of `length` bytes, all sectors of one version; the last one may be cut off."""
    count = -(-length // SECTOR)
    return sectors(np.arange(count, dtype=np.uint64), np.full(count, version, np.uint64))[:length]


def versions_in(data: bytes, first: int) -> Versions:
    """The version of each sector of `data`; AssertionError when one is torn, misplaced or anything else."""
    words = np.frombuffer(data, np.uint64).reshape(-1, _WORDS)
    numbers = np.arange(first, first + len(words), dtype=np.uint64)
    versions = words[:, 1].copy()
    if sectors(numbers, versions) != data:
        expected = np.frombuffer(sectors(numbers, versions), np.uint64).reshape(-1, _WORDS)
        wrong = int(np.flatnonzero((words != expected).any(axis=1))[0])
        raise AssertionError(f"sector {first + wrong} is torn: {words[wrong, :4]}")
    return versions


class View:
    """One file, read and written by three ways."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._flags = os.O_RDWR if writable else os.O_RDONLY
        self.length = os.stat(path).st_size
        self._buffered = os.open(path, self._flags)
        self._direct = os.open(path, self._flags | os.O_DIRECT)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._mapping = mmap.mmap(self._buffered, self.length, mmap.MAP_SHARED, access)
        self._local = threading.local()

    def read(self, way: str, offset: int, length: int) -> bytes:
        if way == "mapped":
            return self._mapping[offset : offset + length]
        if way == "buffered":
            return os.pread(self._buffered, length, offset)
        buffer = self._aligned(length)
        done = os.preadv(self._direct, [buffer], offset)
        return bytes(buffer[:done])

    def write(self, way: str, offset: int, data: bytes) -> None:
        if way == "mapped":
            self._mapping[offset : offset + len(data)] = data
        elif way == "buffered":
            assert os.pwrite(self._buffered, data, offset) == len(data)
        else:
            buffer = self._aligned(len(data))
            buffer[:] = data
            assert os.pwrite(self._direct, buffer, offset) == len(data)

    def _aligned(self, length: int) -> memoryview:
        if not hasattr(self._local, "memory"):
            self._local.memory = mmap.mmap(-1, 4 << 20)
        return memoryview(self._local.memory)[:length]

    def forget(self) -> None:
        """Have the next reads ask the server: what the kernel holds is let go of."""
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        os.fsync(self._buffered)

    def close(self) -> None:
        self._mapping.close()
        os.close(self._buffered)
        os.close(self._direct)


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[View]:
    view = View(path, writable=writable)
    try:
        yield view
    finally:
        view.close()


class Writer:
    """One thread's zones; knows what each of its sectors must hold."""

    def __init__(self, view: View, index: int, threads: int, seed: int, ways: tuple[str, ...] = WAYS) -> None:
        self._view, self._ways = view, ways
        self._random = random.Random(f"{seed}/{index}")
        self.zones = range(index, view.length // ZONE, threads)
        self.versions = np.zeros(view.length // SECTOR, np.uint64)
        self._next = 1

    def step(self) -> None:
        """Rewrite some neighbouring sectors of one zone; now and then look at what was written before."""
        rng = self._random
        first = rng.choice(self.zones) * ZONE_SECTORS + rng.randrange(ZONE_SECTORS)
        count = rng.randint(1, ZONE_SECTORS - first % ZONE_SECTORS)
        version, self._next = self._next, self._next + 1
        numbers = np.arange(first, first + count, dtype=np.uint64)
        data = sectors(numbers, np.full(count, version, np.uint64))
        self._view.write(rng.choice(self._ways), first * SECTOR, data)
        self.versions[first : first + count] = version
        if rng.random() < 0.3:
            self.look(rng.choice(self.zones), rng.choice(self._ways))
        if rng.random() < 0.01:
            self._view.sync()

    def look(self, zone: int, way: str) -> None:
        first = zone * ZONE_SECTORS
        found = versions_in(self._view.read(way, zone * ZONE, ZONE), first)
        expected = self.versions[first : first + ZONE_SECTORS]
        assert (found == expected).all(), f"zone {zone} read {way}: {found} instead of {expected}"


def rewrite(view: View, threads: int, steps: int, seed: int, pauses: int = 0) -> Versions:
    """Rewrite by several threads at once; the versions that all sectors of whole zones have afterwards."""
    writers = [Writer(view, index, threads, seed) for index in range(threads)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def work(writer: Writer) -> None:
        try:
            for part in range(pauses + 1):
                for _ in range(steps // (pauses + 1)):
                    writer.step()
                if part < pauses:
                    # All stand still for an instant: that is when the side buffer is compacted.
                    barrier.wait(30)
                    threading.Event().wait(0.1)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    running = [threading.Thread(target=work, args=(writer,)) for writer in writers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
    return np.maximum.reduce([writer.versions for writer in writers])


def acknowledge(path: Path, way: str, seed: int, threads: int, version: int) -> None:
    """Rewrite until killed, and say on stdout, a line of JSON each, what is about to be written and what is safe.

    Versions grow from `version` on.

    `way`: "direct" (O_DIRECT), "synced" (buffered, then fsync) or "returned" (buffered, nothing else).
    """
    view = View(path, writable=True)
    lock = threading.Lock()

    def say(**fact: Any) -> None:
        with lock:
            sys.stdout.write(json.dumps(fact) + "\n")
            sys.stdout.flush()

    def work(index: int, version: int) -> None:
        rng = random.Random(f"{seed}/{index}")
        zones = range(index, view.length // ZONE, threads)
        while True:
            version += 1
            first = rng.choice(zones) * ZONE_SECTORS + rng.randrange(ZONE_SECTORS)
            count = rng.randint(1, ZONE_SECTORS - first % ZONE_SECTORS)
            data = sectors(np.arange(first, first + count, dtype=np.uint64), np.full(count, version, np.uint64))
            say(first=first, count=count, version=version, safe=False)
            try:
                view.write("direct" if way == "direct" else "buffered", first * SECTOR, data)
                if way == "synced":
                    view.sync()
            except OSError:
                return
            say(first=first, count=count, version=version, safe=True)

    for index in range(threads):
        threading.Thread(target=work, args=(index, version)).start()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("way", choices=["direct", "synced", "returned"])
    parser.add_argument("seed", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("version", type=int)
    arguments = parser.parse_args()
    acknowledge(arguments.path, arguments.way, arguments.seed, arguments.threads, arguments.version)


if __name__ == "__main__":
    main()
