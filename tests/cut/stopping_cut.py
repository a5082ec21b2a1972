"""``snapfs`` that stops before it asks the live server for the cut, until it is told to go on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from snapfs.cli import main
from snapfs.commands import snapshot
from snapfs.control import request


def stopping(store: Path, op: str, timeout_s: float = 30.0, **facts: Any) -> dict[str, Any]:
    if op == "cut":
        os.write(1, b"frozen\n")
        os.read(0, 1)
        timeout_s = 30.0
    return request(store, op, timeout_s, **facts)


sys.argv[0] = "snapfs"
snapshot.request = stopping  # type: ignore[attr-defined]
main()
