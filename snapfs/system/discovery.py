"""From whatever a user names, LIVE, SNAP or IMAGE, to the store of the instance behind it.

Each view has a hidden symbolic link to its store, so nothing has to be registered anywhere, and nothing is
left behind when an instance is killed.

Who is believed:
- Everybody may mount a FUSE filesystem that calls itself snapfs and names any image as its source. What the kernel
  itself says of it is whose it is (`user_id`). Mounts of root and of oneself are believed; root also deals with
  those of others, a user with nobody else's.
- Root believes of another user's mount only what that user may say of himself: it is asked in his name, and the
  store that it leads to has to be his. What is then done through that store's socket meets a process of his.
- A server that is stopped, or that never was one, answers nothing. It is asked from a child with a deadline (see
  `asking`), all mounts at once, and an instance has two: one that answers is enough.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from snapfs.errors import NotMountedError, PermissionDeniedError, SnapfsError, StoreGoneError
from snapfs.system.asking import Answer, ask_all, become
from snapfs.system.mounts import DEAD_VIEW_ERRORS, SNAPFS_TYPE, Mount, canonical_path, find_mount, snapfs_mounts
from snapfs.system.stores import LINK_NAME, hold_store, let_go

# What the disk of a store answers when it has failed, was pulled out, or its filesystem gave up or died.
DISK_ERRORS: Final = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EUCLEAN, errno.ENOTCONN})


def believed_mounts() -> list[Mount]:
    """The snapfs mounts of root and of this user, dead ones too: what they say of themselves is so."""
    return [mount for mount in snapfs_mounts() if mount.user_id in (0, os.geteuid())]


def find_instance(path: Path | str) -> Mount:
    """A view of the instance that `path` belongs to; NotMountedError when there is none, PermissionDeniedError
    when it is not this user's to deal with."""
    path = Path(path)
    mount = find_mount(path)
    if mount is not None and mount.fstype == SNAPFS_TYPE:
        if not _may_deal_with(mount):
            raise PermissionDeniedError(
                f"{mount.mount_point} belongs to another user; ask as that user or as root.", path=mount.mount_point
            )
        return mount
    canonical = canonical_path(path)
    believed = [mount for mount in believed_mounts() if Path(mount.source) == canonical]
    others = [mount for mount in snapfs_mounts() if Path(mount.source) == canonical and _may_deal_with(mount)]
    for candidate in [*believed, *others]:
        return candidate
    raise NotMountedError(f"{path} is not mounted with snapfs; name LIVE, SNAP or IMAGE of a mounted one.", path=path)


def find_store(path: Path | str) -> Path:
    """The store of the instance that `path` belongs to, held open; NotMountedError when there is none."""
    mount = find_instance(path)
    views = [mount, *(view for view in _views_of(mount) if view != mount)]
    answers = ask_all([_question(view) for view in views])
    # The view that was named is asked first; the other one counts when that is silent.
    for view, answer in zip(views, answers, strict=True):
        if not answer.is_silence:
            return _held(view, answer)
    raise _silence(mount)


def all_stores() -> tuple[list[Path], list[SnapfsError]]:
    """The stores of all instances that are this user's to deal with, held open; and of those that do not answer,
    or whose store is gone, the reasons."""
    mounts = [mount for mount in snapfs_mounts() if _may_deal_with(mount)]
    answers = ask_all([_question(mount) for mount in mounts])
    stores: dict[tuple[int, int], Path] = {}
    answered: set[tuple[str, int | None]] = set()
    without: dict[tuple[str, int | None], SnapfsError] = {}
    for mount, answer in zip(mounts, answers, strict=True):
        try:
            store = _held(mount, answer)
        except StoreGoneError as error:
            if mount.user_id in (0, os.geteuid()) and mount in snapfs_mounts():
                without[mount.source, mount.user_id] = error
            continue
        except SnapfsError:
            continue
        answered.add((mount.source, mount.user_id))
        info = os.stat(store)
        if stores.setdefault((info.st_dev, info.st_ino), store) is not store:
            let_go(store)
    silent = {
        (mount.source, mount.user_id): _silence(mount)
        for mount, answer in zip(mounts, answers, strict=True)
        if answer.is_silence and (mount.source, mount.user_id) not in answered
    }
    return list(stores.values()), list((silent | without).values())


def _may_deal_with(mount: Mount) -> bool:
    return os.geteuid() == 0 or mount.user_id in (0, os.geteuid())


def _views_of(mount: Mount) -> Sequence[Mount]:
    """The mounts of the same user that name the same image: the two views of one instance."""
    return [view for view in snapfs_mounts() if (view.source, view.user_id) == (mount.source, mount.user_id)]


def _question(mount: Mount) -> Callable[[], bytes]:
    return partial(_read_link, mount)


def _read_link(mount: Mount) -> bytes:
    """In a child: to open with O_PATH does not ask the server, so root opens and the mount's user asks."""
    fd = os.open(mount.mount_point, os.O_PATH | os.O_CLOEXEC)
    if not mount.allows_others:
        become(mount.owner)
    return os.readlink(LINK_NAME, dir_fd=fd)


def _held(mount: Mount, answer: Answer) -> Path:
    if answer.data is not None:
        return _hold(mount, Path(os.fsdecode(answer.data)))
    if answer.is_silence:
        raise _silence(mount)
    raise _refusal(mount, answer.error or 0)


def _hold(mount: Mount, store: Path) -> Path:
    try:
        return hold_store(store, owner=mount.user_id)
    except NotMountedError as error:
        raise store_gone(mount, store) from error
    except SnapfsError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK_ERRORS:
            raise store_gone(mount, store, error.__cause__) from error
        raise


def store_gone(mount: Mount, store: Path, error: OSError | None = None) -> StoreGoneError:
    """For the views of `mount`, which leads to `store`: `error` is what a disk answered that has failed."""
    what = "was removed" if error is None else f"failed ({error.strerror})"
    return StoreGoneError(
        f"The store {store} {what} under the views of {mount.source}, which go on but cannot be asked any "
        f"more; end them (snapfs umount {mount.mount_point}).",
        path=store,
        store=store,
        what=what,
    )


def _silence(mount: Mount) -> SnapfsError:
    point = mount.mount_point
    return SnapfsError(
        f"The snapfs of {point} does not answer; its processes are stopped or hang: let them go on (kill -CONT), "
        f"or end them and unmount {point}.",
        path=point,
    )


def _refusal(mount: Mount, number: int) -> SnapfsError:
    point = mount.mount_point
    if number in DEAD_VIEW_ERRORS:
        return SnapfsError(
            f"The snapfs of {point} was killed; mount the image again to carry on, or unmount {point}.", path=point
        )
    if number in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(f"{point} belongs to another user; ask as that user.", path=point)
    return SnapfsError(f"{point} does not answer as snapfs does: {os.strerror(number)}; unmount it.", path=point)
