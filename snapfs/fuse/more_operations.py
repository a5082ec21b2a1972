"""`lseek` and `fallocate`, which pyfuse3 (up to 3.5, the newest) hands to nobody.

They are entries of libfuse's table of operations that pyfuse3 leaves empty. A compiled module (`_operations.c`) has a
`fuse_session_new` of its own, which fills them in a copy of the table and calls that of libfuse. It is loaded before
pyfuse3 with its symbols for all, so the dynamic linker gives pyfuse3 this one: the rule by which LD_PRELOAD works, on
every machine. To change the entry of the function in pyfuse3 once that is loaded would do the same, but by the layout
of each machine's relocations and by writing to memory that is read-only; and what libfuse calls would be made of
closures at run time, where here the compiler knows the table by its header.

Nothing is done, `why_not` says so, and the kernel is told as before that there are no such operations, if

- the module was built without the headers of libfuse, or not at all,
- pyfuse3 was loaded by somebody before, or makes its session by another function,
- the table is not as large as it should be, or has operations of its own for these two.

The request is answered when its task has ended, in the event loop's thread. A task that waits keeps no other request
waiting. All have ended before the session does (`answering`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import Final, Protocol

import trio

_LOG = logging.getLogger(__name__)
_NAME: Final = "_operations"
_PYFUSE3: Final = "pyfuse3"


class Operations(Protocol):
    """Whom requests go to; an error leaves as one that has an `errno`."""

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        """Where the next data, or hole, from `off` on is."""

    async def fallocate(self, fh: int, mode: int, off: int, length: int) -> None:
        """See fallocate(2)."""


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or why there is none."""
    if _PYFUSE3 in sys.modules:
        return None, "pyfuse3 was loaded before"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from snapfs.fuse import _operations
    except ImportError:
        return None, "the compiled part was not built"
    finally:
        sys.setdlopenflags(flags)
    if not hasattr(_operations, "handle"):
        return None, "it was built without the headers of libfuse"
    return _operations, None


_compiled, _why_none = _load()


class _Requests:
    """Those of the one session of this process."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self.operations: Operations | None = None

    def on_lseek(self, request: int, fh: int, offset: int, whence: int) -> None:
        self._begin(request, lambda operations: operations.lseek(fh, offset, whence), "lseek")

    def on_fallocate(self, request: int, fh: int, mode: int, offset: int, length: int) -> None:
        self._begin(request, lambda operations: operations.fallocate(fh, mode, offset, length), "fallocate")

    def _begin(self, request: int, ask: Callable[[Operations], Awaitable[int | None]], name: str) -> None:
        if self.nursery is None or self.operations is None:
            _reply(request, errno.EIO, None)
        else:
            self.nursery.start_soon(_answer, request, self.operations, ask, name)


_requests = _Requests()


async def _answer(
    request: int, operations: Operations, ask: Callable[[Operations], Awaitable[int | None]], name: str
) -> None:
    code, offset = errno.EIO, None
    try:
        offset = await ask(operations)
        code = 0
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None:
            _LOG.exception("%s failed", name)
        code = number or errno.EIO
    finally:
        # Also when it was cancelled: whoever asked must not wait for ever.
        _reply(request, code, offset)


def _reply(request: int, code: int, offset: int | None) -> None:
    assert _compiled is not None, "it has called"
    failed = _compiled.reply_error(request, code) if offset is None else _compiled.reply_offset(request, offset)
    # Nobody waits for the answer any more: see `session`.
    if failed not in (0, -errno.ENOENT):
        _LOG.error("a request could not be answered: %s", os.strerror(-failed))


def hand_over_to(operations: Operations) -> None:
    """Before the session is made."""
    _requests.operations = operations
    if _compiled is not None:
        _compiled.handle(_requests.on_lseek, _requests.on_fallocate)


def why_not() -> str | None:
    """None when the session of this process has both; else the reason."""
    return str(_why_none) if _compiled is None else _compiled.why_not()


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Within this requests are answered; it ends when the last one is."""
    async with trio.open_nursery() as nursery:
        _requests.nursery = nursery
        try:
            yield
        finally:
            _requests.nursery = None
