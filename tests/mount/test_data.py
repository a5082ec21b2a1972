"""The snapshot stays what it was, and live reads back what was written, whoever writes however."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ground import Ground
from mounted import Mounted, run, wait_until
from sectors import SECTOR, WAYS, ZONE, ZONE_SECTORS, Versions, View, content, opened, rewrite, sectors, versions_in

MIB = 1 << 20


class Verifier:
    """Reads random parts of the snapshot by all ways, over and over, in a thread of its own."""

    def __init__(self, path: Path, old: bytes, seed: int) -> None:
        self._view, self._old = View(path), old
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self.rounds = 0

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.look()
        except BaseException as error:
            self._failure = error

    def look(self) -> None:
        rng = self._random
        if rng.random() < 0.3:
            self._view.forget()
        length = rng.choice([1, 511, 512, 4096, 5000, 65536, 300_000, MIB])
        offset = rng.randrange(max(1, len(self._old) - length // 2))
        expected = self._old[offset : offset + length]
        way = rng.choice(WAYS)
        assert self._view.read(way, offset, len(expected)) == expected, f"{way} read of {length} at {offset}"
        self.rounds += 1

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._view.close()
        if self._failure is not None:
            raise self._failure


@contextmanager
def verified(instance: Mounted, old: bytes, count: int = 2) -> Iterator[None]:
    """Within this the snapshot is read all the time; fails when it was ever wrong."""
    verifiers = [Verifier(instance.snap_file, old, seed) for seed in range(count)]
    for verifier in verifiers:
        verifier.start()
    try:
        yield
    finally:
        for verifier in verifiers:
            verifier.stop()
    assert all(verifier.rounds > 3 for verifier in verifiers)


def check_snapshot(instance: Mounted, old: bytes) -> None:
    """Every byte of the snapshot, by all ways, asked of the server."""
    with opened(instance.snap_file) as snap:
        for way in WAYS:
            snap.forget()
            step = 3 * MIB + 100 if way == "direct" else len(old)
            for offset in range(0, len(old), step):
                part = old[offset : offset + step]
                assert snap.read(way, offset, len(part)) == part, f"{way} from {offset}"


def check_live(data: bytes, versions: Versions) -> None:
    """`data` (an image or a view) holds each whole zone's sectors in these versions."""
    whole = len(data) // ZONE * ZONE
    assert (versions_in(data[:whole], 0) == versions[: whole // SECTOR]).all()


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
@pytest.mark.parametrize("block_size", ["512", "4K", "1M"])
def test_snapshot_holds_while_threads_rewrite(ground: Ground, cache: str, block_size: str) -> None:
    old = content(12 * MIB + 1234)
    image = ground.image(old)
    instance = ground.mounted(image, "--cache", cache, "--block-size", block_size)
    with verified(instance, old), opened(instance.live_file, writable=True) as live:
        versions = rewrite(live, threads=4, steps=500, seed=1, pauses=4)
    check_live(instance.live_file.read_bytes(), versions)
    check_snapshot(instance, old)
    instance.umount()
    check_live(image.read_bytes(), versions)
    assert image.read_bytes()[len(old) // ZONE * ZONE :] == old[len(old) // ZONE * ZONE :]


def test_snapshot_holds_while_the_ring_runs_over(ground: Ground) -> None:
    """More than the ring holds: writes and compaction at the same time, and everything is overwritten."""
    old = content(150 * MIB)
    image = ground.image(old)
    instance = ground.mounted(image)
    count = 4 * MIB // SECTOR
    with verified(instance, old), opened(instance.live_file, writable=True) as live:
        for first in range(0, len(old) // SECTOR, count):
            numbers = np.arange(first, min(first + count, len(old) // SECTOR), dtype=np.uint64)
            live.write("buffered", first * SECTOR, sectors(numbers, np.full(len(numbers), 1, np.uint64)))
        live.sync()
    assert instance.status()["snapshot"]["owed_blocks"] == 0
    check_snapshot(instance, old)
    wait_until(lambda: instance.status()["buffer"]["staged_bytes"] == 0)
    check_snapshot(instance, old)
    instance.umount()
    assert image.read_bytes() == content(len(old), version=1)


# --- any offset and length -------------------------------------------------------------------------------------

LENGTHS = [100, 512, 4096, 4097, 65536, 8 * 4096 + 1, MIB - 1, 3 * MIB + 777]


@pytest.mark.parametrize("length", LENGTHS)
def test_any_offset_and_length(ground: Ground, length: int) -> None:
    """First, last and straddling blocks: random writes against an array of bytes."""
    old = random.Random(length).randbytes(length)
    image = ground.image(old)
    instance = ground.mounted(image, "--block-size", "4K")
    model = bytearray(old)
    rng = random.Random(length)
    edges = [0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, length - 1, length - 511, length - 4096]
    with opened(instance.live_file, writable=True) as live, opened(instance.snap_file) as snap:
        for turn in range(120):
            offset = rng.choice([edge for edge in edges if 0 <= edge < length] + [rng.randrange(length)])
            data = rng.randbytes(min(rng.choice([1, 2, 511, 512, 4096, 4097, 9000, 200_000]), length - offset))
            live.write(WAYS[turn % 3], offset, data)
            model[offset : offset + len(data)] = data
            first = rng.randrange(length)
            last = min(length, first + rng.choice([1, 600, 4096, 100_000]))
            way = rng.choice(WAYS)
            assert live.read(way, first, last - first) == model[first:last]
            snap.forget()
            assert snap.read(way, first, last - first) == old[first:last]
    check_snapshot(instance, old)
    instance.umount()
    assert image.read_bytes() == bytes(model)


@pytest.mark.parametrize("block_size", [512, 1 << 20])
def test_a_write_preserves_only_its_blocks(ground: Ground, block_size: int) -> None:
    instance = ground.mounted(ground.image(os.urandom(4 * MIB + 5)), "--block-size", str(block_size))
    fd = os.open(instance.live_file, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    os.pwrite(fd, memoryview(buffer)[:512], 2 * MIB)
    assert instance.status()["snapshot"]["preserved_blocks"] == 1
    # Straddles a block's end.
    os.pwrite(fd, memoryview(buffer)[:512], MIB - 256)
    assert instance.status()["snapshot"]["preserved_blocks"] == 3
    os.close(fd)


# --- loop mounts -----------------------------------------------------------------------------------------------


def ext4_image(ground: Ground, size: int = 64 * MIB) -> Path:
    image = ground.image(size)
    run("mkfs.ext4", "-q", "-F", image)
    return image


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("cache", "loop_options", "block_size"),
    [
        ("writeback", (), "4K"),
        ("writeback", ("--direct-io=on",), "4K"),
        ("writethrough", (), "1M"),
        ("writethrough", ("--direct-io=on",), "512"),
    ],
)
def test_loop_mounted_filesystem(ground: Ground, cache: str, loop_options: tuple[str, ...], block_size: str) -> None:
    image = ext4_image(ground)
    rng = random.Random(7)
    with_old = ground.mount(image, "-o", "loop")
    for number in range(20):
        (with_old / f"file{number}").write_bytes(rng.randbytes(rng.randrange(300_000)))
    old_tree = tree(with_old)
    run("umount", with_old)
    old = image.read_bytes()

    instance = ground.mounted(image, "--cache", cache, "--block-size", block_size)
    device = ground.loop(instance.live_file, *loop_options)
    live_tree = ground.mount(device, name="live-tree")
    with verified(instance, old, count=1):
        for number in range(0, 20, 2):
            (live_tree / f"file{number}").unlink()
        run("sync", "-f", live_tree)
        for number in range(40):
            (live_tree / f"new{number}").write_bytes(rng.randbytes(rng.randrange(300_000)))
        run("sync", "-f", live_tree)
    snap_device = ground.loop(instance.snap_file, "--read-only", *loop_options)
    snap_tree = ground.mount(snap_device, "-o", "ro,noload", name="snap-tree")
    assert tree(snap_tree) == old_tree
    new_tree = tree(live_tree)
    for point in (snap_tree, live_tree):
        run("umount", point)
    for one in (snap_device, device):
        ground.drop_loop(one)
    check_snapshot(instance, old)
    run("e2fsck", "-fn", instance.snap_file)
    run("e2fsck", "-fn", instance.live_file)
    instance.umount()
    run("e2fsck", "-fn", image)
    assert tree(ground.mount(image, "-o", "loop,ro")) == new_tree


# --- readers that are no threads of ours -----------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "dd": lambda path: ["dd", f"if={path}", "bs=1M", "status=none"],
    "dd, direct": lambda path: ["dd", f"if={path}", "bs=1M", "iflag=direct", "status=none"],
    "dd, small": lambda path: ["dd", f"if={path}", "bs=1000", "status=none"],
    "cat": lambda path: ["cat", str(path)],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_copying_the_snapshot_while_it_is_preserved(ground: Ground, command: str) -> None:
    old = content(16 * MIB + 700)
    instance = ground.mounted(ground.image(old))
    with opened(instance.live_file, writable=True) as live:
        writer = threading.Thread(target=rewrite, args=(live, 2, 200, 3))
        writer.start()
        try:
            done = subprocess.run(COMMANDS[command](instance.snap_file), capture_output=True, timeout=60, check=True)
        finally:
            writer.join()
    assert done.stdout == old


def test_zones_are_whole_pages() -> None:
    assert ZONE % mmap.PAGESIZE == 0
    assert ZONE_SECTORS * SECTOR == ZONE


def test_a_torn_sector_is_told() -> None:
    good, other = content(4 * SECTOR), content(4 * SECTOR, version=1)
    assert (versions_in(good, 0) == 0).all()
    for torn in (good[:700] + other[700:], good[SECTOR:] + good[:SECTOR], good[:100] + b"x" + good[101:]):
        with pytest.raises(AssertionError):
            versions_in(torn, 0)
