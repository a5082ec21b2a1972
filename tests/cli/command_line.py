"""The `snapfs` command as a user runs it, and what it may leave behind.

A refusal is judged as a user meets it: one sentence on stderr (the thing, the reason, the way out), the exit
code, and a machine that looks as before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.machine import (
    MNT_DETACH,
    NOBODY,
    SNAPFS,
    TIMEOUT_S,
    detach_loop,
    loop_device,
    mount_points_below,
    mounted,
    run,
    status_of,
    unmount,
    wait_until,
)

__all__ = ["NOBODY", "SNAPFS", "TIMEOUT_S", "loop_device", "mount_points_below", "mounted", "run", "wait_until"]

_SENTENCE = re.compile(r"snapfs: [^\n;]+; [^\n;]+\.\n")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refuses(self, code: int, *words: str) -> None:
        """One sentence with all `words`, nothing on stdout, and this exit code."""
        assert _SENTENCE.fullmatch(self.err), f"no single sentence with a way out: {self.err!r}"
        for word in words:
            assert word in self.err, self.err
        assert self.out == ""
        assert self.code == code

    def ok(self) -> Done:
        assert self.code == 0, f"{self.code}: {self.out}{self.err}"
        return self


def snapfs(*words: str | bytes | Path | int, before: Sequence[str] = (), **keywords: Any) -> Done:
    """`snapfs WORDS`; `before` is a command that starts it, as nsenter does."""
    command = [
        *before,
        os.fspath(SNAPFS),
        *(os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        **keywords,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def small_filesystem(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A mounted ext4 of its own that a test may fill."""
    backing = directory / "small.img"
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", backing)
    try:
        with mounted(backing, directory / "small", "-o", "loop") as point:
            yield point
    finally:
        wait_until(lambda: not loops_below(directory))
        backing.unlink()


@dataclass
class Bench:
    """A directory with an image and two mount points, watched for what is left behind."""

    path: Path
    image: Path = field(init=False)
    live: Path = field(init=False)
    snap: Path = field(init=False)
    store: Path = field(init=False)

    def __post_init__(self) -> None:
        self.image, self.live, self.snap = self.path / "disk.img", self.path / "live", self.path / "snap"
        self.store = self.path / "store"

    @property
    def default_store(self) -> Path:
        return self.image.with_name(self.image.name + ".snapfs")

    @property
    def live_file(self) -> Path:
        return self.live / self.image.name

    @property
    def snap_file(self) -> Path:
        return self.snap / self.image.name

    def mount(self, *options: str | Path | int, **keywords: Any) -> Done:
        return snapfs("mount", self.image, self.live, self.snap, *options, **keywords)

    def status(self, **keywords: Any) -> dict[str, Any]:
        """What `snapfs status` prints; the command is run only where it matters who runs it."""
        if not keywords:
            return status_of(self.live)
        done = snapfs("status", self.live, "--json", **keywords)
        assert done.out, done.err
        status: dict[str, Any] = json.loads(done.out)
        return status

    def umount(self, **keywords: Any) -> Done:
        return snapfs("umount", self.live, **keywords)

    @contextmanager
    def mounted(self, *options: str | Path | int, **keywords: Any) -> Iterator[Done]:
        """Mounted and, at the end, unmounted without a complaint."""
        done = self.mount(*options, **keywords).ok()
        yield done
        self.umount(**keywords).ok()

    def traces(self, *, running: bool = False) -> dict[str, Any]:
        """All that a command could leave behind: files, mounts, processes, loop devices, a changed image."""
        return {
            "files": [] if running else sorted(str(path) for path in _files_below(self.path)),
            "mounts": mount_points_below(self.path),
            "processes": [] if running else sorted(processes_about(self.path)),
            "loops": loops_below(self.path),
            "image": _fingerprint(self.image),
        }

    @contextmanager
    def untouched(self, *, running: bool = False) -> Iterator[None]:
        """Nothing of all that may change; a running instance has files and processes come and go."""
        before = self.traces(running=running)
        yield
        after = self.traces(running=running)
        assert after == before, (before, after)

    def end_processes(self) -> None:
        """Whatever a failed test left: a killed instance, and the mounts that it served."""
        for pid in processes_about(self.path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for view in (self.snap, self.live):
            unmount(view, MNT_DETACH)
        wait_until(lambda: not processes_about(self.path))

    def clean_up(self) -> None:
        self.end_processes()
        for point in reversed(mount_points_below(self.path)):
            unmount(point, MNT_DETACH)
        for device in loops_below(self.path):
            detach_loop(Path(device))
        run("rm", "-rf", "--one-file-system", self.path)


def _files_below(path: Path) -> Iterator[Path]:
    """Never looks into mounts: a view has no business in the answer, and may be dead."""
    points = set(mount_points_below(path))
    for entry in os.scandir(path):
        yield Path(entry.path)
        if Path(entry.path) not in points and entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))


def processes_about(path: Path) -> list[int]:
    """Processes other than this one with `path` on their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if f"{path}/".encode() in Path("/proc", name, "cmdline").read_bytes():
                    found.append(int(name))
    return found


def loops_below(path: Path) -> list[str]:
    found = []
    for backing in Path("/sys/class/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if os.fsdecode(backing.read_bytes()).startswith(f"{path}/"):
                found.append(f"/dev/{backing.parent.parent.name}")
    return found


def _fingerprint(image: Path) -> tuple[int, str] | None:
    try:
        info = image.lstat()
    except FileNotFoundError:
        return None
    if not image.is_file():
        return info.st_mtime_ns, ""
    return info.st_mtime_ns, hashlib.sha256(image.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Room:
    """A mount namespace of its own, kept by a process that sleeps; commands enter it as root or as a user."""

    pid: int

    def before(self, user: int = 0) -> tuple[str, ...]:
        enter = ("nsenter", "--mount", f"--target={self.pid}")
        return (*enter, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else enter

    def run(self, *words: str | Path, user: int = 0) -> str:
        return run(*self.before(user), *words)


@contextmanager
def own_room(script: str) -> Iterator[Room]:
    """`script` (sh) arranges the mounts of the namespace."""
    shell = f"set -e\n{script}\necho done\nexec sleep infinity"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "done\n"
        yield Room(keeper.pid)
    finally:
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()


FUSE_FOR_ALL = """
mount -t tmpfs none /mnt
mknod /mnt/fuse c 10 229
chmod 666 /mnt/fuse
mount --bind /mnt/fuse /dev/fuse
: > /mnt/fuse.conf
mount --bind /mnt/fuse.conf /etc/fuse.conf
"""


def reachable_script() -> str:
    """Lets every user reach this project and its Python, also where they lie in root's home directory."""
    project = Path(__file__).resolve().parents[2]
    hidden: dict[Path, set[Path]] = {}
    for path in (project, Path(sys.prefix), Path(sys.base_prefix)):
        closed = [parent for parent in (*reversed(path.parents), path) if not parent.stat().st_mode & 0o001]
        if closed:
            hidden.setdefault(closed[0], set()).add(path)
    lines = []
    for number, (closed_path, paths) in enumerate(hidden.items()):
        aside = f"/mnt/hidden{number}"
        lines += [f"mkdir {aside}", f"mount --rbind '{closed_path}' {aside}"]
        lines += [f"mount -t tmpfs -o mode=755 none '{closed_path}'"]
        for path in sorted(paths):
            lines += [f"mkdir -p '{path}'", f"mount --bind '{aside}/{path.relative_to(closed_path)}' '{path}'"]
    return "\n".join(lines)
