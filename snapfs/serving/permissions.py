"""Who may open the views: mode, owner and group of the live file, and what of them the snapshot shows.

- The live file has those of the image file. A block device's view has its own, in memory that the servers of both
  views share, since changing them must not change the device node.
- The snapshot is no more open than the image was at the cut, nor than the live file and the device node are now.
- The kernel checks by what it was told last, which may be a while ago. So a server checks again, when a file is
  opened or its owner changed, whenever that is no longer so: a permission taken away holds at once. A file that is
  open stays open, as everywhere.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import Final, NamedTuple

# The live server needs microseconds to change them; one that was killed meanwhile never comes to an end.
_MAX_TRIES: Final = 1000


class Permission(NamedTuple):
    """Permission bits, owner, group."""

    mode: int
    uid: int
    gid: int


NOBODYS: Final = Permission(0, 0, 0)


def permission_of(info: os.stat_result) -> Permission:
    """Of a file or a device node."""
    return Permission(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)


def narrowed(now: Permission, *others: Permission) -> Permission:
    """`now` without writing, and without whoever could not read by all `others` too. Where owner or group is
    not the same, who is owner, group or other now may have been any of them then."""
    mode = now.mode & 0o444
    for other in others:
        by_all = 0o444 if other.mode & 0o444 == 0o444 else 0
        same_user, same_group = other.uid == now.uid, other.gid == now.gid
        owner = other.mode if same_user else by_all
        rest = other.mode if same_user and same_group else by_all
        mode &= owner & 0o400 | rest & 0o044
    return now._replace(mode=mode)


class Permissions:
    """The live file's, now. Made before the servers are; only the live server changes them."""

    def __init__(self, image_fd: int) -> None:
        self._image_fd = image_fd
        info = os.fstat(image_fd)
        self.is_device = stat.S_ISBLK(info.st_mode)
        # How often changing began and ended, then mode, owner and group. Odd: it has begun and not ended.
        self._numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")
        self._note(permission_of(info))

    @property
    def now(self) -> Permission:
        """Of the live file."""
        if not self.is_device:
            return permission_of(os.fstat(self._image_fd))
        for _ in range(_MAX_TRIES):
            before, *numbers = self._numbers[:4]
            if before % 2 == 0 and self._numbers[0] == before:
                return Permission(*numbers)
        return NOBODYS

    def change(self, permission: Permission) -> None:
        """Of the live file, and so of the image file."""
        if self.is_device:
            self._note(permission)
            return
        now = self.now
        if permission[1:] != now[1:]:
            os.fchown(self._image_fd, permission.uid, permission.gid)
        if permission.mode != now.mode:
            os.fchmod(self._image_fd, permission.mode)

    def _note(self, permission: Permission) -> None:
        self._numbers[0] += 1
        for place, number in enumerate(permission, 1):
            self._numbers[place] = number
        self._numbers[0] += 1

    def of_snapshot(self, then: Permission) -> Permission:
        """What the snapshot shows whose cut found `then`."""
        others = [then, permission_of(os.fstat(self._image_fd))] if self.is_device else [then]
        return narrowed(self.now, *others)
