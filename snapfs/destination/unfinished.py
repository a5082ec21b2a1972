"""DEST.partial: a result while it is made.

Rules
- Made new (O_EXCL), no link followed, for its owner alone, and locked (flock) as long as somebody works on it.
  Of two commands with one DEST the second is refused, with who the first is.
- What an interrupted command left is taken up, or removed, only when the user asks for it. It has to be a file
  with one name that is ours, or belongs to whoever owns what is read: in a directory that others can write to,
  somebody else's file would show him, or let him change, what we write.
- It gets its name when all of it is on the disk. A name that was new must still be free; one that was there must
  still be the same file, in nobody's use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.consent import Consent
from snapfs.destination.names import journal_path, partial_path
from snapfs.destination.place import Place
from snapfs.destination.write_errors import vanished, write_errors
from snapfs.errors import BusyError, SnapfsError, UsageError
from snapfs.system import libc
from snapfs.system.descriptors import path_of
from snapfs.system.file_kinds import kind_name
from snapfs.system.image_lock import lock_holders
from snapfs.system.open_files import describe

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LOCKS: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NOT_ASKABLE: Final = (errno.EINVAL, errno.ENOSYS)


class Unfinished:
    """The unfinished file of `place`, open as `fd` and ours alone until `close` or `discard`."""

    def __init__(self, place: Place, fd: int, *, is_new: bool) -> None:
        self.place, self.path, self.fd, self.is_new = place, partial_path(place.real), fd, is_new
        self._is_open, self._is_kept = True, False

    @property
    def file(self) -> Path:
        """For programs that want a path: this very file, whatever has its name by now."""
        return path_of(self.fd)

    def check_named(self) -> None:
        """SnapfsError when somebody has removed or replaced the file."""
        try:
            is_same = os.path.samestat(os.fstat(self.fd), os.lstat(self.path))
        except OSError:
            is_same = False
        if not is_same:
            raise vanished(str(self.path))

    def settle(self, access: Access) -> None:
        """It is whole: everything on the disk, under its unfinished name, for those who may have it."""
        with write_errors(str(self.path), "try again"):
            access.give_to(self.fd)
            os.fsync(self.fd)
            sync_directory(self.path.parent)
        self.check_named()

    def check_may_be_named(self) -> None:
        """SnapfsError when the place is not any more what it was; what is whole stays under the name it has."""
        try:
            self.place.check_unchanged()
        except SnapfsError as error:
            self.keep()
            error.sentence = error.sentence.replace("; ", f", so {self.path} is left under that name; ", 1)
            raise

    def give_name(self) -> None:
        """Durably; the file goes on being ours until it is closed."""
        with write_errors(str(self.place.named), "try again"):
            if self.place.is_new:
                self._name_new()
            else:
                os.rename(self.path, self.place.real)
            sync_directory(self.path.parent)

    def _name_new(self) -> None:
        try:
            try:
                libc.rename_new(self.path, self.place.real)
            except OSError as error:
                if error.errno not in _NOT_ASKABLE:
                    raise
                # Filesystems that cannot be asked to rename only to a free name can mostly link to one.
                self._link_new()
        except FileExistsError as error:
            raise SnapfsError(
                f"{self.place.named} has appeared meanwhile, so {self.path} is left under that name; look at both.",
                path=self.place.named,
            ) from error

    def _link_new(self) -> None:
        try:
            os.link(self.path, self.place.real, follow_symlinks=False)
            os.unlink(self.path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self.place.check_unchanged()
            os.rename(self.path, self.place.real)

    def keep(self) -> None:
        """From now on it is not removed any more: it is whole, and may have its name."""
        self._is_kept = True

    def discard(self) -> None:
        """Remove it, unless it is to be kept; nothing else that has its name by now."""
        if self._is_open and not self._is_kept:
            with contextlib.suppress(OSError, SnapfsError):
                self.check_named()
                os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Whatever has been written stays, for who asks to go on with it."""
        if self._is_open:
            self._is_open = False
            os.close(self.fd)


def claim(place: Place, consent: Consent, *, resumes: bool = False, owner: int | None = None) -> Unfinished:
    """The unfinished file of `place`, new; with `resumes` the one that is there (SnapfsError when none is).

    BusyError: another command works on it. UsageError: an interrupted one left it, and nobody asked to replace it.
    `owner`: the user, besides ourselves, to whom what is resumed may belong.
    """
    path = partial_path(place.real)
    with write_errors(str(path), "try again"):
        unfinished = _claim(place, path, consent, resumes, {os.geteuid(), owner})
    consent.announce(place)
    return unfinished


def _claim(place: Place, path: Path, consent: Consent, resumes: bool, owners: set[int | None]) -> Unfinished:
    fd = open_left(path, owners)
    if fd is None:
        if resumes:
            raise SnapfsError(f"There is nothing to resume: {path} does not exist; leave out --resume.", path=path)
        _forget_journal(path)
        return _create(place, path)
    try:
        if resumes:
            return Unfinished(place, os.dup(fd), is_new=False)
        if os.fstat(fd).st_size and not consent.gives(place):
            raise UsageError(
                f"{path} was left by an interrupted command; go on with --resume where that is possible, "
                "or say --force to begin again."
            )
        _forget_journal(path)
        os.unlink(path)
        return _create(place, path)
    finally:
        os.close(fd)


def _forget_journal(path: Path) -> None:
    """Before there is another file of that name: after a crash in between, what the journal tells of would be taken
    for that of the new one."""
    journal = journal_path(path)
    left = open_left(journal, {os.geteuid()})
    if left is not None:
        os.unlink(journal)
        os.close(left)
        sync_directory(path.parent)


def _create(place: Place, path: Path) -> Unfinished:
    try:
        fd = os.open(path, _NEW, NEW_MODE)
    except FileExistsError as error:
        raise BusyError(f"{path} has just been made by another command; wait for its end.", path=path) from error
    try:
        _lock(fd, path)
        unfinished = Unfinished(place, fd, is_new=True)
        unfinished.check_named()
        return unfinished
    except BaseException:
        os.close(fd)
        raise


def open_left(path: Path, owners: set[int | None]) -> int | None:
    """What an interrupted command left, locked; None when there is nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    _check_ours(path, status, owners)
    fd = os.open(path, _OLD)
    try:
        _check_ours(path, os.fstat(fd), owners)
        _lock(fd, path)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise BusyError(f"{path} is being replaced by another command; wait for its end.", path=path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_ours(path: Path, status: os.stat_result, owners: set[int | None]) -> None:
    way_out = "remove it, or name another place"
    if not stat.S_ISREG(status.st_mode):
        raise SnapfsError(f"{path} is {kind_name(status.st_mode)}, which snapfs has not made; {way_out}.", path=path)
    if status.st_nlink != 1:
        raise SnapfsError(f"{path} has another name as well, which snapfs has not given it; {way_out}.", path=path)
    if status.st_uid not in owners:
        raise SnapfsError(f"{path} belongs to another user; {way_out}.", path=path)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holders = lock_holders(fd)
        who = describe(holders) or "another command has locked it"
        raise BusyError(
            f"{path} is in use: {who}; wait for its end, or name another place.",
            path=path,
            holders=[holder.description for holder in holders],
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def sync_directory(path: Path) -> None:
    """Names given or removed in the directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
