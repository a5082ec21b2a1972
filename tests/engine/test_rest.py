"""When nobody has written for a while the ring takes no space on disk, and comes back when it is needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from engine_rig import QuickFiles, Rig, pattern

from cow.disk.layout import State

BLOCK_BYTES = 4096
OLD, NEW = pattern(64 * BLOCK_BYTES, seed=1), pattern(64 * BLOCK_BYTES, seed=2)
HALF = len(OLD) // 2
MakeRig = Callable[..., Rig]


class FilesWithoutRoom(QuickFiles):
    """A disk on which nothing can be allocated, once `is_full`, and no space given back if not `can_punch`."""

    def __init__(self, *, can_punch: bool = True) -> None:
        self.is_full, self._can_punch = False, can_punch

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        if not self._can_punch:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        super().punch(fd, offset, length)


def written(make_rig: MakeRig, files: QuickFiles | None = None) -> Rig:
    """A rig whose first half is overwritten, the old content of it in the ring."""
    rig = make_rig(OLD, files=files)
    rig.open()
    rig.write(0, NEW[:HALF])
    return rig


def ring_bytes(rig: Rig) -> int:
    return (rig.store_path / "staging").stat().st_blocks * 512


def test_a_ring_that_holds_something_stays(make_rig: MakeRig) -> None:
    rig = written(make_rig)
    assert not rig.engine.rest()
    assert ring_bytes(rig)
    assert rig.snapshot() == OLD


def test_an_empty_ring_takes_no_space(make_rig: MakeRig) -> None:
    rig = written(make_rig)
    rig.compactor.drain()
    assert rig.engine.rest()
    assert not ring_bytes(rig)
    assert rig.snapshot() == OLD


def test_it_is_used_again_after_a_rest(make_rig: MakeRig) -> None:
    rig = written(make_rig)
    rig.compactor.drain()
    rig.engine.rest()
    rig.write(HALF, NEW[HALF:])
    assert rig.snapshot() == OLD
    rig.compactor.drain()
    assert rig.snapshot() == OLD
    assert rig.live() == NEW


def test_a_kill_after_a_rest_harms_nothing(make_rig: MakeRig) -> None:
    rig = written(make_rig)
    rig.compactor.drain()
    rig.engine.rest()
    rig.abandon()
    rig.open()
    rig.write(HALF, NEW[HALF:])
    assert rig.snapshot() == OLD


def test_a_disk_that_became_full_meanwhile_is_an_overflow(make_rig: MakeRig) -> None:
    files = FilesWithoutRoom()
    rig = written(make_rig, files)
    rig.compactor.drain()
    rig.engine.rest()
    files.is_full = True
    rig.engine.write(HALF, NEW[HALF:])
    assert rig.numbers.state is State.OVERFLOWED
    assert rig.live() == NEW


def test_a_filesystem_that_gives_nothing_back_is_no_error(make_rig: MakeRig) -> None:
    rig = written(make_rig, FilesWithoutRoom(can_punch=False))
    rig.compactor.drain()
    assert rig.engine.rest()
    assert rig.snapshot() == OLD
