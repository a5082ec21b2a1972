"""Mapped files that lose pages while they are mapped: cut short by somebody, or on a disk that cannot read them.

A process that touches such a page gets SIGBUS and ends. Under a guard it goes on: from the missing page to the end of
the mapping there are private zeros from then on, which are written nowhere, and the loss is counted. What was looked
at and stored since may be wrong, so whoever relies on a mapping looks at the count *after* that, and before it acts.

The handler is compiled (`_faults.c`): one of the interpreter's runs only when the faulting instruction has ended.
"""

from __future__ import annotations

import mmap
import weakref
from typing import Final

from cow import _faults

# How often a guarded page was missing in this process: one u64, so that a look costs less than a call.
missing_pages: Final = _faults.missing_pages.cast("Q")


class Guard:
    """Over the whole of `memory`, as long as that is mapped."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._number = _faults.guard(memory)
        weakref.finalize(memory, _faults.unguard, self._number).atexit = False

    @property
    def has_missed(self) -> bool:
        """Whether a page of it was missing when this process touched it; only while it is mapped."""
        return _faults.missing_in(self._number) > 0
