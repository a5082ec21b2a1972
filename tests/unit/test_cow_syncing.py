"""Which syncs are done at once: small ones, on a disk that was quick the last time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cow.disk.files import Files
from cow.disk.image import Image
from cow.live import syncing as module
from cow.live.syncing import Syncer


class CountedFiles(Files):
    """Counts syncs; fails them with `code` once it is set."""

    syncs = code = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        if self.code:
            raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def files() -> CountedFiles:
    return CountedFiles()


@pytest.fixture
def syncer(tmp_path: Path, files: CountedFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncer]:
    monkeypatch.setattr(module, "_QUICK_NS", 1 << 62)
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield Syncer(Image(fd, 4096, files))
    os.close(fd)


def test_the_first_sync_has_to_wait(syncer: Syncer, files: CountedFiles) -> None:
    assert not syncer.try_sync()
    assert files.syncs == 0


def test_after_a_quick_one_it_is_done_at_once(syncer: Syncer, files: CountedFiles) -> None:
    syncer.sync()
    assert syncer.try_sync()
    assert files.syncs == 2


def test_after_a_slow_one_it_has_to_wait(syncer: Syncer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUICK_NS", 0)
    syncer.sync()
    assert not syncer.try_sync()


def test_after_many_writes_it_has_to_wait(syncer: Syncer) -> None:
    syncer.sync()
    syncer.unsynced_bytes += 1 << 20
    assert not syncer.try_sync()


def test_after_a_failure_it_has_to_wait(syncer: Syncer, files: CountedFiles) -> None:
    syncer.sync()
    files.code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        syncer.try_sync()
    assert not syncer.try_sync()
