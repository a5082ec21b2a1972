"""Asking over the control socket: who is believed, and how long anybody is waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs import client
from snapfs.client import connected, request
from snapfs.errors import PermissionDeniedError, SnapfsError
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.protocol import GetStatus, StopMap, deadline_in

NOBODY = 65534


@contextmanager
def listening(store: Path, user: int | None = None) -> Iterator[socket.socket]:
    """A socket in `store`; the kernel notes who calls listen(2), here a child that is `user`."""
    store.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(store / "socket"))
        if user is None:
            listener.listen(0)
        else:
            pid = os.fork()
            if not pid:
                os.setresuid(user, user, user)
                listener.listen(4)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        yield listener


def test_a_socket_that_another_user_serves_is_not_believed(tmp_path: Path) -> None:
    with listening(tmp_path, NOBODY), pytest.raises(PermissionDeniedError, match="another user"):
        request(tmp_path, GetStatus(), 2)


@pytest.mark.alone
def test_a_full_socket_costs_the_time_that_was_given(tmp_path: Path) -> None:
    with listening(tmp_path), socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(tmp_path / "socket"))
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.connect(str(tmp_path / "socket"))
        began_s = time.monotonic()
        with pytest.raises(SnapfsError, match="does not answer"):
            request(tmp_path, GetStatus(), 0.2)
        assert time.monotonic() - began_s >= 0.2


def test_a_status_that_nobody_gives_is_not_waited_for_as_long_as_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_STATUS_TIMEOUT_S", 0.1)
    with listening(tmp_path):
        for ask in (lambda: request(tmp_path, GetStatus()), lambda: SnapshotSource(tmp_path)):
            with pytest.raises(SnapfsError, match="does not answer"):
                ask()


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        over = threading.Event()

        def drip() -> None:
            with listener.accept()[0] as connection:
                while not over.wait(0.02):
                    connection.send(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        with pytest.raises(SnapfsError, match="does not answer"):
            request(tmp_path, GetStatus(), 0.2)
        over.set()
        dripping.join()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_store_that_others_can_write_to_is_not_believed(tmp_path: Path, mode: int) -> None:
    with listening(tmp_path):
        tmp_path.chmod(mode)
        with pytest.raises(PermissionDeniedError, match="written to by others"):
            request(tmp_path, GetStatus(), 0.2)


def test_a_link_to_a_store_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("store")
    with pytest.raises(PermissionDeniedError, match="symbolic link"):
        request(tmp_path / "link", GetStatus(), 0.2)


def test_an_answer_is_waited_for_a_little_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GRACE_S", 0.1)
    until = deadline_in(0.1)
    with listening(tmp_path), pytest.raises(SnapfsError, match="does not answer"):
        request(tmp_path, StopMap(deadline_s=until))
    assert time.monotonic() >= until + 0.1


def test_an_answer_that_is_none_is_named(tmp_path: Path) -> None:
    with listening(tmp_path) as listener, connected(tmp_path) as connection, listener.accept()[0] as server:
        server.sendall(b'{"ok": true}\n')
        with pytest.raises(SnapfsError, match=r"not understood .*status has no status.*; mount it again"):
            connection.ask(GetStatus())


STATUS = """
import sys
from snapfs.startup import main
sys.argv = ["snapfs", "status", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def modules_of_status(*words: str | Path) -> set[str]:
    command = [sys.executable, "-c", STATUS, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    return set(done.stderr.splitlines()[-1].split())


def test_a_status_loads_nothing_that_serves_or_draws(tmp_path: Path) -> None:
    for words in ((), (tmp_path,), ("--json",)):
        loaded = modules_of_status(*words)
        assert "snapfs" in loaded
        assert not {"trio", "pyfuse3", "numpy", "PIL", "rich", "cow"} & loaded
