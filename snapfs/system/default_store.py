"""Where the store of an image is when no other place is named.

    an image file     IMAGE.snapfs beside it, on the same disk
    a block device    /var/lib/snapfs/NAME.snapfs, for root: what is beside it, /dev, is memory, and full soon. NAME
                      is that of the disk (see `device_identity`), so that every name of the device leads there

/var/lib/snapfs is made when it is needed, also for a store that is named in it.
Whoever may not use it, and whoever has an image that was mounted alone into memory (as containers do
it), has to name a place: nobody else knows one that is large enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final

from cow import read_revert_note
from snapfs.errors import PermissionDeniedError, SnapfsError
from snapfs.system.block_devices import block_device_of_number
from snapfs.system.device_identity import device_identity
from snapfs.system.mounts import canonical_path, find_mount

STATE_DIRECTORY: Final = Path("/var/lib/snapfs")
_MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_ODD_LETTERS: Final = re.compile(r"[^A-Za-z0-9._-]+")
# With it a name may be cut, and two that differ in odd letters alone stay two.
_DIGEST_LETTERS: Final = 8
_MAX_LETTERS: Final = 100


def default_store(image: Path) -> Path:
    """The place; nothing is made, and the image need not be there any more."""
    image = canonical_path(image)
    try:
        status = os.stat(image)
    except OSError:
        return _beside(image)
    return STATE_DIRECTORY / _device_name(status.st_rdev) if stat.S_ISBLK(status.st_mode) else _beside(image)


def check_whole(image: Path) -> None:
    """SnapfsError when the image is half-way back to a snapshot, as the store in the default place says."""
    store = default_store(image)
    # What is somebody else's says nothing.
    if os.access(store, os.R_OK | os.X_OK) and read_revert_note(store) is not None:
        raise SnapfsError(
            f"{image} is half-way back to a snapshot, which {store} has; mount it with that store, and go on with "
            "snapfs revert.",
            path=image,
        )


def prepare_store(image: Path, named: Path | None) -> Path:
    """The place, as `prepare_default_store` has it or as it is named; whether a named one is fit is not looked at."""
    if named is None:
        return prepare_default_store(image)
    if named.parent == STATE_DIRECTORY:
        with contextlib.suppress(OSError):
            STATE_DIRECTORY.mkdir(0o700)
    return named


def prepare_default_store(image: Path) -> Path:
    """The place, where a store can be made now; SnapfsError when one has to be named instead."""
    store = default_store(image)
    if store.parent == STATE_DIRECTORY:
        _make_state_directory(image)
    elif _is_alone_in_memory(canonical_path(image)):
        raise SnapfsError(
            f"{image} lies in memory, apart from its own disk, and its store would take memory there; "
            "give a directory with --store.",
            path=image,
        )
    return store


def _beside(image: Path) -> Path:
    return image.with_name(image.name + ".snapfs")


def _device_name(rdev: int) -> str:
    device = block_device_of_number(rdev)
    kernel_name = f"{os.major(rdev)}-{os.minor(rdev)}" if device is None else device.name
    identity = device_identity(rdev)
    if identity is None:
        return f"{_ODD_LETTERS.sub('_', kernel_name)}.snapfs"
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:_DIGEST_LETTERS]
    return f"{_ODD_LETTERS.sub('_', identity)[:_MAX_LETTERS]}-{digest}.snapfs"


def _make_state_directory(image: Path) -> None:
    if os.geteuid():
        raise PermissionDeniedError(
            f"{image} is a block device, and beside it is memory; give a directory for its store with --store.",
            path=image,
        )
    try:
        STATE_DIRECTORY.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SnapfsError(
            f"The store of {image} would be in {STATE_DIRECTORY}, which cannot be made: {error.strerror}; "
            "give a directory with --store.",
            path=image,
        ) from error
    if _is_memory(STATE_DIRECTORY):
        raise SnapfsError(
            f"The store of {image} would be in {STATE_DIRECTORY}, which is memory; give a directory with --store.",
            path=image,
        )


def _is_memory(directory: Path) -> bool:
    mount = find_mount(directory)
    return mount is not None and mount.fstype in _MEMORY_TYPES


def _is_alone_in_memory(image: Path) -> bool:
    """Whether a single file was mounted into a directory that is kept in memory."""
    try:
        return _is_memory(image.parent) and os.stat(image).st_dev != os.stat(image.parent).st_dev
    except OSError:
        return False
