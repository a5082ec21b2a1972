"""How serving a view comes to its end."""

from __future__ import annotations

import errno
import os

import pyfuse3
import pytest
import trio

from snapfs.fuse import session


def serve_until(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a view whose session ends with this error."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async def fail() -> None:
        raise error

    monkeypatch.setattr(pyfuse3, "main", main)
    monkeypatch.setattr(session, "session_fd", lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    monkeypatch.setattr(session, "hurry_receive", os.close)
    trio.run(session.serve)


def test_a_connection_that_the_kernel_has_ended_is_an_umount(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_until(OSError(errno.ECONNABORTED, "the read failed"), monkeypatch)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "the read failed"), ValueError("a bug")], ids=str)
def test_what_else_ends_a_session_is_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(ExceptionGroup) as found:
        serve_until(error, monkeypatch)
    assert found.group_contains(type(error))
