"""Hooks of events: when they are called, and how the live server's words reach the supervisor."""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import snapfs.events.queue as queue
from cow import Event, EventKind
from snapfs.events.hooks import call_hooks
from snapfs.events.queue import EventQueue
from snapfs.servers.events import Events
from snapfs.servers.pipe import READY, event_line, event_of, heard


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def store_of(*names: str) -> Any:
    cuts = [SimpleNamespace(name=name, snapshot_id=bytes(16), taken_at_ns=0) for name in names]
    header = SimpleNamespace(cut_of=lambda generation: cuts[generation - 1])
    return SimpleNamespace(header=header, cut=SimpleNamespace(generation=len(names)))


def test_an_event_is_one_line_and_comes_back() -> None:
    facts = {"SNAPFS_EVENT": "lost", "SNAPFS_SNAP": "/a\nready\n\udcff"}
    line = event_line(facts)
    assert line.count(b"\n") == 1
    assert event_of(line) == facts
    assert event_of(READY) is None
    assert event_of(line[:-3]) is None


def test_blocks_that_are_lost_are_told_once_for_a_snapshot(pipe: tuple[int, int]) -> None:
    store = store_of("mon", "tue")
    events = Events(store, pipe[1], is_wanted=True)
    for offset in (0, 4096):
        events.on_event(Event(EventKind.LOST, 5, offset, 4096))
    store.cut.generation = 1
    events.on_event(Event(EventKind.LOST, 5, 0, 4096))
    facts = [event_of(line) or {} for line in heard(pipe[0])]
    assert [(one["SNAPFS_EVENT"], one["SNAPFS_SNAPSHOT"]) for one in facts] == [("lost", "tue"), ("lost", "mon")]
    assert facts[0]["SNAPFS_MESSAGE"].startswith("4096 bytes at 0 of the image cannot be read (Input/output error)")


def test_the_one_that_gives_way_is_named(pipe: tuple[int, int]) -> None:
    Events(store_of("mon", "tue"), pipe[1], is_wanted=True).on_event(Event(EventKind.GAVE_WAY, 28, generation=1))
    (facts,) = map(event_of, heard(pipe[0]))
    assert facts is not None
    assert (facts["SNAPFS_EVENT"], facts["SNAPFS_SNAPSHOT"]) == ("overflowed", "mon")


def test_a_supervisor_that_hears_nothing_is_not_waited_for(pipe: tuple[int, int], caplog: Any) -> None:
    os.write(pipe[1], bytes(fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)))
    Events(store_of("mon"), pipe[1], is_wanted=True).on_event(Event(EventKind.WAITING, 28))
    assert "no hook is told of writes-wait" in caplog.text


def test_without_hooks_nothing_is_said(pipe: tuple[int, int]) -> None:
    Events(store_of("mon"), pipe[1], is_wanted=False).on_event(Event(EventKind.OVERFLOW, 28))
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


def test_one_that_takes_too_long_is_killed_and_named(tmp_path: Path) -> None:
    hook = tmp_path / "a"
    hook.write_text("#!/bin/sh\nexec sleep 1000\n")
    hook.chmod(0o755)
    (said,) = call_hooks(tmp_path, {"SNAPFS_EVENT": "lost"}, 0.1)
    assert said == f"The hook {hook} did not end in 0.1 s when it was told of lost; look at what it does."


def test_a_directory_that_has_gone_is_named(tmp_path: Path) -> None:
    (said,) = call_hooks(tmp_path / "nothing", {"SNAPFS_EVENT": "lost"})
    assert "cannot be found" in said


def test_what_is_too_much_is_dropped_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(queue, "_MAX_WAITING", 1)
    monkeypatch.setattr(EventQueue, "_start_next", lambda self: None)
    with selectors.DefaultSelector() as selector:
        events = EventQueue(tmp_path, selector, dict)
        events.add({"SNAPFS_EVENT": "lost"})
        assert caplog.text == ""
        events.add({"SNAPFS_EVENT": "damaged"})
    assert "they are not told of damaged" in caplog.text


def hook_that_says(directory: Path, words: str) -> Path:
    """What it says of its environment is in the file that is returned."""
    said, hook = directory / ".said", directory / "a"
    hook.write_text(f"#!/bin/sh\n{{ {words}; }} > {said}\n")
    hook.chmod(0o755)
    return said


def test_what_another_hook_was_told_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PERCENT", "80")
    said = hook_that_says(tmp_path, "env | grep ^SNAPFS_")
    assert call_hooks(tmp_path, {"SNAPFS_EVENT": "lost"}) == []
    assert said.read_text() == "SNAPFS_EVENT=lost\n"


def test_what_no_environment_can_hold_keeps_nobody_from_being_told(tmp_path: Path) -> None:
    said = hook_that_says(tmp_path, 'printf %s "$SNAPFS_MESSAGE"')
    assert call_hooks(tmp_path, {"SNAPFS_EVENT": "lost", "SNAPFS_MESSAGE": "a\0b\ud800c\udcff"}) == []
    assert said.read_bytes() == b"a?b?c\xff"


def test_the_supervisor_outlives_an_event_that_no_environment_can_hold(tmp_path: Path) -> None:
    said = hook_that_says(tmp_path, 'printf %s "$SNAPFS_MESSAGE"')
    with selectors.DefaultSelector() as selector:
        events = EventQueue(tmp_path, selector, dict)
        events.add({"SNAPFS_EVENT": "damaged", "SNAPFS_MESSAGE": "a\0b\ud800"})
        selector.select()[0][0].data()
    assert said.read_bytes() == b"a?b?"


def test_one_of_whose_end_nobody_would_hear_keeps_no_later_event_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    said = hook_that_says(tmp_path, 'printf %s "$SNAPFS_EVENT"')
    with selectors.DefaultSelector() as selector:
        events = EventQueue(tmp_path, selector, dict)
        with monkeypatch.context() as patch:
            patch.setattr(queue.os, "pidfd_open", no_pidfd)
            events.add({"SNAPFS_EVENT": "lost"})
        assert "the hooks cannot be told of lost: Too many open files" in caplog.text
        caplog.clear()
        events.add({"SNAPFS_EVENT": "damaged"})
        selector.select(10)[0][0].data()
    assert said.read_text() == "damaged"


def test_at_the_end_no_event_is_begun_once_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    hook_that_says(tmp_path, "sleep 1000")
    begun: list[str] = []
    start = EventQueue._start

    def noted(events: EventQueue, facts: Mapping[str, str]) -> None:
        begun.append(facts["SNAPFS_EVENT"])
        start(events, facts)

    monkeypatch.setattr(EventQueue, "_start", noted)
    monkeypatch.setattr(queue, "_LAST_S", 0.0)
    with selectors.DefaultSelector() as selector:
        events = EventQueue(tmp_path, selector, dict)
        for event in ("lost", "damaged", "overflowed"):
            events.add({"SNAPFS_EVENT": event})
        events.finish()
    assert begun == ["lost"]
    assert "not told of 2 more events" in caplog.text
