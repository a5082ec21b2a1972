"""How times and the ids of snapshots are written, for people and programs alike."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime


def utc_text(time_ns: int) -> str:
    """`2026-01-31T12:00:00Z`"""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> str:
    """The same, of now."""
    return utc_text(time.time_ns())


def utc_time(text: str) -> datetime:
    """What `utc_text` wrote; ValueError when it did not."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def local_time(text: str) -> datetime:
    """The same, in the time zone of the machine as it was then."""
    return datetime.fromisoformat(text).astimezone()


def id_text(snapshot_id: bytes) -> str:
    """The id of a snapshot, 16 bytes in a store, as a UUID."""
    return str(uuid.UUID(bytes=snapshot_id))
