"""One measured piece of work each: fio jobs, a loop of write + fsync, reading a whole snapshot, comparing it."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.image import Master, Range, data_extents, run

REST_SECONDS, REST_LIMIT_SECONDS = 5.0, 40.0


@dataclass(frozen=True)
class Job:
    """What fio is told. `length` bytes are moved within `where`; depth 0 means plain buffered system calls."""

    pattern: str
    request_bytes: int
    depth: int
    where: Range
    length: int


@dataclass(frozen=True)
class Moved:
    """What fio says of a job."""

    bytes_per_second: float
    iops: float


def run_fio(job: Job, path: Path) -> Moved:
    how = ["--ioengine=libaio", f"--iodepth={job.depth}", "--direct=1"]
    if job.depth == 0:
        how = ["--ioengine=psync", "--direct=0", "--end_fsync=1"]
    output = run(
        *("fio", "--name=row", f"--filename={path}", "--allow_file_create=0", "--output-format=json"),
        *(f"--rw={job.pattern}", f"--bs={job.request_bytes}", f"--offset={job.where.offset}"),
        *(f"--size={job.where.length}", f"--io_size={min(job.length, job.where.length)}", *how),
    )
    # fio may say something before its JSON.
    result = json.loads(output[output.index("{") :])["jobs"][0]
    side = result["read" if "read" in job.pattern else "write"]
    return Moved(side["bw_bytes"], side["iops"])


def resting(figure: Callable[[], int]) -> int:
    """`figure` once it has not changed for some seconds: what is left when everybody has finished."""
    deadline = time.monotonic() + REST_LIMIT_SECONDS
    last, changed = figure(), time.monotonic()
    while changed + REST_SECONDS > time.monotonic() < deadline:
        time.sleep(0.2)
        now = figure()
        if now != last:
            last, changed = now, time.monotonic()
    return last


def fsync_latencies_us(path: Path, where: Range, count: int) -> list[float]:
    """Times of `count` single writes with an fsync each, spread over `where`, sorted."""
    content = os.urandom(4096)
    step_bytes = where.length // count // 4096 * 4096
    if step_bytes == 0:
        raise ValueError(f"{where.length} bytes are too few for {count} different blocks")
    times = []
    fd = os.open(path, os.O_RDWR)
    try:
        for number in range(count):
            start_ns = time.perf_counter_ns()
            os.pwrite(fd, content, where.offset + number * step_bytes)
            os.fsync(fd)
            times.append((time.perf_counter_ns() - start_ns) / 1000)
    finally:
        os.close(fd)
    return sorted(times)


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def wrong_bytes(master: Master, snapshot: Path, request_bytes: int, *, direct: bool) -> int:
    """How many bytes of a snapshot are in requests that differ from the image at the cut.

    Compared is all that held data then and all the free space that rows write to; the rest is holes on both sides.
    Requests start at multiples of their size, which some peers need to answer rightly.
    """
    wrong = 0
    buffer = mmap.mmap(-1, request_bytes)
    fd = os.open(snapshot, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        with master.path.open("rb") as source:
            for extent in [*data_extents(source.fileno()), master.free]:
                first = extent.offset // request_bytes * request_bytes
                for offset in range(first, extent.offset + extent.length, request_bytes):
                    length = os.preadv(fd, [buffer], offset)
                    if buffer[:length] != os.pread(source.fileno(), request_bytes, offset):
                        wrong += max(length, 1)
    finally:
        os.close(fd)
        buffer.close()
    return wrong
