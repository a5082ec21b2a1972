"""Putting the old content of owed blocks into the side buffer: two ways, by durability.

`StagedPreserver` (`process`): raw into the memory-mapped staging ring, one copy; the compactor does the
rest. `DurablePreserver` (`power`): compressed into a segment and flushed to the disk, one flush for all
writes that wait at that moment.

Both work on a *ticket*: the runs of blocks one write claimed. `begin`, `publish` and `abandon` are
called under the engine's lock and do not wait; `fill` is called without it and may.
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
class Ticket:
    """The blocks `first` to `end` one write claimed, the owed `runs` among them, and where they go."""

    first: int
    end: int
    runs: Runs
    count: int = 0
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

    def begin(self, ticket: Ticket) -> None:
        """Reserve room; StoreRefused or WaitForCompactor when there is none."""

    def try_fill(self, ticket: Ticket) -> bool:
        """`fill` without waiting; False if that cannot be done."""

    def fill(self, ticket: Ticket) -> None:
        """Copy the old content aside, but for what the image cannot give: the ticket says what that is.

        OSError: the image's, and nothing may be lost. StoreRefused: the store's.
        """

    def publish(self, ticket: Ticket) -> None:
        """Make the index entries, but for those of lost blocks. OSError: of some only; the room is used up."""

    def abandon(self, ticket: Ticket) -> None:
        """Give the room back."""

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


def allocate(cut: Cut, ticket: Ticket) -> None:
    """After this no store into the maps of these blocks can meet a full disk."""
    for first, end in ticket.runs:
        cut.index.allocate(first, end)
    cut.settled.allocate(ticket.first, ticket.end)
    cut.changed.allocate(ticket.first, ticket.end)


def allocate_changed(cut: Cut, ticket: Ticket) -> None:
    """A write that preserves nothing still notes that the blocks changed."""
    with store_errors():
        cut.changed.allocate(ticket.first, ticket.end)
