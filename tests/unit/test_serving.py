"""What is served answers without any front: ranges, errors as an errno, and damage told of."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cow import BlockReleased, BufferFull, Damaged, SnapshotLost
from snapfs.serving import open_cuts, snapshot
from snapfs.serving.live import LiveImage
from snapfs.serving.permissions import Permissions
from snapfs.serving.served import MAX_REQUEST_BYTES, RequestError

IMAGE_BYTES = 10_000
HOLES = [(0, 4096), (8192, IMAGE_BYTES)]


class FakeEngine:
    """`waits`: nothing is answered at once; `error`: what everything fails with."""

    geometry = SimpleNamespace(image_bytes=IMAGE_BYTES, block_bytes=4096)

    def __init__(self, *, waits: bool = False, error: Exception | None = None) -> None:
        self.waits, self.error = waits, error
        self.written: list[tuple[int, bytes]] = []

    def _begin(self) -> bool:
        if self.error is not None:
            raise self.error
        return not self.waits

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        if self._begin():
            view[:] = b"n" * len(view)
            return True
        return False

    def read(self, offset: int, length: int) -> bytes:
        return b"w" * length

    def try_write(self, offset: int, data: bytes) -> bool:
        return self._begin() and not self.write(offset, data)

    def write(self, offset: int, data: Any) -> None:
        self.written.append((offset, bytes(data)))

    def try_sync(self) -> bool:
        return self._begin()

    def holes(self, offset: int, stop: int) -> Iterator[tuple[int, int]]:
        yield from ((start, end) for start, end in HOLES if start >= offset)


@pytest.fixture
def image_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT, 0o640)
    os.ftruncate(fd, IMAGE_BYTES)
    yield fd
    os.close(fd)


def live(engine: FakeEngine, fd: int) -> LiveImage:
    image: Any = SimpleNamespace(fd=fd)
    as_engine: Any = engine
    return LiveImage(as_engine, image, Permissions(fd))


@pytest.mark.parametrize(("waits", "letter"), [(False, b"n"), (True, b"w")])
def test_a_read_is_answered_now_or_by_a_thread_and_ends_with_the_image(
    image_fd: int, waits: bool, letter: bytes
) -> None:
    served = live(FakeEngine(waits=waits), image_fd)
    assert bytes(trio.run(served.read, 1, 9_000, 4096)) == letter * 1000
    assert trio.run(served.read, 1, IMAGE_BYTES, 4096) == b""


@pytest.mark.parametrize("waits", [False, True])
def test_a_write_past_the_end_is_cut_short_or_refused(image_fd: int, waits: bool) -> None:
    engine = FakeEngine(waits=waits)
    served = live(engine, image_fd)
    assert trio.run(served.write, 2, 9_000, b"x" * 4096) == 1000
    assert engine.written == [(9_000, b"x" * 1000)]
    with pytest.raises(RequestError) as failed:
        trio.run(served.write, 2, IMAGE_BYTES, b"x")
    assert failed.value.errno == errno.ENOSPC


def test_what_the_engine_raises_leaves_as_an_errno(image_fd: int) -> None:
    for error, code in (
        (BufferFull(errno.ENOSPC), errno.ENOSPC),
        (OSError(errno.EROFS, "read-only"), errno.EROFS),
        (OSError(errno.EIO, "bad"), errno.EIO),
    ):
        served = live(FakeEngine(error=error), image_fd)
        for request in ((served.read, 1, 0, 512), (served.write, 2, 0, b"x"), (served.fsync, 2, False)):
            with pytest.raises(RequestError) as failed:
                trio.run(*request)
            assert failed.value.errno == code


def test_only_an_error_of_the_disk_is_logged(image_fd: int, caplog: pytest.LogCaptureFixture) -> None:
    for code in (errno.ENOSPC, errno.EIO):
        with pytest.raises(RequestError):
            trio.run(live(FakeEngine(error=OSError(code, os.strerror(code))), image_fd).read, 1, 0, 512)
    assert [one.levelno for one in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize(("is_written", "hole", "data"), [(False, 0, 4096), (True, IMAGE_BYTES, 0)])
def test_as_long_as_somebody_may_write_all_of_the_live_view_is_data(
    image_fd: int, is_written: bool, hole: int, data: int
) -> None:
    """The front may keep back what he writes, and to wait for that would be to wait for answers of ours."""
    served = live(FakeEngine(), image_fd)
    served.open_for_writing = int(is_written)
    assert trio.run(served.lseek, 1, 0, os.SEEK_HOLE) == hole
    assert trio.run(served.lseek, 1, 0, os.SEEK_DATA) == data


class FakeReader:
    error: Exception | None = None
    is_free = False

    def __init__(self, store: Any, image: Any) -> None:
        self.store = store

    def reads_as_zeros(self, offset: int, length: int) -> bool:
        return self.is_free

    def try_read(self, view: memoryview, offset: int) -> bool:
        if self.error is not None:
            raise self.error
        view[:] = b"s" * len(view)
        return True

    def try_seek(self, offset: int, stop: int, *, for_hole: bool) -> tuple[bool, int | None]:
        return False, None

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class FakeStore:
    header: Any
    cut: Any
    open_segments: Any = field(default_factory=lambda: SimpleNamespace(close=lambda: None))


def store(generation: int) -> Any:
    facts = SimpleNamespace(generation=generation, name="", is_hidden=False)
    header = SimpleNamespace(
        image_bytes=IMAGE_BYTES,
        block_bytes=4096,
        cut=facts,
        shown=[facts],
        cut_of=lambda wanted: facts if wanted == generation else None,
    )
    cut = SimpleNamespace(generation=generation, let_go=lambda: None)
    cut.hold = lambda: cut
    return FakeStore(header, cut)


@pytest.fixture
def told() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def shown(image_fd: int, told: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> snapshot.SnapshotImage:
    monkeypatch.setattr(open_cuts, "SeekingReader", FakeReader)
    image: Any = SimpleNamespace(fd=image_fd)
    served = snapshot.SnapshotImage(
        store(7), image, Permissions(image_fd), lambda generation, what: told.append((generation, what))
    )
    served.begin_reading(7)
    return served


def test_a_handle_is_of_the_cut_that_was_shown(shown: snapshot.SnapshotImage) -> None:
    assert bytes(trio.run(shown.read, 7, 9_990, 4096)) == b"s" * 10
    shown.show(store(8))
    with pytest.raises(RequestError) as failed:
        trio.run(shown.read, 7, 0, 512)
    assert failed.value.errno == errno.ESTALE
    shown.begin_reading(8)
    assert bytes(trio.run(shown.read, 8, 0, 3)) == b"sss"


def test_free_blocks_read_as_zeros(shown: snapshot.SnapshotImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeReader, "is_free", True)
    assert bytes(trio.run(shown.read, 7, 0, MAX_REQUEST_BYTES)) == bytes(IMAGE_BYTES)


def test_only_damage_is_told_of(
    shown: snapshot.SnapshotImage, told: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, code in (
        (Damaged("a record is damaged"), errno.EIO),
        (BlockReleased("it was released"), errno.ENODATA),
        (SnapshotLost("the side buffer was full"), errno.EIO),
    ):
        monkeypatch.setattr(FakeReader, "error", error)
        with pytest.raises(RequestError) as failed:
            trio.run(shown.read, 7, 0, 512)
        assert failed.value.errno == code
    assert told == [(7, "a record is damaged")]


def test_uncounted_reads_are_not_reported(shown: snapshot.SnapshotImage) -> None:
    read: list[tuple[int, int]] = []
    closed: list[bool] = []
    shown.on_read = lambda offset, length: read.append((offset, length))
    shown.on_close = lambda: closed.append(True)
    for handle in (7, 7 | snapshot.UNCOUNTED):
        trio.run(shown.read, handle, 0, 512)
        trio.run(shown.release, handle)
    assert read == [(0, 512)]
    assert closed == [True]


def test_whoever_looks_for_holes_keeps_no_read_waiting(
    shown: snapshot.SnapshotImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_read = threading.Event()
    monkeypatch.setattr(FakeReader, "try_read", lambda reader, view, offset: False)
    monkeypatch.setattr(open_cuts.OpenCut, "seek", lambda shown, offset, stop, for_hole: is_read.wait(20) and 7)
    monkeypatch.setattr(open_cuts.OpenCut, "read", lambda shown, offset, length: memoryview(bytes(length)))

    async def read_beside() -> None:
        shown.begin_reading(7)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(shown.lseek, 7, 0, os.SEEK_DATA)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                assert await shown.read(7, 0, 10) == bytes(10)
            is_read.set()

    trio.run(read_beside)
