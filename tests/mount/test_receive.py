"""What replaces a private name of pyfuse3 falls back where there is no such name."""

from __future__ import annotations

import os
from pathlib import Path

import pyfuse3
import pytest
import trio
from ground import Ground

from snapfs.fuse import receive

NAME = "_wait_fuse_readable"


def test_the_private_name_is_there() -> None:
    """When this fails snapfs still works, but slowly: look what took the name's place."""
    assert receive._is_coroutine_function(getattr(pyfuse3, NAME))


def test_falls_back_without_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, NAME)
    assert receive.hurry_receive(0) is False
    assert not hasattr(pyfuse3, NAME)


def test_falls_back_when_the_name_means_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (None, 17, lambda: True):
        monkeypatch.setattr(pyfuse3, NAME, other)
        assert receive.hurry_receive(0) is False
        assert getattr(pyfuse3, NAME) is other


def test_asks_the_descriptor_before_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = os.pipe()
    asked = []

    async def original() -> bool:
        asked.append(1)
        await trio.lowlevel.wait_readable(read_fd)
        return True

    monkeypatch.setattr(pyfuse3, NAME, original)
    try:
        assert receive.hurry_receive(read_fd)
        os.write(write_fd, b"request")
        assert trio.run(getattr(pyfuse3, NAME)) is True
        assert not asked
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_mount_without_the_name_works(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of an instance whose pyfuse3 has no such name: made so by a module that Python loads first."""
    site = ground.path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import snapfs.fuse.receive as receive\nreceive._PRIVATE_NAME = 'no_such_name'\n"
    )
    old_path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), old_path])))
    content = os.urandom(3 << 20)
    instance = ground.mounted(ground.image(content))
    maps = Path(f"/proc/{instance.processes['live'].pid}/environ").read_bytes()
    assert os.fsencode(site) in maps
    assert instance.live_file.read_bytes() == instance.snap_file.read_bytes() == content
    instance.umount()
