"""Where a round takes place: a disk of its own with the image, its views and its store, and what others do there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from instance_judge import until
from instance_plan import Plan

DISK_BYTES = 112 << 20  # the ring, the image, and little else
FOREIGN = ("junk", ".hidden", "segments.old", "a\nb", "x\x1b[31m")


def run(*words: str | Path) -> str:
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr}")
    return done.stdout.strip()


class Place:
    """Use it as `with Place(plan, content) as place`. At its end the servers of the instance are gone as well."""

    def __init__(self, plan: Plan, content: bytes) -> None:
        self._plan, self._content = plan, content
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Place:
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
            self.base_image.write_bytes(self._content)
            if self._plan.bad_sectors:
                stack.enter_context(self._exported())
            stack.callback(self._end_servers)
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
            for no, sector in enumerate(self._plan.bad_sectors)
        )
        words = ["--blockdev", f"file,node-name=base,filename={self.base_image}"]
        words += ["--blockdev", f"blkdebug,node-name=disk,image=base,{faults}"]
        words += ["--export", f"fuse,id=e,node-name=disk,mountpoint={self.image},writable=on,growable=off"]
        with subprocess.Popen(["qemu-storage-daemon", *words], stderr=subprocess.DEVNULL) as daemon:
            try:
                until(lambda: self.image.stat().st_size >= self._plan.image_bytes, "the export")
                yield
            finally:
                daemon.terminate()

    def _end_servers(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
        until(lambda: not self.processes(), "the end of the servers")

    # --- what is where ---------------------------------------------------------------------------------------

    @property
    def image(self) -> Path:
        return self._home / "disk.img"

    @property
    def base_image(self) -> Path:
        """The file that holds the bytes."""
        return self._home / "base.img" if self._plan.bad_sectors else self.image

    @property
    def live(self) -> Path:
        return self._home / "live"

    @property
    def snap(self) -> Path:
        return self._home / "snap"

    @property
    def snap_file(self) -> Path:
        return self.snap / "disk.img"

    @property
    def store(self) -> Path:
        return self._top / "store" if self._plan.keeps_store else self._home / "disk.img.snapfs"

    def mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]
        points = [os.fsdecode(line.split(b" ")[4]) for line in lines if b"fuse.snapfs" in line]
        return [point for point in points if point.startswith(f"{self._top}/")]

    def processes(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = Path("/proc", name, "cmdline").read_bytes()
                    if f"{self._top}/".encode() in words and b"snapfs" in words.split(b"\0")[1:2][0]:
                        found.append(int(name))
        return found

    def log(self) -> str:
        """The last lines of the instance's log, if it still has one."""
        try:
            return "\n".join((self.store / "log").read_text(errors="replace").splitlines()[-25:])
        except OSError:
            return ""

    # --- what others do there --------------------------------------------------------------------------------

    def fill(self) -> None:
        """To the last block, as anybody else on that disk might."""
        with (self._top / "filler").open("ab", buffering=0) as file:
            for size_bytes in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size_bytes))

    def empty(self) -> None:
        """What filled it is gone."""
        (self._top / "filler").unlink(missing_ok=True)

    def add_foreign(self, draw: random.Random) -> None:
        """Something of somebody else in the store."""
        path = self.store / draw.choice(FOREIGN)
        if os.path.lexists(path):
            return  # it may be a FIFO, which would wait for a reader
        with contextlib.suppress(OSError):
            kind = draw.randrange(4)
            if kind == 0:
                path.write_bytes(b"foreign")
            elif kind == 1:
                path.mkdir()
            elif kind == 2:
                path.symlink_to("/etc/passwd")
            else:
                os.mkfifo(path)

    def drop_foreign(self) -> list[str]:
        dropped = [name for name in FOREIGN if os.path.lexists(self.store / name)]
        for name in dropped:
            path = self.store / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return dropped

    def rename(self) -> None:
        """The directory above the views, the image and perhaps the store gets another name."""
        if self._plan.bad_sectors:
            return  # the export is known to QEMU by its path
        other = self._top / ("home" if self._home.name != "home" else "moved")
        self._home.rename(other)
        self._home = other
