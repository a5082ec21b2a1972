"""Putting the old content of owed blocks into the side buffer: two ways, by durability.

`StagedPreserver` (`process`): raw into the memory-mapped staging ring, one copy; the compactor does the
rest. `DurablePreserver` (`power`): compressed into a segment and flushed to the disk, one flush for all
writes that wait at that moment.

Both work on a *ticket*: the runs of blocks one write claimed. `begin`, `commit` and `abandon` are
called with the engine's lock held and do no more than count; all others are called without it and may wait.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cow.disk.cut import Cut
from cow.errors import CowError
from cow.live.losses import Runs


class StoreRefused(CowError):
    """The store's disk cannot take what has to be preserved; `errno` says why. Handle it as an overflow."""

    def __init__(self, errno: int) -> None:
        super().__init__("the store cannot take the block")
        self.errno = errno


class WaitForCompactor(CowError):
    """There is no room now, but the compactor is about to make some."""


@dataclass(slots=True, eq=False)
class Claim:
    """The right to preserve or settle the blocks `first` to `end`, which nobody else has meanwhile."""

    first: int
    end: int


@dataclass(slots=True, eq=False)
class Ticket(Claim):
    """What one write claimed, the owed `runs` in it, and where they go."""

    runs: Runs
    count: int = 0
    # How many of its blocks are settled by now, and how many of them had not changed since the cut.
    settled: int = 0
    unchanged: int = 0
    seq: int = 0
    entries: Sequence[tuple[int, int, int]] = ()
    # What of the runs the image could not give, and with which errno.
    lost: Sequence[tuple[int, int]] = ()
    lost_errno: int = 0

    def lose(self, lost: Runs, code: int) -> None:
        """These blocks cannot be preserved."""
        if lost:
            self.lost, self.lost_errno = [*self.lost, *lost], code

    def count_owed(self) -> int:
        """How many blocks are to be preserved."""
        count = 0
        for first, end in self.runs:
            count += end - first
        return count


class Preserver(Protocol):
    """See the module's docstring for who calls what when."""

    def allocate(self, first: int, end: int, *, may_wait: bool) -> bool:
        """Take the disk's space for all that these blocks may need. StoreRefused: there is none. False, unless
        `may_wait`: it would have to be waited for."""

    def begin(self, ticket: Ticket) -> bool:
        """Reserve room; StoreRefused or WaitForCompactor when there is none. False: what was allocated for it is
        not there any more."""

    def try_fill(self, ticket: Ticket) -> bool:
        """`fill` without waiting; False if that cannot be done."""

    def fill(self, ticket: Ticket) -> bool:
        """Copy the old content aside, but for what the image cannot give: the ticket says what that is. True.

        OSError: the image's, and nothing may be lost. StoreRefused: the store's.
        """

    def touch(self, first: int, end: int) -> None:
        """Note that these blocks are about to be written, so that a power loss leaves no doubt about it.
        StoreRefused: the store's disk does not take it."""

    def publish(self, ticket: Ticket) -> None:
        """Make the index entries, but for those of lost blocks. OSError: of some only; the room is used up."""

    def commit(self, ticket: Ticket) -> None:
        """It was filled, and is published as far as the disk took it."""

    def abandon(self, ticket: Ticket) -> None:
        """It was not filled: give the room back."""

    def discard(self) -> None:
        """The snapshot is over: hold nothing open that the compactor is about to remove."""

    def close(self) -> None:
        """Close what is open."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Within this, an OSError is the store's: it becomes StoreRefused."""
    try:
        yield
    except OSError as error:
        raise StoreRefused(error.errno or errno.EIO) from error


def allocate_maps(cut: Cut, first: int, end: int, owed: Runs, *, may_wait: bool) -> bool:
    """After this no store into the maps of these blocks, of which those are `owed`, can meet a full disk. OSError,
    False: see `Preserver`."""
    for run in owed:
        if not cut.index.allocate(*run, may_wait=may_wait):
            return False
    if owed and not cut.settled.allocate(first, end, may_wait=may_wait):
        return False
    # A write that preserves nothing still notes that the blocks changed.
    return cut.changed.allocate(first, end, may_wait=may_wait)
