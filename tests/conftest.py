"""For all tests."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import pytest

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18

# Directories of which a file may take a minute; those of the others take seconds.
LONG = ("scripts", "torture", "cut", "imager", "nightly", "mount", "used", "cli")

# Whoever runs the tests in the background has SIGINT ignored, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Of tests side by side, each process has mounts of its own: a program of one that starts in a copy of all mounts
    would keep those of the others busy, and one that looks at every mount would meet their dead ones."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", b"none", MS_REC | MS_PRIVATE, None):
            raise OSError(ctypes.get_errno(), "no mount namespace of its own")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first: side by side, the last file would else have the end for itself."""
    items.sort(key=lambda item: Path(item.path).parent.name not in LONG)
