"""``snapfs status``: what the live server says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapfs.control import request
from snapfs.system.discovery import all_stores, find_store


def read_status(store: Path) -> dict[str, Any]:
    """The status object of the instance in ``store``."""
    status: dict[str, Any] = request(store, "status")["status"]
    return status


def statuses(path: Path | None) -> list[dict[str, Any]]:
    """The status of the instance behind ``path``, or of all that this user can reach."""
    stores = all_stores() if path is None else [find_store(path)]
    return [read_status(store) for store in stores]
