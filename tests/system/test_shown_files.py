"""Files below a view are opened in it: nothing leads elsewhere, whatever its server says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapfs.system import shown_files
from snapfs.system.shown_files import ShownFile


@pytest.fixture
def view(tmp_path: Path) -> Path:
    """A directory with a file two folders below, and links that lead to one outside."""
    view, outside = tmp_path / "view", tmp_path / "outside"
    for folder, text in ((view / ".snapshots" / "mon", "inside"), (outside / "mon", "outside")):
        folder.mkdir(parents=True)
        (folder / "disk.img").write_text(text)
    (view / "folders").symlink_to(outside)
    (view / ".snapshots" / "linked").symlink_to(outside / "mon")
    (view / ".snapshots" / "mon" / "link.img").symlink_to(outside / "mon" / "disk.img")
    return view


def test_a_file_in_folders_of_the_view(view: Path) -> None:
    file = ShownFile(view, (".snapshots", "mon", "disk.img"))
    with open(file.open(), encoding="ascii") as opened:
        assert opened.read() == "inside"
    assert file.path == view / ".snapshots/mon/disk.img"


@pytest.mark.parametrize(
    "names",
    [
        ("folders", "mon", "disk.img"),
        (".snapshots", "linked", "disk.img"),
        (".snapshots", "mon", "link.img"),
        (".snapshots", "..", "..", "outside", "mon", "disk.img"),
        (".snapshots", "../../outside/mon", "disk.img"),
        ("../outside/mon/disk.img",),
        ("..",),
        ("",),
    ],
    ids="/".join,
)
def test_nothing_leads_out_of_the_view(view: Path, names: tuple[str, ...]) -> None:
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"No such file|Not a directory|Too many levels"):
        ShownFile(view, names).open()
    assert os.listdir("/proc/self/fd") == fds


def test_another_file_of_that_name_is_waited_past(view: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the view follows a cut, but not at once."""
    folder = view / ".snapshots" / "mon"
    (folder / "next.img").write_text("next")
    file = ShownFile(view, (".snapshots", "mon", "disk.img"), (folder / "next.img").stat().st_ino)
    monkeypatch.setattr(shown_files.time, "sleep", lambda _: (folder / "next.img").rename(folder / "disk.img"))
    with open(file.open(), encoding="ascii") as opened:
        assert opened.read() == "next"


def test_one_that_stays_another_is_refused(view: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_files, "_SHOW_S", 0)
    with pytest.raises(OSError, match="Stale file handle") as error:
        ShownFile(view, (".snapshots", "mon", "disk.img"), 1).open()
    assert error.value.errno == errno.ESTALE
