"""An image, a store on it and everything that works on both, to be stopped and opened again at will."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from cow.compact.compactor import Compactor
from cow.disk.cut import Cut
from cow.disk.files import Data, Files
from cow.disk.header import cut_header
from cow.disk.image import Identity, Image
from cow.disk.layout import Durability
from cow.disk.rules import check_store
from cow.disk.store import Store
from cow.geometry import Geometry
from cow.live.cutting import prepare_cut
from cow.live.engine import LiveEngine
from cow.live.overflow import Event, OverflowPolicy
from cow.mount.recovery import Opened, Request, open_store
from cow.seeking import SeekingReader

BOOT, NEXT_BOOT = b"first boot id 16", b"other boot id 16"


class QuickFiles(Files):
    """The real layer without its waits: nothing in these tests loses power for real."""

    def sync_data(self, fd: int) -> None:
        os.fstat(fd)

    def sync(self, fd: int) -> None:
        os.fstat(fd)


class CopiedImage(Image):
    """An image that may be copied with its store: no file system can tell the two apart."""

    def identity(self) -> Identity:
        return replace(super().identity(), dev=1, ino=1)


class SpoiltImage(CopiedImage):
    """An image with blocks that cannot be read until they are written again, as of a disk with bad sectors."""

    def __init__(self, fd: int, size_bytes: int, files: Files, block_bytes: int) -> None:
        super().__init__(fd, size_bytes, files)
        self._geometry, self.bad = Geometry(size_bytes, block_bytes), set[int]()

    def read_into(self, views: list[memoryview], offset: int) -> None:
        self._refuse(views, offset)
        super().read_into(views, offset)

    def try_read_into(self, views: list[memoryview], offset: int) -> bool:
        self._refuse(views, offset)
        return super().try_read_into(views, offset)

    def _refuse(self, views: list[memoryview], offset: int) -> None:
        length = self._geometry.clip(offset, sum(len(view) for view in views))
        if self.bad & set(range(*self._geometry.span(offset, length))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, data: Data, offset: int) -> None:
        super().write(data, offset)
        self.bad -= set(range(*self._geometry.span(offset, len(data))))

    def zero(self, offset: int, length: int, *, give_back: bool) -> None:
        super().zero(offset, length, give_back=give_back)
        self.bad -= set(range(*self._geometry.span(offset, length)))


class Rules:
    """Looks at the rules of a store whenever nobody changes it: see `cow.disk.rules`.

    After each change made by the thread that made the rig, and when it looks by itself; where several threads change
    things, when the last of them is done. A test that breaks them itself clears `are_kept`; one that has the disk
    refuse a change half way, `at_rest`.
    """

    def __init__(self, store: Callable[[], Store | None]) -> None:
        self._store, self._thread = store, threading.get_ident()
        self._under_way, self._lock = 0, threading.Lock()
        self.are_kept = self.at_rest = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
        self.look()

    def look(self) -> None:
        with self._lock:
            store = self._store()
            if store is None or self._under_way or threading.get_ident() != self._thread:
                return
            if not self.are_kept or not store.is_whole:
                return
            broken = list(check_store(store, at_rest=self.at_rest))
            assert not broken, broken

    def watch(self, worker: Any, *names: str) -> None:
        """These methods of `worker` change the store."""
        for name in names:
            setattr(worker, name, self._watched(getattr(worker, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def watched(*arguments: Any, **more: Any) -> Any:
            with self.changing():
                return real(*arguments, **more)

        return watched


class Rig:
    """One image under `directory` and its store; `old` is what the image held at the cut."""

    def __init__(
        self,
        directory: Path,
        old: bytes,
        *,
        block_bytes: int = 4096,
        durability: Durability = Durability.PROCESS,
        staging_slots: int = 64,
        policy: OverflowPolicy = OverflowPolicy.BREAK_SNAPSHOT,
        files: Files | None = None,
    ) -> None:
        self.old, self.block_bytes, self.durability, self.policy = old, block_bytes, durability, policy
        self.staging_slots, self.takes_snapshot = staging_slots, True
        self.files = files or QuickFiles()
        self.image_path, self.store_path = directory / "image", directory / "store"
        if not self.image_path.exists():
            self.image_path.write_bytes(old)
        self.image_fd = os.open(self.image_path, os.O_RDWR)
        self.image: Image = CopiedImage(self.image_fd, len(old), self.files)
        self.geometry = Geometry(len(old), block_bytes)
        self.events: list[Event] = []
        # What the compactor does when it is woken.
        self.on_wake: Callable[[], None] = lambda: None
        self._readers: list[tuple[SeekingReader, Cut]] = []
        self.store: Store | None = None
        self.rules = Rules(lambda: self.store)

    def spoil(self, *blocks: int) -> None:
        """Before `open`: the image cannot read these blocks."""
        image = SpoiltImage(self.image_fd, len(self.old), self.files, self.block_bytes)
        image.bad.update(blocks)
        self.image = image

    def request(self, boot_id: bytes = BOOT) -> Request:
        staging_bytes = self.staging_slots * self.block_bytes
        path = str(self.image_path)
        return Request(
            path,
            self.block_bytes,
            boot_id,
            self.durability,
            staging_bytes=staging_bytes,
            takes_snapshot=self.takes_snapshot,
        )

    def open(self, boot_id: bytes = BOOT) -> Opened:
        opened = open_store(self.store_path, self.image, self.request(boot_id), self.files)
        self.store = opened.store
        self.control = opened.store.control
        self.cut = opened.store.cut
        self.numbers = self.cut.numbers
        self.engine = LiveEngine(opened.store, self.image, self.policy, self.events.append, lambda: self.on_wake())
        self.reader = self.new_reader()
        self.compactor = Compactor(opened.store)
        self.rules.watch(self.engine, "try_write", "write", "begin_cut", "rest")
        self.rules.watch(self.engine.cuts, "settle_free", "release")
        self.rules.watch(self.engine.ending, "note_damage")
        self.rules.watch(self.compactor, "step", "squeeze", "give_back", "drain", "tidy")
        self.rules.look()
        return opened

    def new_reader(self, generation: int | None = None) -> SeekingReader:
        """Of a cut, the present one without a `generation`, with files of its own, as the snapshot server has them;
        closed with the store."""
        assert self.store is not None
        cut = self.store.open_cut(generation or self.cut.generation, writable=False)
        self._readers.append((SeekingReader(replace(self.store, cut=cut), self.image), cut))
        return self._readers[-1][0]

    def write(self, offset: int, data: bytes) -> None:
        """A live write that makes room itself where it must: nobody else compacts here."""
        for at, length in self.geometry.pieces(offset, len(data), self.staging_slots // 4):
            piece = data[at - offset : at - offset + length]
            if not self.engine.try_write(at, piece):
                self.compactor.drain()
                self.engine.write(at, piece)

    def make_cut(self, name: str = "") -> None:
        """The next snapshot, without closing anything."""
        assert self.store is not None
        cut = prepare_cut(self.store)
        for gone in self.engine.begin_cut(cut, cut_header(self.image, cut.generation, name)):
            gone.let_go()
        self.cut, self.numbers = cut, cut.numbers
        self.reader = self.new_reader()

    def settle_free(self, runs: list[tuple[int, int]]) -> int:
        """The map of the present cut is known."""
        return self.engine.cuts.settle_free(runs, self.cut)

    def give_back(self) -> None:
        """What was released is given back, as by a compactor that has nothing else to do."""
        while self.compactor.give_back():
            pass

    def snapshot(self) -> bytes:
        self.rules.look()
        return self.reader.read(0, len(self.old))

    def live(self) -> bytes:
        return self.engine.read(0, len(self.old))

    def abandon(self) -> None:
        """What a kill leaves: descriptors gone, everything stored still there, nothing tidied up."""
        if self.store is not None:
            self.rules.look()
            self.compactor.close()
            while self._readers:
                reader, cut = self._readers.pop()
                reader.close()
                cut.let_go()
            self.store.close()
            self.store = None

    def seal(self) -> None:
        """A clean end."""
        self.compactor.drain()
        self.engine.close()
        assert self.engine.seal()
        self.abandon()

    def close(self) -> None:
        self.abandon()
        if self.image_fd >= 0:
            os.close(self.image_fd)
            self.image_fd = -1

    def remove(self) -> None:
        """Close, and leave nothing behind."""
        self.close()
        shutil.rmtree(self.image_path.parent)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ in every block and compress about as file contents do."""
    words = b"".join(
        (seed * 2654435761 + number * 40503 & 0xFFFFFFFF).to_bytes(4, "little") * 2 for number in range(512)
    )
    out = bytearray()
    number = 0
    while len(out) < length:
        out += (seed << 32 | number).to_bytes(8, "little") + words[: 504 - number % 64 * 4]
        number += 1
    return bytes(out[:length])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)
