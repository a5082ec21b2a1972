"""Names of chunks, folders of them, and an image put together again: what is missing is found out before."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from snapfs.commands.join import find_chunks, join
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError, UsageError
from snapfs.options import MountOptions, check_name
from snapfs.serving.chunk_names import ChunkNames, parse_chunk_name
from snapfs.serving.chunks import Chunks
from snapfs.serving.served import RequestError

MIB = 1 << 20
IMAGE = os.urandom(2 * MIB) + bytes(MIB) + os.urandom(MIB // 2)


def test_names_sort_and_tell_the_place() -> None:
    names = ChunkNames(1 << 40, 4 * MIB)
    assert (names.count, names.name(0), names.name(names.count - 2)) == (262144, "0000000M", "1048568M")
    assert names.name(names.count - 1) == "1048572M-1099511627776.end"
    some = [names.name(number) for number in range(0, names.count, 997)]
    assert sorted(some) == some


@pytest.mark.parametrize("chunk_bytes", [MIB, 4 * MIB, 1 << 30])
@pytest.mark.parametrize("image_bytes", [1, MIB, MIB + 1, 4 * MIB, 10 * MIB + 5])
def test_a_name_and_a_size_are_the_same_bytes_whatever_the_size_of_chunks(image_bytes: int, chunk_bytes: int) -> None:
    names, at = ChunkNames(image_bytes, chunk_bytes), 0
    for number in range(names.count):
        offset, length = names.extent(number)
        parsed = parse_chunk_name(names.name(number))
        assert (offset, names.number(names.name(number)), names.at_place(names.place(number))) == (at, number, number)
        assert parsed == (at, image_bytes if number == names.count - 1 else None)
        at += length
    assert at == image_bytes


@pytest.mark.parametrize("name", ["", "1M", "02M", "00M.end", "00", "x", "00M-99.end", "08M", "٠٠M"])
def test_what_is_no_name_of_a_chunk(name: str) -> None:
    assert ChunkNames(10 * MIB, 4 * MIB).number(name) is None


@pytest.mark.parametrize("size", [0, 1, MIB - 1, 3 * MIB, 2 << 30, -MIB])
def test_a_chunk_has_a_power_of_two(size: int) -> None:
    with pytest.raises(UsageError, match="power of two from 1M to 1G"):
        MountOptions(Path("image"), Path("live"), Path("snap"), chunk_bytes=size)


def test_no_snapshot_is_called_newest() -> None:
    with pytest.raises(UsageError, match="whichever is"):
        check_name("newest")


# --- folders -------------------------------------------------------------------------------------------------


class FakeImage:
    """Snapshots by name, and no table of times until one is `known`."""

    failure = RequestError
    image_bytes = 10 * MIB

    def __init__(self) -> None:
        self.newest = SimpleNamespace(generation=3)
        self.names = {"mon": 2}
        self.known: set[int] = set()

    def part_times(self, generation: int) -> Any:
        if generation not in self.known:
            raise FileNotFoundError
        return SimpleNamespace(is_valid=True, latest_ns=7, close=lambda: None)

    def begin_reading(self, generation: int) -> None:
        pass

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return b"%d" % offset


@pytest.fixture
def image() -> FakeImage:
    return FakeImage()


@pytest.fixture
def chunks(image: FakeImage) -> Chunks:
    served: Any = image
    return Chunks(served, 4 * MIB)


def test_a_folder_is_waited_for_while_its_times_are_not_known(
    image: FakeImage, chunks: Chunks, autojump_clock: trio.testing.MockClock
) -> None:
    async def look() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(know)
            return await chunks.enter("newest")

    async def know() -> None:
        await trio.sleep(30)
        image.known.add(3)

    assert trio.run(look, clock=autojump_clock) == 3


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.mark.parametrize(("folder", "code"), [("newest", errno.EAGAIN), ("mon", errno.EAGAIN), ("tue", errno.ENOENT)])
def test_what_is_no_folder_and_what_is_none_yet(
    chunks: Chunks, autojump_clock: trio.testing.MockClock, folder: str, code: int
) -> None:
    with pytest.raises(RequestError) as failed:
        trio.run(chunks.enter, folder, clock=autojump_clock)
    assert failed.value.errno == code


def test_what_is_open_of_a_folder_that_shows_another_snapshot_is_stale(image: FakeImage, chunks: Chunks) -> None:
    image.known |= {2, 3, 4}
    newest, mon = chunks.open("newest", 1), chunks.open("mon", 1)
    assert trio.run(chunks.read, newest, 5, 10) == b"%d" % (4 * MIB + 5)
    image.newest.generation = 4
    with pytest.raises(RequestError) as failed:
        trio.run(chunks.read, newest, 5, 10)
    assert failed.value.errno == errno.ESTALE
    assert trio.run(chunks.read, mon, 0, 10) == b"%d" % (4 * MIB)


def test_a_chunk_ends_where_the_next_begins(image: FakeImage, chunks: Chunks) -> None:
    image.known.add(3)
    handle = chunks.open("newest", 2)
    assert trio.run(chunks.read, handle, 2 * MIB, 10) == b""


# --- putting together ----------------------------------------------------------------------------------------


def write_chunks(directory: Path) -> Path:
    directory.mkdir()
    names = ChunkNames(len(IMAGE), MIB)
    for number in range(names.count):
        offset, length = names.extent(number)
        (directory / names.name(number)).write_bytes(IMAGE[offset : offset + length])
    return directory


def test_chunks_become_the_image_again_and_zeros_holes(tmp_path: Path) -> None:
    directory, image = write_chunks(tmp_path / "chunks"), tmp_path / "image"
    (directory / "README").write_text("of somebody else")
    os.truncate(directory / "2M", 0)
    os.truncate(directory / "2M", MIB)
    joined = join(directory, image, Consent())
    assert image.read_bytes() == IMAGE
    assert (joined.chunks, joined.image_bytes, joined.data_bytes) == (4, len(IMAGE), len(IMAGE) - MIB)
    assert image.stat().st_blocks * 512 < len(IMAGE) - MIB // 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "image"]


def test_an_image_that_is_there_is_overwritten_when_asked_to(tmp_path: Path) -> None:
    directory, image = write_chunks(tmp_path / "chunks"), tmp_path / "image"
    image.write_bytes(b"x" * len(IMAGE))
    with pytest.raises(UsageError, match="say --force"):
        join(directory, image, Consent())
    join(directory, image, Consent(force=True))
    assert image.read_bytes() == IMAGE


def test_an_image_of_another_size_stays(tmp_path: Path) -> None:
    directory, image = write_chunks(tmp_path / "chunks"), tmp_path / "image"
    image.write_bytes(b"x")
    with pytest.raises(SnapfsError, match="name an image of that size"):
        join(directory, image, Consent(force=True))
    assert image.read_bytes() == b"x"


LAST = f"3M-{len(IMAGE)}.end"


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda d: (d / "0M").unlink(), "The first chunk is missing before .*/1M; get it again"),
        (lambda d: (d / "1M").unlink(), "The chunk after .*/0M is missing; get it again"),
        (lambda d: (d / LAST).unlink(), "The last chunk is missing after .*/2M; get it again"),
        (lambda d: os.truncate(d / "0M", MIB - 1), "/0M has 1048575 bytes, and must have 1048576"),
        (lambda d: os.truncate(d / "1M", MIB - 1), "/1M has 1048575 bytes, and must have 1048576"),
        (lambda d: os.truncate(d / "2M", MIB + 1), "/2M has 1048577 bytes, and must have 1048576"),
        (lambda d: os.truncate(d / LAST, 5), "M.*end has 5 bytes, and must have 524288"),
        (lambda d: os.rename(d / "1M", d / "x"), "The chunk after .*/0M is missing"),
        (lambda d: ((d / "2M").unlink(), (d / "2M").symlink_to(d / "1M")), "/2M is no file"),
        (lambda d: [path.unlink() for path in d.iterdir()], "There are no chunks in"),
        (lambda d: [path.unlink() for path in d.iterdir()] and d.rmdir(), "cannot be read: No such file"),
    ],
)
def test_what_is_missing_is_named_and_nothing_written(
    tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    directory = write_chunks(tmp_path / "chunks")
    harm(directory)
    with pytest.raises(SnapfsError, match=sentence):
        join(directory, tmp_path / "image", Consent(force=True))
    assert not (tmp_path / "image").exists()


def test_chunks_of_one_image_only(tmp_path: Path) -> None:
    directory = write_chunks(tmp_path / "chunks")
    (directory / "3M").write_bytes(b"x" * MIB)
    with pytest.raises(SnapfsError, match="and must have"):
        find_chunks(directory)
