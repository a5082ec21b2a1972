"""Programs that back one image up night after night: what `NightsBench` asks of each.

`start` makes the program's image equal to the master. `backup` is one night, the first a full one; `restored` is the
image of the last night as the program gives it back, a raw file.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from bench.image import Master, run
from bench.imagers import partclone_command
from bench.peers.base import PeerError, end, is_mounted, unmount, wait_until
from bench.peers.snapfs import PROGRAM, Snapfs
from bench.rows import BORG, PARTCLONE, QEMU, RESTIC, SNAPFS


class Nightly(ABC):
    name = ""

    def __init__(self, folder: Path, master: Master) -> None:
        self.folder = folder
        self.master = master
        # What the guest sees, as a raw file: the image itself, or one that is written with it.
        self.image = folder / "image.img"
        self.backups = folder / "backups"
        self.restored_path = folder / "restored.img"
        folder.mkdir()

    def start(self) -> None:
        run("cp", "--sparse=always", "--reflink=never", str(self.master.path), str(self.image))
        run("mkdir", str(self.backups))

    def writable(self) -> list[Path]:
        """Where the guest's writes go, each of them."""
        return [self.image]

    def read_from(self) -> Path:
        """The file that a night reads."""
        return self.image

    @abstractmethod
    def backup(self, night: int) -> None: ...

    @abstractmethod
    def restored(self, night: int) -> Path: ...

    def stop(self) -> None:
        run("rm", "-rf", str(self.backups), str(self.image), str(self.restored_path))


class BrowsedNightly(Nightly):
    """A program that shows its backups by a mount, where the last night is looked at: what it restores has no holes,
    or takes minutes to have them, and a TiB of zeros has no room."""

    browsed: subprocess.Popen[bytes] | None = None

    @property
    def browse_point(self) -> Path:
        return self.folder / "browsed"

    def browse(self, *command: str) -> None:
        """`command` serves the mount at `browse_point` for as long as it runs."""
        self.browse_point.mkdir()
        silent = subprocess.DEVNULL
        self.browsed = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent)
        wait_until(lambda: is_mounted(self.browse_point), " ".join(command[-3:]), self.browsed)

    def stop(self) -> None:
        unmount(self.browse_point)
        end(self.browsed)
        self.browsed = None
        super().stop()


class SnapfsNightly(Nightly):
    """Mounted, as a machine in use is; each night makes a cut of its own."""

    name = SNAPFS

    def __init__(self, folder: Path, master: Master) -> None:
        super().__init__(folder, master)
        self.mounted = Snapfs(folder / "mounted", master)

    def start(self) -> None:
        run("mkdir", str(self.backups))
        self.mounted.start()
        self.image = self.mounted.image

    def writable(self) -> list[Path]:
        return [self.mounted.live]

    def backup(self, night: int) -> None:
        run(*self.command())

    def command(self) -> tuple[str, ...]:
        return (str(PROGRAM), "backup", "-q", "--cut", str(self.mounted.live_folder), f"{self.backups}/")

    def restored(self, night: int) -> Path:
        run(str(PROGRAM), "restore", "-q", str(self.backups), str(self.restored_path))
        return self.restored_path

    def stop(self) -> None:
        self.mounted.close()
        super().stop()


class QemuNightly(Nightly):
    """A qcow2 disk with a persistent dirty bitmap, exported over FUSE, and block jobs; raw disks can have none.

    Nothing is started for a night: the process that serves the disk makes the backup.
    """

    name = QEMU
    server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        super().start()
        self.disk, self.live = self.folder / "disk.qcow2", self.folder / "live.img"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self.image), str(self.disk))
        self.live.touch()
        # A socket's path may have 107 bytes, which the folder of the bench alone may exceed.
        self.rendezvous = tempfile.TemporaryDirectory(prefix="snapfs-bench-")
        self.socket = Path(self.rendezvous.name, "monitor")
        node = f"qcow2,node-name=disk,file.driver=file,file.filename={self.disk}"
        self.server = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", node,
             "--export", f"fuse,id=e,node-name=disk,mountpoint={self.live},writable=on",
             "--chardev", f"socket,id=c,path={self.socket},server=on,wait=off", "--monitor", "chardev=c"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: is_mounted(self.live) and self.socket.exists(), "qemu-storage-daemon", self.server)
        self.monitor = Monitor(self.socket)
        self.monitor.ask("block-dirty-bitmap-add", {"node": "disk", "name": "nightly", "persistent": True})

    def writable(self) -> list[Path]:
        return [self.live, self.image]

    def read_from(self) -> Path:
        return self.disk

    def backup(self, night: int) -> None:
        target = self.backup_path(night)
        below = ["-b", str(self.backup_path(night - 1)), "-F", "qcow2"] if night else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *below, str(target), str(self.master.image_bytes))
        words: dict[str, Any] = {"sync": "bitmap", "bitmap": "nightly", "bitmap-mode": "on-success"}
        node: dict[str, Any] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(target)}}
        if not night:
            words = {"sync": "full"}
            self.monitor.ask("block-dirty-bitmap-clear", {"node": "disk", "name": "nightly"})
        self.monitor.ask("blockdev-add", {**node, "node-name": "target", "backing": None})
        self.monitor.job("blockdev-backup", {"device": "disk", "target": "target", **words})
        self.monitor.ask("blockdev-del", {"node-name": "target"})

    def backup_path(self, night: int) -> Path:
        return self.backups / f"{night}.qcow2"

    def restored(self, night: int) -> Path:
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(self.backup_path(night)), str(self.restored_path))
        return self.restored_path

    def stop(self) -> None:
        end(self.server)
        self.server = None
        unmount(self.folder / "live.img")
        (self.folder / "disk.qcow2").unlink(missing_ok=True)
        super().stop()


class Monitor:
    """QMP, QEMU's machine protocol: a line of JSON each way."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.ask("qmp_capabilities", {})

    def ask(self, command: str, arguments: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        answer = self._next("return", "error")
        if "error" in answer:
            raise PeerError(f"{command}: {answer['error']['desc']}")

    def job(self, command: str, arguments: dict[str, Any]) -> None:
        """Until it is over."""
        self.ask(command, {"job-id": "night", **arguments})
        while (event := self._next("event"))["event"] != "BLOCK_JOB_COMPLETED":
            pass
        if error := event["data"].get("error"):
            raise PeerError(f"{command}: {error}")

    def _next(self, *kinds: str) -> dict[str, Any]:
        for line in self._lines:
            answer: dict[str, Any] = json.loads(line)
            if any(kind in answer for kind in kinds):
                return answer
        raise PeerError("qemu-storage-daemon has closed its monitor")


class BorgNightly(BrowsedNightly):
    """Chunks of 4 MiB at fixed places, as its manual advises for disk images; it reads the whole image."""

    name = BORG

    def start(self) -> None:
        super().start()
        self.borg("init", "--encryption=none", str(self.repository))

    @property
    def repository(self) -> Path:
        return self.backups / "repository"

    def command(self, *words: str) -> list[str]:
        return ["env", f"BORG_BASE_DIR={self.backups / 'home'}", "borg", *words]

    def borg(self, *words: str) -> None:
        run(*self.command(*words))

    def backup(self, night: int) -> None:
        self.borg(
            "create", "--sparse", "--chunker-params=fixed,4194304", f"{self.repository}::{night}", str(self.image)
        )

    def restored(self, night: int) -> Path:
        self.browse(*self.command("mount", "-f", f"{self.repository}::{night}", str(self.browse_point)))
        return self.browse_point / str(self.image).lstrip("/")


class ResticNightly(BrowsedNightly):
    """A local repository; it reads the whole image, whose time has changed."""

    name = RESTIC

    def start(self) -> None:
        super().start()
        self.restic("init")

    def command(self, *words: str) -> list[str]:
        repository = (f"RESTIC_REPOSITORY={self.backups / 'repository'}", "RESTIC_PASSWORD=bench")
        cache = f"RESTIC_CACHE_DIR={self.backups / 'cache'}"
        return ["env", *repository, cache, "restic", *words]

    def restic(self, *words: str) -> None:
        run(*self.command("-q", *words))

    def backup(self, night: int) -> None:
        self.restic("backup", str(self.image))

    def restored(self, night: int) -> Path:
        self.browse(*self.command("mount", str(self.browse_point)))
        return self.browse_point / "snapshots" / "latest" / str(self.image).lstrip("/")


class PartcloneNightly(Nightly):
    """Used blocks, all of them each night: it knows no increment."""

    name = PARTCLONE

    def backup(self, night: int) -> None:
        run(*partclone_command(self.image, self.dest(night)))

    def dest(self, night: int) -> Path:
        return self.backups / f"{night}.pcl"

    def restored(self, night: int) -> Path:
        """Onto a device: into a file only what the disk has room for, were it without holes."""
        dest, log = self.dest(night), f"{self.dest(night)}.log"
        run("truncate", "-s", str(self.master.image_bytes), str(self.restored_path))
        device = run("losetup", "--find", "--show", str(self.restored_path)).strip()
        try:
            run("partclone.extfs", "-r", "-q", "-L", log, "-s", str(dest), "-o", device)
            run("blockdev", "--flushbufs", device)
        finally:
            run("losetup", "-d", device)
        return self.restored_path


NIGHTLIES: tuple[type[Nightly], ...] = (SnapfsNightly, QemuNightly, BorgNightly, ResticNightly, PartcloneNightly)
