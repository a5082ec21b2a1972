"""A copy is as private as what it was made of.

Rules
- A file is made for its owner alone; its final mode and owner come when it is whole, before it has its name.
- The mode is that of the source, less what the umask takes, without execution, and its owner may write.
- Root keeps owner and group. Who cannot keep the group gives the new group no more than everybody had; an access
  list's mask stands where the group's rights are, so then the group gets nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NEW_MODE: Final = 0o600
_LIST: Final = "system.posix_acl_access"


@dataclass(frozen=True)
class Access:
    """Who may have a copy. `uid` and `gid` None: those of whoever makes it."""

    mode: int
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def of(cls, source: Path | int) -> Access:
        """Of a copy of the file or block device at a path, or of an open one; OSError when it cannot be asked."""
        status = os.stat(source)
        mode = stat.S_IMODE(status.st_mode) & 0o666 & ~_umask()
        if _has_list(source):
            mode &= ~0o070
        return cls(NEW_MODE | mode, status.st_uid, status.st_gid)

    def and_of(self, path: Path) -> Access:
        """The same, no wider than a copy of the file at `path` may be, if that can be asked."""
        try:
            mode = Access.of(path).mode
        except OSError:
            return self
        return Access(self.mode & mode, self.uid, self.gid)

    def with_mode(self, mode: int | None) -> Access:
        """The same, but with the mode that the user asked for, if any."""
        return self if mode is None else Access(mode, self.uid, self.gid)

    def give_to(self, fd: int) -> None:
        """Owner first: the new mode is meant for them."""
        uid = -1 if self.uid is None or os.geteuid() != 0 else self.uid
        gid = -1 if self.gid is None else self.gid
        try:
            os.fchown(fd, uid, gid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        mode = self.mode
        if self.gid is not None and os.fstat(fd).st_gid != self.gid:
            mode &= ~0o070 | (mode & 0o007) << 3
        os.fchmod(fd, mode)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _has_list(source: Path | int) -> bool:
    try:
        return bool(os.getxattr(source, _LIST))
    except OSError:
        return False
