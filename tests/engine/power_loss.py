"""The disk after a power loss: what it would hold, whatever the processes had stored by then."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from changes import Patches
from engine_rig import QuickFiles, Rig

from cow.disk.files import Files

PAGE_BYTES = 4096


class Disk:
    """What would be on the disk: contents as of the last fsync of each file, names as of that of each directory.

    When power is lost, whatever was changed since is there or not, page by page, some pages as they were at
    a moment between.
    """

    def __init__(self, rig: Rig, rng: random.Random, patches: Patches) -> None:
        self._root, self._rng = rig.image_path.parent, rng
        self._contents: dict[int, bytes] = {}
        self._between: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        # What a name that was removed or replaced since its directory was synced stood for.
        self._gone: dict[Path, bytes] = {}
        self._keep(rig.image_fd)
        self._keep_names(self._root)
        self._watch(patches)

    def _watch(self, patches: Patches) -> None:
        def synced(real: Any) -> Any:
            def watched(files: Files, fd: int) -> None:
                real(files, fd)
                if not os.path.isdir(f"/proc/self/fd/{fd}"):
                    self._keep(fd)

            return watched

        def directory_synced(real: Any) -> Any:
            def watched(files: Files, path: Path) -> None:
                real(files, path)
                self._keep_names(path)

            return watched

        def unlinked(real: Any) -> Any:
            def watched(path: Any, *, dir_fd: int | None = None) -> None:
                base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
                self._forget(base / path)
                real(path, dir_fd=dir_fd)

            return watched

        def renamed(real: Any) -> Any:
            def watched(source: Any, target: Any) -> None:
                self._forget(Path(target))
                real(source, target)

            return watched

        patches.set(QuickFiles, "sync", synced)
        patches.set(QuickFiles, "sync_data", synced)
        patches.set(QuickFiles, "sync_directory", directory_synced)
        patches.set(os, "unlink", unlinked)
        patches.set(os, "rename", renamed)

    def _keep(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        self._contents[inode] = Path(f"/proc/self/fd/{fd}").read_bytes()
        self._between.pop(inode, None)

    def _forget(self, path: Path) -> None:
        """The name is about to go; its inode number may soon stand for another file."""
        if path.is_file():
            inode = path.stat().st_ino
            self._between.pop(inode, None)
            content = self._contents.pop(inode, None)
            if content is not None:
                self._gone.setdefault(path, content)

    def _keep_names(self, path: Path) -> None:
        self._gone = {name: content for name, content in self._gone.items() if name.parent != path}
        self._names[path] = {entry.name: entry.inode() for entry in os.scandir(path)}

    def look(self) -> None:
        """Remember the files as they are now: some of their pages may reach the disk like that."""
        for path in self._root.rglob("*"):
            if path.is_file():
                self._between[path.stat().st_ino] = path.read_bytes()

    def copy_to(self, target: Path) -> None:
        """A disk after a power loss at this moment."""
        self._copy(self._root, target)

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir()
        now = {entry.name: entry.inode() for entry in os.scandir(source)} if source.is_dir() else {}
        names = self._rng.choice([now, self._names.get(source, {})])
        for name, inode in names.items():
            path = source / name
            if path.is_dir() or (path in self._names and name not in now):
                self._copy(path, target / name)
            elif now.get(name) == inode and path not in self._gone:
                (target / name).write_bytes(self._mixed(path, inode))
                info = path.stat()
                os.utime(target / name, ns=(info.st_atime_ns, info.st_mtime_ns))
            elif path in self._gone:
                (target / name).write_bytes(self._gone[path])

    def _mixed(self, path: Path, inode: int) -> bytes:
        now, durable = path.read_bytes(), self._contents.get(inode)
        if durable is None:
            durable = b"" if self._rng.random() < 0.3 else bytes(len(now))
        if len(durable) < len(now) and self._rng.random() < 0.5:
            now = now[: len(durable)]
        versions = self._rng.choice([[now], [durable], [now, durable, self._between.get(inode, durable)]])
        length = max(len(now), len(durable))
        pages = []
        for at in range(0, length, PAGE_BYTES):
            page = self._rng.choice(versions)[at : at + PAGE_BYTES]
            pages.append(page.ljust(min(PAGE_BYTES, length - at), b"\0"))
        return b"".join(pages)
