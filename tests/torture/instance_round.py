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
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instance_judge import HANG_S, Fault, in_time, snapfs, until
from instance_model import SECTOR, Model
from instance_place import Place
from instance_plan import SERVERS, Plan

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import SetLimit

PIECE = 64 << 10


class Round:
    """Use it as `with Round(plan) as one: one.run()`."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self.plan, self._say = plan, say
        self._draw = random.Random(plan.seed ^ 0x5A5A)
        self._stack = contextlib.ExitStack()
        self._fd = -1
        self._stopped: list[int] = []
        self._lost_cut = False

    def __enter__(self) -> Round:
        content = self._draw.randbytes(self.plan.image_bytes)
        self.model = Model(content)
        with contextlib.ExitStack() as stack:
            self.place = stack.enter_context(Place(self.plan, content))
            stack.callback(self._let_go)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _let_go(self) -> None:
        self._close()
        self._cont()

    # --- commands --------------------------------------------------------------------------------------------

    def _snapfs(self, *words: str | Path, closed: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command; `closed` are redirections of a shell."""
        self._have_written()
        return snapfs(*words, closed=closed)

    def _have_written(self) -> None:
        """A child closes our descriptor, which waits with the writes for room that nobody would make meanwhile."""
        if self.plan.policy == "wait" and self._fd >= 0:
            self._do_sync()

    def _status(self) -> dict[str, Any]:
        done = self._snapfs("status", self.place.live, "--json")
        if not done.stdout:
            raise Fault(f"status does not answer: {done.stderr}")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def _mount(self) -> None:
        words = ["mount", self.place.image, self.place.live, self.place.snap, *self.plan.options]
        words += ["--store", self.place.store] if self.plan.keeps_store else []
        done = self._snapfs(*words)
        if done.returncode:
            raise Fault(f"it cannot be mounted: {done.stderr}")
        if "Carrying on" not in done.stdout:
            self.model.note_cut()
        self._fd = os.open(self.place.live / "disk.img", os.O_RDWR | os.O_CLOEXEC)

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
        foreign = self.place.drop_foreign()
        done = self._snapfs("umount", self.place.live)
        if done.returncode not in (0, 4):
            raise Fault(f"umount failed ({foreign}): {done.stderr}")
        if wrong := self.model.live.wrong(0, self.place.base_image.read_bytes()):
            raise Fault(f"the image is wrong at the end: {wrong}")
        until(lambda: not self.place.processes(), "the end of the processes")
        if self.place.mounts():
            raise Fault(f"mounts are left: {self.place.mounts()}")
        if not self.plan.keeps_store and self.place.store.exists():
            raise Fault(f"the store is left: {sorted(os.listdir(self.place.store))}")

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
        fd = os.open(self.place.snap_file, os.O_RDONLY | os.O_CLOEXEC)
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
            until(told, "word in status of a snapshot that cannot be read")

    def _do_cut(self) -> None:
        before = self._status()
        done = self._snapfs("snapshot", self.place.live, "--json")
        after = self._status()
        if done.returncode in (0, 4):
            self.model.note_sync(succeeded=True)
            self.model.note_cut()
        elif before["snapshot"]["id"] != after["snapshot"]["id"]:
            raise Fault(f"a cut was taken and said to have failed: {done.stderr}")

    def _do_release(self) -> None:
        unit = 1 << 20
        offset = self._draw.randrange(max(1, self.plan.image_bytes // unit)) * unit
        done = self._snapfs("release", self.place.live, f"--offset={offset}", f"--length={unit}")
        if not done.returncode:
            self.model.note_release(offset, unit)

    def _do_limit(self) -> None:
        self._snapfs("limit", self.place.live, self._draw.choice(["1M", "4M", "none"]))

    # --- faults ----------------------------------------------------------------------------------------------

    def _do_fill(self) -> None:
        self.place.fill()

    def _do_drain(self) -> None:
        """Without another process, see `_have_written`."""
        self.place.empty()
        with contextlib.suppress(SnapfsError):
            request(self.place.store, SetLimit(0))

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
        self._fd = os.open(self.place.live / "disk.img", os.O_RDWR | os.O_CLOEXEC)

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
            until(lambda: name in self._servers(), f"another {name} server")
            until(lambda: self._snap_answers(), "the snapshot view")
            return
        self._close()
        until(lambda: not self.place.processes(), "the end of the other servers")
        if wrong := self.model.settle(self.place.base_image.read_bytes()):
            raise Fault(f"after a kill the image is wrong: {wrong}")
        self.place.drop_foreign()
        self.place.empty()
        self._mount()

    def _snap_answers(self) -> bool:
        found = in_time("a look at the snapshot view", lambda: os.stat(self.place.snap_file))
        return not isinstance(found, OSError)

    def _do_foreign(self) -> None:
        self.place.add_foreign(self._draw)

    def _do_rename(self) -> None:
        self.place.rename()

    def _do_closed(self) -> None:
        closed = " ".join(f"{fd}>&-" for fd in range(3) if self._draw.random() < 0.5)
        done = self._snapfs("status", self.place.live, closed=closed)
        if done.returncode not in (0, 1 if "1>" in closed else 0, 3):
            raise Fault(f"status with {closed} ended with {done.returncode}: {done.stderr}")


def play(plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
    """One round; Fault tells what was wrong, and what the instance has logged."""
    with Round(plan, say) as one:
        try:
            one.run()
        except Fault as fault:
            raise Fault(f"{fault}\n{one.place.log()}") from fault
