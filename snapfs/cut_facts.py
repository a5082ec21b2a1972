"""What was at rest at a cut and what was not, as the command that froze it tells the live server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Unfrozen:
    """A filesystem that was mounted and not frozen; `offset` is its place in the image, None if not one."""

    mount_point: str
    reason: str
    offset: int | None


@dataclass(frozen=True)
class Writer:
    """Who writes to the live file other than through a filesystem of the kernel, and where in the image: `length`
    bytes from `offset` on, or (None) anywhere in it."""

    name: str
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class Member:
    """The snapshot `id` of an image."""

    image: str
    id: str


@dataclass(frozen=True)
class Group:
    """Snapshots of one instant, of several images."""

    id: str
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was at rest at a cut, and what was not; its map depends on that."""

    freeze_ms: float | None
    frozen: tuple[str, ...]
    frozen_offsets: tuple[int, ...]
    not_frozen: tuple[Unfrozen, ...]
    writers: tuple[Writer, ...]
    # Known when all of them have been taken.
    group: Group | None = None


NOTHING_FROZEN: Final = Facts(freeze_ms=None, frozen=(), frozen_offsets=(), not_frozen=(), writers=())
