"""`snapfs limit`: another limit for the side buffer of a running instance."""

from __future__ import annotations

from pathlib import Path

from snapfs.client import request
from snapfs.commands.status import read_status
from snapfs.options import check_buffer_limit
from snapfs.protocol import SetLimit
from snapfs.system.discovery import find_store


def limit(path: Path, limit_bytes: int | None) -> None:
    """Set the limit in bytes, None for none; writes that wait for room look again."""
    store = find_store(path)
    check_buffer_limit(limit_bytes, read_status(store)["block_bytes"])
    request(store, SetLimit(limit_bytes or 0))
