"""An instance as a service of systemd: what it tells the service manager, and the units themselves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, snapfs

from tests.machine import SNAPFS

PACKAGING = Path(__file__).parents[2] / "packaging"
HELPER = SNAPFS.with_name("mount.fuse.snapfs")


class Manager:
    """What a service manager hears."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self.address))
        self._socket.settimeout(30)

    def hears(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(ground.path)
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(manager.address))
    yield manager
    manager.close()


@contextmanager
def in_front(instance: Mounted, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """As the unit has it."""
    words = [HELPER, "--foreground", "-o", f"snap={instance.snap},", "--", instance.image, instance.live]
    with log.open("wb") as stderr:
        service = subprocess.Popen(words, stderr=stderr)
    try:
        yield service
    finally:
        # Who fails within this would else wait for its end for ever.
        service.kill()
        service.wait(30)


def test_a_service_is_ready_when_both_views_answer_and_says_how_it_is(ground: Ground, manager: Manager) -> None:
    instance = ground.instance(ground.image(1 << 20))
    with in_front(instance, ground.path / "log") as service:
        summary = f"STATUS={instance.image} at {instance.live}, its snapshot at {instance.snap}"
        assert manager.hears() == ["READY=1", summary]
        assert instance.snap_file.stat().st_size == 1 << 20
        instance._adopt(ground.path / "log")
        assert instance.processes["supervisor"].pid == service.pid
        # One that is computed when the snapshot server dies fails, and says so.
        instance.await_map()

        instance.expect_log("the snapshot server was killed by signal 9; it is started again")
        instance.kill("snapshot")
        assert manager.hears() == [
            "STATUS=the snapshot server died: the snapshot cannot be read until it is started again"
        ]
        assert manager.hears() == [summary]

        assert snapfs("umount", instance.live).returncode == 0
        assert manager.hears() == ["STOPPING=1", "STATUS=ending the views"]
        assert service.wait(30) == 0


def test_a_service_that_is_told_to_end_says_that_it_writes_out(ground: Ground, manager: Manager) -> None:
    instance = ground.instance(ground.image(1 << 20))
    with in_front(instance, ground.path / "log") as service:
        assert manager.hears()[0] == "READY=1"
        service.send_signal(signal.SIGTERM)
        assert manager.hears() == ["STOPPING=1", "STATUS=writing out what is held of the live view"]
        assert service.wait(30) == 0


def test_what_is_left_behind_tells_nobody_anything(ground: Ground, manager: Manager) -> None:
    instance = ground.mounted(ground.image(1 << 20))
    instance.umount()
    assert manager.hears_nothing()


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    names = [path.name for path in (PACKAGING / "systemd").iterdir()]
    for name in names:
        text = (PACKAGING / "systemd" / name).read_text()
        # Where the package puts them.
        text = text.replace("/usr/bin/snapfs ", f"{SNAPFS} ").replace("/usr/sbin/mount.fuse.snapfs ", f"{HELPER} ")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in names)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_variable_of_the_units_is_in_an_example() -> None:
    units = "".join(path.read_text() for path in (PACKAGING / "systemd").iterdir())
    examples = "".join((PACKAGING / name).read_text() for name in ("example.conf", "metrics.example"))
    settings = re.findall(r"^([A-Z_]+)=", examples, re.MULTILINE)
    assert set(re.findall(r"\$\{?([A-Z_]+)", units)) == set(settings)
