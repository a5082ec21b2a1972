"""DEST and its manifest: killed at any call, what is there is the older pair or the new one, no mixture."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.pair import complete_names, give_names, identity, manifest_to_read
from snapfs.destination.place import look_at
from snapfs.destination.unfinished import claim
from snapfs.system import libc

CALLS = [(os, name) for name in ("open", "rename", "unlink", "link", "fsync", "fchmod", "fchown", "close")]
CALLS += [(libc, "rename_new")]


def make_pair(directory: Path, content: str) -> None:
    """As a backup does it: both claimed, written, named."""
    dest, file = look_at(directory / "backup"), look_at(directory / "backup.json")
    complete_names(dest, file)
    consent = Consent(force=True)
    data, manifest = claim(dest, consent), claim(look_at(file.named), consent)
    os.write(data.fd, content.encode())
    facts = {"content": content, "file": identity(os.fstat(data.fd))}
    manifest.file.write_text(json.dumps(facts))
    give_names(data, manifest, Access(0o600))
    data.close()
    manifest.close()


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Do it in a process that is killed before its call of that number; whether it came to that.

    Looking at what the machine does is no call: it changes nothing, and there is more of it the more goes on.
    """
    pid = os.fork()
    if not pid:
        left = number
        looking: set[int] = set()
        for module, name in CALLS:
            call: Any = getattr(module, name)

            def counted(*words: Any, _call: Any = call, _name: str = name, **keywords: Any) -> Any:
                nonlocal left
                if _name == "close" and words[0] in looking:
                    looking.remove(words[0])
                    return _call(*words)
                if _name == "open" and os.fspath(words[0]).startswith(("/proc/", "/sys/")):
                    looking.add(fd := _call(*words, **keywords))
                    return fd
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return _call(*words, **keywords)

            setattr(module, name, counted)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def pair_in(directory: Path) -> tuple[str, str] | None:
    """The backup and what the manifest that is believed says of it; None without a backup."""
    backup = directory / "backup"
    if not backup.exists():
        return None
    manifest = manifest_to_read(backup, directory / "backup.json")
    return backup.read_text(), json.loads(manifest.read_text())["content"]


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """In memory: nothing waits for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.parametrize("older", [None, "older"])
def test_a_kill_at_any_call_leaves_one_pair(quick_path: Path, older: str | None) -> None:
    seen = set()
    for number in range(1, 1000):
        directory = quick_path / str(number)
        directory.mkdir()
        if older is not None:
            make_pair(directory, older)
        was_killed = killed_at(number, lambda directory=directory: make_pair(directory, "new"))  # type: ignore[misc]
        found = pair_in(directory)
        assert found in (None if older is None else (older, older), ("new", "new")), number
        seen.add(found)
        copied = quick_path / f"copy{number}"
        shutil.copytree(directory, copied)
        assert pair_in(copied) == found, "a copy that keeps times is as good"
        if number % 4 == 0:
            make_pair(directory, "newest")
            assert pair_in(directory) == ("newest", "newest")
            assert {path.name for path in directory.iterdir()} == {"backup", "backup.json"}
        if not was_killed:
            break
    assert len(seen) == 2
    assert number > 10


def test_an_interrupted_switch_is_completed_before_a_new_backup_begins(tmp_path: Path) -> None:
    make_pair(tmp_path, "new")
    manifest = tmp_path / "backup.json"
    manifest.rename(tmp_path / "backup.json.partial")
    manifest.write_text('{"content": "older"}')
    complete_names(look_at(tmp_path / "backup"), look_at(manifest))
    assert json.loads(manifest.read_text())["content"] == "new"
    assert not (tmp_path / "backup.json.partial").exists()
