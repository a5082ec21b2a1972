"""The filesystems of an image of the campaign of nights: where they are, and what is done to their files by day."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cut_rig import MIB, MKFS, CutGround
from mounted import run, unmount

from tests.machine import MNT_DETACH

# The smallest that mkfs makes of each, and room for the files.
IMAGE_MIB = {"ext4": 64, "xfs": 300, "btrfs": 192, "disk": 100}
_MKFS = {**MKFS, "ntfs": ("mkfs.ntfs", "-q", "-F", "-Q")}
_DEFRAGMENT = {"ext4": ("e4defrag",), "xfs": ("xfs_fsr",), "btrfs": ("btrfs", "filesystem", "defragment", "-r")}
_MOUNT = {"ntfs": ("-t", "ntfs-3g")}
# A disk: a GPT with two partitions of the same size, in sectors.
_DISK = "label: gpt\nstart=2048, size=98304\nstart=100352, size=98304\n"
_PART_BYTES = 98304 * 512
_PART_OFFSETS = (2048 * 512, 100352 * 512)


class Filesystems:
    """`parts`: where each is, by offset and size; `files`: those of each, by their hashes, as of the last day."""

    def __init__(self, ground: CutGround, draw: random.Random) -> None:
        self._ground, self._draw = ground, draw
        self.parts: dict[tuple[int, int], str] = {}
        self.files: dict[str, dict[str, str]] = {}

    def make(self, filesystem: str, name: str) -> Path:
        """The image, of that name on the ground."""
        image = self._ground.image(IMAGE_MIB[filesystem] * MIB, name)
        if filesystem != "disk":
            self.parts = {(0, image.stat().st_size): filesystem}
        else:
            subprocess.run(["sfdisk", "-q", image], input=_DISK, text=True, check=True, timeout=20)
            kinds = ("ntfs", "ext4")
            self.parts = {(at, _PART_BYTES): kind for at, kind in zip(_PART_OFFSETS, kinds, strict=True)}
        for part, kind in self.parts.items():
            device = self.attached(image, part)
            run(*_MKFS[kind], device)
            self._ground.drop_loop(device)
        return image

    def attached(self, path: Path, part: tuple[int, int], *options: str) -> Path:
        offset, length = part
        return self._ground.loop(path, f"--offset={offset}", f"--sizelimit={length}", *options)

    @contextlib.contextmanager
    def mounted(self, path: Path, part: tuple[int, int], kind: str, *options: str) -> Iterator[Path]:
        device = self.attached(path, part, *options)
        try:
            point = self._ground.mount(device, *_MOUNT.get(kind, ()), *(("-o", "ro") if options else ()))
            try:
                yield point
            finally:
                run("umount", point)
        finally:
            self._ground.drop_loop(device)

    def live_on(self, path: Path) -> None:
        """A day of the live view, or of an image that is not mounted."""
        for part, kind in self.parts.items():
            with self.mounted(path, part, kind) as point:
                for _ in range(self._draw.randrange(2, 10)):
                    self._act(point)
                if kind in _DEFRAGMENT and self._draw.random() < 0.2:
                    subprocess.run([*_DEFRAGMENT[kind], point], capture_output=True, check=False, timeout=60)
                if self._draw.random() < 0.2:
                    trim(point)
                self.files[kind] = files_in(point)
            if kind == "ntfs":
                # Its driver leaves that to whoever takes the disk away.
                run("sync", path)

    def thin_out(self, path: Path) -> None:
        """Some files go, and what they had is discarded."""
        for part, kind in self.parts.items():
            with self.mounted(path, part, kind) as point:
                files = sorted(file for file in point.iterdir() if file.is_file())
                for file in self._draw.sample(files, len(files) // 3):
                    file.unlink()
                # Until then a log may bring them back.
                run("sync", "-f", point)
                trim(point)
                self.files[kind] = files_in(point)
            if kind == "ntfs":
                run("sync", path)

    def _act(self, point: Path) -> Path:
        """Something is done to a file, which is returned."""
        files = sorted(path for path in point.iterdir() if path.is_file())
        kind, length = self._draw.random(), self._draw.choice((10, 5000, 90_000, 700_000))
        if kind < 0.3 and len(files) > 6:
            path = self._draw.choice(files)
            path.unlink()
        elif kind < 0.7 or not files:
            path = point / f"file{self._draw.randrange(60)}"
            path.write_bytes(self._draw.randbytes(length))
        elif kind < 0.75:
            path = self._draw.choice(files)
            os.truncate(path, path.stat().st_size + length)
        else:
            path = self._draw.choice(files)
            with path.open("r+b") as file:
                file.seek(self._draw.randrange(path.stat().st_size + 1))
                file.write(self._draw.randbytes(length))
                if kind > 0.95:
                    # Not every driver can.
                    subprocess.run(["fallocate", "-p", "-l", "8192", path], capture_output=True, check=False)
                file.truncate(self._draw.randrange(file.tell() + 1) if kind > 0.9 else None)
        return path

    def half_a_day(self, path: Path, part: tuple[int, int], kind: str, stack: contextlib.ExitStack) -> dict[str, str]:
        """Files that were synced and not touched since, of a filesystem that nobody unmounts before the end."""
        device = self.attached(path, part)
        stack.callback(self._ground.drop_loop, device)
        point = self._ground.mount(device, name=f"fs-{kind}")
        stack.callback(unmount, point, MNT_DETACH)
        for _ in range(self._draw.randrange(1, 6)):
            self._act(point)
        run("sync", "-f", point)
        synced = files_in(point)
        for _ in range(self._draw.randrange(6)):
            synced.pop(self._act(point).name, None)
        return synced

    def swap(self, path: Path) -> None:
        """The partitions change places."""
        if len(self.parts) < 2:
            return
        with path.open("r+b") as file:
            content = []
            for offset, length in self.parts:
                file.seek(offset)
                content.append(file.read(length))
            for (offset, _), data in zip(self.parts, reversed(content), strict=True):
                file.seek(offset)
                file.write(data)
        self.parts = dict(zip(self.parts, reversed(self.parts.values()), strict=True))


def trim(point: Path) -> None:
    """Not every driver can, and not everything below passes it on."""
    subprocess.run(["fstrim", point], capture_output=True, check=False, timeout=60)


def files_in(point: Path) -> dict[str, str]:
    """The files of a filesystem by their hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in point.iterdir() if path.is_file()}
