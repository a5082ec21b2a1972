"""What was written to an image between the cut of the last backup and the one that is backed up now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitarray import bitarray
from blake3 import blake3


@dataclass(frozen=True)
class Changed:
    """A bit per block: `written` since that cut, `used` at that cut."""

    written: bitarray
    used: bitarray

    def suspected(self, used: bitarray) -> bitarray:
        """Blocks that may read otherwise than then, when these are used now: free ones are zeros."""
        # In place: of 1 TiB each is 32 MiB, and to make another costs more than to look at it.
        found = self.used ^ used
        now = self.written & used
        found |= now
        return found


@dataclass(frozen=True)
class Void:
    """Nobody knows, and why: a part of a sentence that ends with "so everything was read and compared"."""

    reason: str


# What was written since the cut of this id, None for an image that was not mounted, until that of the source.
ChangesSince = Callable[[str | None], Changed | Void]


def fingerprint(used: bitarray) -> str:
    """What tells a map of used blocks from another one."""
    whole = len(used) // 8
    hashed = blake3(memoryview(used)[:whole])
    # Of the last byte the bits behind the last block may be anything.
    hashed.update(used[whole * 8 :].tobytes())
    return hashed.hexdigest()


def by_same_map(changed: Changed | Void, used_blake3: object, used: bitarray) -> Changed | Void:
    """The same, void unless the map of then is the one of the last backup: what was free by that is not in it."""
    if isinstance(changed, Changed) and (
        len(changed.written) != len(used) or fingerprint(changed.used) != used_blake3
    ):
        return Void("the map of used blocks of the last backup is not there any more")
    return changed
