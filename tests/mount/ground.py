"""A directory of a test's own: its images, instances, loop devices and mounts, and their end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mounted import Mounted

from tests.machine import (
    MNT_DETACH,
    attach_loop,
    begin_detaching,
    detach_loop,
    file_of_loop,
    mount_points_below,
    run,
    unmount,
    wait_until,
)

GroundT = TypeVar("GroundT", bound="Ground")


class Ground:
    """A directory of a test's own; everything made on it is undone, newest first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._instances: list[Mounted] = []
        self._loops: list[Path] = []

    def image(self, content: bytes | int, name: str = "disk.img") -> Path:
        """An image with these bytes, or a sparse one of that many bytes."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if isinstance(content, int):
                file.truncate(content)
            else:
                file.write(content)
        return path

    def instance(self, image: Path, *options: str | Path, name: str = "views") -> Mounted:
        """Not mounted yet."""
        self._instances.append(Mounted(image, self.path / name, *options))
        return self._instances[-1]

    def mounted(self, image: Path, *options: str | Path, name: str = "views") -> Mounted:
        instance = self.instance(image, *options, name=name)
        instance.mount()
        return instance

    def loop(self, backing: Path, *options: str) -> Path:
        """A loop device on `backing`."""
        self._loops.append(attach_loop(backing, *options))
        return self._loops[-1]

    def drop_loop(self, device: Path) -> None:
        self._loops.remove(device)
        detach_loop(device)

    def mount(self, source: Path, *options: str, name: str = "fs") -> Path:
        """Mount a filesystem on a new directory."""
        point = self.path / name
        point.mkdir(exist_ok=True)
        run("mount", *options, source, point)
        return point

    def close(self) -> list[str]:
        """Undo everything; sentences about what should not have been."""
        views = {str(point) for instance in self._instances for point in (instance.live, instance.snap)}
        for point in reversed(mount_points_below(self.path)):
            if str(point) not in views:
                unmount(point, MNT_DETACH)
        for device in reversed(self._loops):
            begin_detaching(device)
        # The later ones first: one whose image or log lies on a view of another keeps that in use.
        wrong = [sentence for instance in reversed(self._instances) for sentence in self._close(instance)]
        for point in reversed(mount_points_below(self.path)):
            wrong.append(f"{point} was still mounted")
            unmount(point, MNT_DETACH)
        shutil.rmtree(self.path)
        return wrong

    def _close(self, instance: Mounted) -> list[str]:
        # A loop device keeps the view that it is attached to in use.
        below = (f"{instance.live}/", f"{instance.snap}/")
        wrong = []
        try:
            wait_until(
                lambda: not any((file_of_loop(device) or "").startswith(below) for device in self._loops),
                what=f"the end of the loop devices on {instance.live}",
            )
        except AssertionError as error:
            wrong.append(str(error))
        return wrong + instance.close()


@contextmanager
def new_ground(kind: type[GroundT], prefix: str) -> Iterator[GroundT]:
    """A ground in a directory of its own; AssertionError at the end says what should not have been."""
    ground = kind(Path(tempfile.mkdtemp(prefix=prefix, dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)
