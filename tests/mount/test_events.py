"""`snapfs mount --on-event DIR`: what the hooks are told, and that nothing depends on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ground import Ground
from mounted import SNAPFS, Mounted, snapfs, wait_until

KIB = 1 << 10
LIMIT_KIB = 512
OLD = os.urandom(2048 * KIB)
TOLD = '#!/bin/sh\n{{ echo "$1"; env | grep ^SNAPFS_ | sort; {more} }} > {notes}/.new\nmv {notes}/.new {notes}/$$\n'


class Hook:
    """One that leaves a file for each event."""

    def __init__(self, path: Path, more: str = "") -> None:
        self.directory, self._notes = path / "hooks", path / "notes"
        self.directory.mkdir()
        self._notes.mkdir()
        self.add("50-note", TOLD.format(more=f"{more};" if more else "", notes=self._notes))

    def add(self, name: str, text: str) -> None:
        file = self.directory / name
        file.write_text(text)
        file.chmod(0o755)

    @property
    def told(self) -> list[list[str]]:
        """The lines of each, oldest first."""
        found = sorted(self._notes.glob("[0-9]*"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text().splitlines() for path in found]

    def await_event(self, name: str) -> dict[str, str]:
        """The facts of the first of that name."""
        wait_until(lambda: any(lines[0] == name for lines in self.told), what=name)
        lines = next(lines for lines in self.told if lines[0] == name)
        return dict(line.split("=", 1) for line in lines[1:] if "=" in line)


def mounted(ground: Ground, hook: Hook, *options: str | Path) -> Mounted:
    view = ground.mounted(
        ground.image(OLD),
        *("--protect", "all", "--buffer-limit", f"{LIMIT_KIB}K", "--cache", "writethrough"),
        *("--on-event", hook.directory, *options),
    )
    view.expect_log("side buffer|store is damaged|files of the store were cut short")
    return view


def write(view: Mounted, first_kib: int, end_kib: int) -> None:
    with view.live_file.open("r+b", buffering=0) as file:
        for at in range(first_kib * KIB, end_kib * KIB, 4 * KIB):
            os.pwrite(file.fileno(), os.urandom(4 * KIB), at)


def test_a_side_buffer_that_fills_up_is_told_in_steps_and_then_the_end(ground: Ground) -> None:
    hook = Hook(ground.path)
    view = mounted(ground, hook)
    snapshot_id = view.status()["snapshot"]["id"]
    write(view, 0, 2 * LIMIT_KIB)
    facts = hook.await_event("overflowed")
    assert [lines[0] for lines in hook.told] == ["buffer-filling"] * 3 + ["overflowed"]
    steps = [line for lines in hook.told for line in lines if line.startswith("SNAPFS_PERCENT")]
    assert steps == [f"SNAPFS_PERCENT={percent}" for percent in (80, 90, 95)]
    assert facts == {
        "SNAPFS_EVENT": "overflowed",
        "SNAPFS_IMAGE": str(view.image),
        "SNAPFS_LIVE": str(view.live),
        "SNAPFS_MESSAGE": "the side buffer is full (No space left on device)",
        "SNAPFS_SNAP": str(view.snap),
        "SNAPFS_SNAPSHOT": "",
        "SNAPFS_SNAPSHOT_ID": snapshot_id,
        "SNAPFS_STORE": str(view.store),
        "SNAPFS_TAKEN_AT": facts["SNAPFS_TAKEN_AT"],
    }


def test_a_hook_may_read_both_views_and_ask_the_servers(ground: Ground) -> None:
    hook = Hook(ground.path, f'{SNAPFS} limit "$SNAPFS_LIVE" none; cat "$SNAPFS_LIVE"/* "$SNAPFS_SNAP"/* | wc -c')
    view = mounted(ground, hook)
    write(view, 0, LIMIT_KIB * 8 // 10)
    hook.await_event("buffer-filling")
    assert hook.told[0][-1].strip() == str(2 * len(OLD))
    assert view.status()["buffer"]["limit_bytes"] is None


def test_damage_is_told_once(ground: Ground) -> None:
    hook = Hook(ground.path)
    view = mounted(ground, hook)
    write(view, 0, 64)
    os.truncate(next(view.store.glob("cut-*")) / "index", 0)
    with pytest.raises(OSError, match="Input/output error"):
        view.snap_file.read_bytes()
    write(view, 64, 128)
    view.status()
    facts = hook.await_event("damaged")
    assert "damaged" in facts["SNAPFS_MESSAGE"]
    view.umount()
    assert [lines[0] for lines in hook.told] == ["damaged"]


def test_one_that_fails_is_named_in_the_log_and_the_next_is_called(ground: Ground) -> None:
    hook = Hook(ground.path)
    hook.add("10-fails", "#!/bin/sh\necho it said this >&2\nexit 3\n")
    view = mounted(ground, hook)
    view.expect_log("10-fails")
    write(view, 0, LIMIT_KIB * 8 // 10)
    hook.await_event("buffer-filling")
    failed = f"The hook {hook.directory / '10-fails'} failed with code 3 when it was told of buffer-filling"
    wait_until(lambda: failed in view.log())
    assert "it said this" in view.log()
    view.umount()


def hanging(ground: Ground) -> tuple[Mounted, Path]:
    """An instance with a hook that has been called and does not end; what shows that it is there."""
    hook = Hook(ground.path)
    pid = ground.path / "pid"
    hook.add("60-hangs", f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000\n")
    view = mounted(ground, hook)
    view.expect_log("a hook was told of an event|the hooks are not told of")
    write(view, 0, 2 * LIMIT_KIB)
    wait_until(pid.exists)
    return view, Path("/proc", pid.read_text().strip())


def test_one_that_hangs_keeps_nobody_and_ends_with_the_instance(ground: Ground) -> None:
    view, hook = hanging(ground)
    assert view.live_file.read_bytes() != OLD
    assert view.status()["snapshot"]["state"] == "overflowed"
    view.umount()
    assert not hook.exists()
    assert "it was killed" in view.log()


def test_one_that_hangs_ends_with_a_supervisor_that_is_killed(ground: Ground) -> None:
    view, hook = hanging(ground)
    view.kill()
    wait_until(lambda: not hook.exists())
    view.mount()


def test_without_such_a_directory_nothing_is_mounted(ground: Ground) -> None:
    view = ground.instance(ground.image(OLD))
    done = view.try_mount("--on-event", ground.path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be found" in done.stderr
    assert snapfs("status", view.live).returncode == 1
