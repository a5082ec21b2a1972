"""One round: a real instance, random work and random faults, judged after every step.

What is never right, whatever the faults were:
- the live view, or the image at the end, does not hold what was synced
- the snapshot shows something else than the cut; or an error although it says that it is whole
- a command that does not end in ten seconds, or ends with a traceback or something that is no sentence
- anything that is left behind: a mount, a process, a loop device, a store that nobody asked to keep
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instance_model import SECTOR, Model
from instance_plan import SERVERS, Plan

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import SetLimit

SNAPFS = Path(sys.executable).with_name("snapfs")
HANG_S = 10.0
DISK_BYTES = 112 << 20  # the ring, the image, and little else
PIECE = 64 << 10
FOREIGN = ("junk", ".hidden", "segments.old", "a\nb", "x\x1b[31m")


class Fault(AssertionError):
    """snapfs did what it must never do."""


def run(*words: str | Path) -> str:
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr}")
    return done.stdout.strip()


def in_time(what: str, work: Callable[[], Any], limit_s: float = HANG_S) -> Any:
    """The result of `work`, which may hang in the kernel; Fault when it does."""
    ended: list[Any] = []

    def go() -> None:
        try:
            ended.append(work())
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        raise Fault(f"{what} did not end in {limit_s:g} s")
    return ended[0]


class Round:
    """Use it as `with Round(plan) as one: one.run()`."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self.plan, self._say = plan, say
        self._draw = random.Random(plan.seed ^ 0x5A5A)
        self._stack = contextlib.ExitStack()
        self._fd = -1
        self._stopped: list[int] = []
        self._lost_cut = False

    # --- ground ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Round:
        with contextlib.ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="snapfs-torture-", dir="/var/tmp"))
            stack.callback(shutil.rmtree, base)
            disk, self._top = base / "disk", base / "top"
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", disk)
            self._top.mkdir()
            run("mount", "-o", "loop", disk, self._top)
            stack.callback(run, "umount", self._top)
            self._home = self._top / "home"
            for name in ("live", "snap"):
                (self._home / name).mkdir(parents=True)
            content = self._draw.randbytes(self.plan.image_bytes)
            self.model = Model(content)
            self._base_image.write_bytes(content)
            if self.plan.bad_sectors:
                stack.enter_context(self._exported())
            stack.callback(self._tear_down)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        """The image through QEMU, which gives errors where sectors are bad."""
        (self._home / "disk.img").touch()
        faults = ",".join(
            f"inject-error.{no}.event=none,inject-error.{no}.iotype=read,inject-error.{no}.errno=5,"
            f"inject-error.{no}.sector={sector}"
            for no, sector in enumerate(self.plan.bad_sectors)
        )
        words = ["--blockdev", f"file,node-name=base,filename={self._base_image}"]
        words += ["--blockdev", f"blkdebug,node-name=disk,image=base,{faults}"]
        words += ["--export", f"fuse,id=e,node-name=disk,mountpoint={self._image},writable=on,growable=off"]
        with subprocess.Popen(["qemu-storage-daemon", *words], stderr=subprocess.DEVNULL) as daemon:
            try:
                self._until(lambda: self._image.stat().st_size >= self.plan.image_bytes, "the export")
                yield
            finally:
                daemon.terminate()

    def _tear_down(self) -> None:
        self._close()
        self._cont()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in reversed(self._mounts()):
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
        self._until(lambda: not self._processes(), "the end of the servers")

    @property
    def _image(self) -> Path:
        return self._home / "disk.img"

    @property
    def _base_image(self) -> Path:
        """The file that holds the bytes."""
        return self._home / "base.img" if self.plan.bad_sectors else self._image

    @property
    def _live(self) -> Path:
        return self._home / "live"

    @property
    def _snap_file(self) -> Path:
        return self._home / "snap" / "disk.img"

    @property
    def _store(self) -> Path:
        return self._top / "store" if self.plan.keeps_store else self._home / "disk.img.snapfs"

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]
        points = [os.fsdecode(line.split(b" ")[4]) for line in lines if b"fuse.snapfs" in line]
        return [point for point in points if point.startswith(f"{self._top}/")]

    def _processes(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = Path("/proc", name, "cmdline").read_bytes()
                    if f"{self._top}/".encode() in words and b"snapfs" in words.split(b"\0")[1:2][0]:
                        found.append(int(name))
        return found

    def _until(self, condition: Callable[[], object], what: str, limit_s: float = HANG_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise Fault(f"{what} did not come in {limit_s:g} s")
            time.sleep(0.01)

    def log(self) -> str:
        """The last lines of the instance's log, if it still has one."""
        try:
            return "\n".join((self._store / "log").read_text(errors="replace").splitlines()[-25:])
        except OSError:
            return ""

    # --- commands --------------------------------------------------------------------------------------------

    def _snapfs(self, *words: str | Path, closed: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command; `closed` are redirections of a shell."""
        self._have_written()
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *map(os.fspath, (SNAPFS, *words))]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(timeout=HANG_S * 2)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Fault(f"snapfs {words[0]} did not end in {HANG_S * 2:g} s") from None
        if "Traceback" in err or "internal error" in err:
            raise Fault(f"snapfs {words[0]} broke: {err[-800:]}")
        if process.returncode not in (0, 4) and not closed and not err.startswith("snapfs: ") and not out:
            raise Fault(f"snapfs {words[0]} failed with {process.returncode} and no sentence: {err!r}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _have_written(self) -> None:
        """A child closes our descriptor, which waits with the writes for room that nobody would make meanwhile."""
        if self.plan.policy == "wait" and self._fd >= 0:
            self._do_sync()

    def _status(self) -> dict[str, Any]:
        done = self._snapfs("status", self._live, "--json")
        if not done.stdout:
            raise Fault(f"status does not answer: {done.stderr}")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def _mount(self) -> None:
        words = ["mount", self._image, self._live, self._home / "snap", *self.plan.options]
        words += ["--store", self._store] if self.plan.keeps_store else []
        done = self._snapfs(*words)
        if done.returncode:
            raise Fault(f"it cannot be mounted: {done.stderr}")
        if "Carrying on" not in done.stdout:
            self.model.note_cut()
        self._fd = os.open(self._live / "disk.img", os.O_RDWR | os.O_CLOEXEC)

    def _close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    # --- the round -------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._mount()
        for number, step in enumerate(self.plan.steps):
            self._say(f"{number} {step}")
            getattr(self, "_do_" + step.replace("-", "_"))()
        self._do_drain()
        self._do_sync()
        self._check_snapshot()
        self._end()

    def _end(self) -> None:
        self._close()
        foreign = self._drop_foreign()
        done = self._snapfs("umount", self._live)
        if done.returncode not in (0, 4):
            raise Fault(f"umount failed ({foreign}): {done.stderr}")
        if wrong := self.model.live.wrong(0, self._base_image.read_bytes()):
            raise Fault(f"the image is wrong at the end: {wrong}")
        self._until(lambda: not self._processes(), "the end of the processes")
        if self._mounts():
            raise Fault(f"mounts are left: {self._mounts()}")
        if not self.plan.keeps_store and self._store.exists():
            raise Fault(f"the store is left: {sorted(os.listdir(self._store))}")

    def _do_write(self) -> None:
        unit = 4096 if self.plan.bad_sectors else SECTOR
        length = self._draw.choice([1, 1, 8, 8, 64, 512]) * max(unit, SECTOR)
        length = min(length, self.plan.image_bytes // unit * unit)
        offset = self._draw.randrange((self.plan.image_bytes - length) // unit + 1) * unit
        data = self._draw.randbytes(length)
        self.model.note_write(offset, data)
        ended = self._outcome("a write", lambda: os.pwrite(self._fd, data, offset))
        if ended != length:
            self.model.note_sync(succeeded=False)

    def _do_sync(self) -> None:
        ended = self._outcome("a sync", lambda: os.fsync(self._fd))
        self.model.note_sync(succeeded=not isinstance(ended, OSError))

    def _outcome(self, what: str, work: Callable[[], Any]) -> Any:
        """Writes may have to wait for room: then room is made, and they must go on."""
        try:
            ended = in_time(what, work, 3.0 if self.plan.policy == "wait" else HANG_S)
        except Fault:
            if self.plan.policy != "wait":
                raise
            ended = self._after_room(what)
        if isinstance(ended, OSError) and ended.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise Fault(f"{what} failed: {ended}")
        if isinstance(ended, OSError) and self.plan.policy != "break-write" and not self.plan.bad_sectors:
            raise Fault(f"{what} failed although the snapshot is to give way or writes are to wait: {ended}")
        return ended

    def _after_room(self, what: str) -> Any:
        self._do_drain()
        return in_time(f"{what}, after room was made,", lambda: os.fsync(self._fd))

    def _do_read_live(self) -> None:
        data = in_time("a read of the live view", lambda: os.pread(self._fd, self.plan.image_bytes, 0))
        if isinstance(data, OSError):
            if not self.plan.bad_sectors:
                raise Fault(f"the live view cannot be read: {data}")
            return
        if wrong := self.model.live.wrong(0, data):
            raise Fault(f"the live view is wrong: {wrong}")

    def _do_read_snap(self) -> None:
        self._check_snapshot()

    def _check_snapshot(self) -> None:
        """Every piece of it, past the page cache: right, or an error that it has told of."""
        failed: set[int] = set()
        for offset in range(0, self.plan.image_bytes, PIECE):
            data = in_time("a read of the snapshot", lambda offset=offset: self._read_snap(offset))
            if isinstance(data, OSError):
                failed.add(data.errno or 0)
                self._judge_snap_error(data, offset)
            elif wrong := self.model.snap.wrong(offset, data):
                raise Fault(f"the snapshot is wrong at {offset}: {wrong}")
        if errno.EIO in failed:
            self._expect_trouble()

    def _read_snap(self, offset: int) -> bytes:
        fd = os.open(self._snap_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, PIECE, offset)
        finally:
            os.close(fd)

    def _judge_snap_error(self, error: OSError, offset: int) -> None:
        if error.errno == errno.ENODATA:
            if self.model.released.isdisjoint(range(offset // SECTOR, (offset + PIECE) // SECTOR)):
                raise Fault(f"the snapshot says at {offset} that it was released, and it was not")
        elif error.errno != errno.EIO:
            raise Fault(f"the snapshot cannot be read at {offset}: {error}")

    def _expect_trouble(self) -> None:
        def told() -> bool:
            snapshot = self._status()["snapshot"]
            return snapshot.get("state") != "active" or bool(snapshot["lost_blocks"])

        if not self.plan.bad_sectors:
            self._until(told, "word in status of a snapshot that cannot be read")

    def _do_cut(self) -> None:
        before = self._status()
        done = self._snapfs("snapshot", self._live, "--json")
        after = self._status()
        if done.returncode in (0, 4):
            self.model.note_sync(succeeded=True)
            self.model.note_cut()
        elif before["snapshot"]["id"] != after["snapshot"]["id"]:
            raise Fault(f"a cut was taken and said to have failed: {done.stderr}")

    def _do_release(self) -> None:
        unit = 1 << 20
        offset = self._draw.randrange(max(1, self.plan.image_bytes // unit)) * unit
        done = self._snapfs("release", self._live, f"--offset={offset}", f"--length={unit}")
        if not done.returncode:
            self.model.note_release(offset, unit)

    def _do_limit(self) -> None:
        self._snapfs("limit", self._live, self._draw.choice(["1M", "4M", "none"]))

    # --- faults ----------------------------------------------------------------------------------------------

    def _do_fill(self) -> None:
        """To the last block, as anybody else on that disk might."""
        with (self._top / "filler").open("ab", buffering=0) as file:
            for size_bytes in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size_bytes))

    def _do_drain(self) -> None:
        """Without another process, see `_have_written`."""
        (self._top / "filler").unlink(missing_ok=True)
        with contextlib.suppress(SnapfsError):
            request(self._store, SetLimit(0))

    def _servers(self) -> dict[str, int]:
        supervisor = self._status()["pid"]
        found = {"supervisor": supervisor}
        for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("snapfs-")
                found[next((server for server in SERVERS if name and server.startswith(name)), name)] = int(pid)
        return found

    def _do_stop(self) -> None:
        """A stopped process: commands end all the same, and everything goes on when it does."""
        # A child that closes it would wait for the live server.
        self._have_written()
        self._close()
        self._stopped = [self._draw.choice(list(self._servers().values()))]
        os.kill(self._stopped[0], signal.SIGSTOP)
        try:
            started = time.monotonic()
            self._snapfs("status")
            if time.monotonic() - started > HANG_S:
                raise Fault("status of all took too long beside a stopped process")
        finally:
            self._cont()
        self._fd = os.open(self._live / "disk.img", os.O_RDWR | os.O_CLOEXEC)

    def _cont(self) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped = []

    def _do_kill(self) -> None:
        servers = self._servers()
        # An image that QEMU exports is always modified now, so no snapshot of it can be carried on.
        name = self._draw.choice(("compactor", "snapshot") if self.plan.bad_sectors else SERVERS)
        if name != "all" and name not in servers:
            raise Fault(f"there is no {name} server")
        for pid in servers.values() if name == "all" else [servers[name]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if name in ("compactor", "snapshot"):
            self._until(lambda: name in self._servers(), f"another {name} server")
            self._until(lambda: self._snap_answers(), "the snapshot view")
            return
        self._close()
        self._until(lambda: not self._processes(), "the end of the other servers")
        if wrong := self.model.settle(self._base_image.read_bytes()):
            raise Fault(f"after a kill the image is wrong: {wrong}")
        self._drop_foreign()
        (self._top / "filler").unlink(missing_ok=True)
        self._mount()

    def _snap_answers(self) -> bool:
        found = in_time("a look at the snapshot view", lambda: os.stat(self._snap_file))
        return not isinstance(found, OSError)

    def _do_foreign(self) -> None:
        """Something of somebody else in the store."""
        path = self._store / self._draw.choice(FOREIGN)
        if os.path.lexists(path):
            return  # it may be a FIFO, which would wait for a reader
        with contextlib.suppress(OSError):
            kind = self._draw.randrange(4)
            if kind == 0:
                path.write_bytes(b"foreign")
            elif kind == 1:
                path.mkdir()
            elif kind == 2:
                path.symlink_to("/etc/passwd")
            else:
                os.mkfifo(path)

    def _drop_foreign(self) -> list[str]:
        dropped = [name for name in FOREIGN if os.path.lexists(self._store / name)]
        for name in dropped:
            path = self._store / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return dropped

    def _do_rename(self) -> None:
        """The directory above the views, the image and perhaps the store gets another name."""
        if self.plan.bad_sectors:
            return  # the export is known to QEMU by its path
        other = self._top / ("home" if self._home.name != "home" else "moved")
        self._home.rename(other)
        self._home = other

    def _do_closed(self) -> None:
        closed = " ".join(f"{fd}>&-" for fd in range(3) if self._draw.random() < 0.5)
        done = self._snapfs("status", self._live, closed=closed)
        if done.returncode not in (0, 1 if "1>" in closed else 0, 3):
            raise Fault(f"status with {closed} ended with {done.returncode}: {done.stderr}")


def play(plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
    """One round; Fault tells what was wrong, and what the instance has logged."""
    with Round(plan, say) as one:
        try:
            one.run()
        except Fault as fault:
            raise Fault(f"{fault}\n{one.log()}") from fault
