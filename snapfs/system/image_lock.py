"""Keep others from writing to the image while snapfs has it, and find out who already does.

Two locks, both of the open file description, so both end with the last process that holds it:
- flock(2), exclusive: against another snapfs, and whatever else uses flock (udev on block devices).
- QEMU's scheme for images (QEMU documentation, "Image locking"; `locking=auto` of the file driver): one byte per
  permission, all locked for reading with F_OFD_SETLK, fcntl(2):

      byte 100 + n   somebody has permission n        n = 0 consistent read, 1 write,
      byte 200 + n   somebody does not share it           2 write unchanged, 3 resize

  First one takes the read locks, then asks whether a *write* lock would fit on the counterpart of each: so of
  two that come at the same time at least one notices. snapfs has "write" and shares neither "write" nor
  "resize". QEMU then refuses the image for writing, and where it wants it unchanged (`qemu-img convert`)
  for reading too, unless told to share (`-U`).

Filesystems without such locks (some network ones) leave the image unlocked; the checks for loop devices and
mounts stand for themselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from typing import Final

from snapfs.errors import BusyError
from snapfs.system.descriptors import last_name
from snapfs.system.kernel_text import kernel_lines
from snapfs.system.open_files import (
    Holder,
    OpenFile,
    describe,
    device_of_fd,
    open_files,
    process_name,
    processes_with_file,
)

_PERMISSION_BASE: Final = 100
_UNSHARED_BASE: Final = 200
_WRITE: Final = 1
_RESIZE: Final = 3
_OWN_BYTES: Final = (_PERMISSION_BASE + _WRITE, _UNSHARED_BASE + _WRITE, _UNSHARED_BASE + _RESIZE)
_CONFLICTING_BYTES: Final = (_UNSHARED_BASE + _WRITE, _PERMISSION_BASE + _WRITE, _PERMISSION_BASE + _RESIZE)

# udev holds a shared flock for a moment after a device has been opened for writing and closed.
_FLOCK_PATIENCE_S: Final = 1.0
_FLOCK_INTERVAL_S: Final = 0.02

_STRUCT_FLOCK: Final = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_NO_LOCKS: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_image(fd: int) -> None:
    """Lock the image that `fd` is open on until `fd` and all its copies are closed; `BusyError` says who has it."""
    if not (_flock(fd) and _take_qemu_locks(fd)):
        path = last_name(fd)
        holders = lock_holders(fd)
        raise BusyError(
            f"{path} is in use: {describe(holders)}; end that and try again.",
            path=path,
            holders=[holder.description for holder in holders],
        )


def _flock(fd: int) -> bool:
    patience_s = _FLOCK_PATIENCE_S if stat.S_ISBLK(os.fstat(fd).st_mode) else 0
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_FLOCK_INTERVAL_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
        else:
            return True


def _take_qemu_locks(fd: int) -> bool:
    try:
        for byte in _OWN_BYTES:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _STRUCT_FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        conflict = True
    else:
        conflict = has_qemu_lock(fd)
    if conflict:
        unlock_image(fd)
    return not conflict


def unlock_image(fd: int) -> None:
    """Give back both locks of `lock_image` without closing `fd`."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _STRUCT_FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    fcntl.flock(fd, fcntl.LOCK_UN)


def has_qemu_lock(fd: int) -> bool:
    """Whether another open file of the same image has a lock that does not go together with writing to it."""
    return any(_is_locked(fd, byte) for byte in _CONFLICTING_BYTES)


def _is_locked(fd: int, byte: int) -> bool:
    question = _STRUCT_FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return bool(_STRUCT_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def lock_holders(fd: int) -> list[Holder]:
    """Who has locked the image that `fd` is open on against us; our own process does not count."""
    pids = dict.fromkeys(file.pid for file in processes_with_file(fd) if _has_conflict(file))
    if pids:
        return [Holder("lock", f"{process_name(pid)} has locked it", pid) for pid in pids]
    locked = has_qemu_lock(fd) or _is_flocked(fd)
    if not locked or any(_has_conflict(file) for file in _own_files(fd)):
        return []
    return [Holder("lock", "a process of another user has locked it (QEMU or another snapfs)")]


def _has_conflict(file: OpenFile) -> bool:
    """Looks at lines such as "1: OFDLCK  ADVISORY  READ -1 08:02:393219 100 101"; the end may be EOF."""
    for fields in map(bytes.split, file.locks):
        if fields[1] == b"FLOCK":
            return True
        first, last = int(fields[6]), float("inf") if fields[7] == b"EOF" else int(fields[7])
        if any(first <= byte <= last for byte in _CONFLICTING_BYTES):
            return True
    return False


def _own_files(fd: int) -> list[OpenFile]:
    inode = os.fstat(fd).st_ino
    return [file for file in open_files(os.getpid()) if file.inode == inode]


def _is_flocked(fd: int) -> bool:
    """Looks in /proc/locks ("1: FLOCK  ADVISORY  WRITE 713 08:02:393219 0 EOF"), not taking the lock to try."""
    major, minor = device_of_fd(fd)
    wanted = b"%02x:%02x:%d" % (major, minor, os.fstat(fd).st_ino)
    try:
        lines = kernel_lines("/proc/locks")
    except OSError:
        return False
    return any(fields[1] == b"FLOCK" and wanted in fields for fields in map(bytes.split, lines) if len(fields) > 5)
