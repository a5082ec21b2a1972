"""What is overwritten where it is: a block device, an image that is restored.

There is no older version to fall back on: whoever writes here says what is left when it ends half-way.
"""

from __future__ import annotations

import errno
import os
import stat

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import Place
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BusyError, SnapfsError
from snapfs.options import format_size
from snapfs.system.block_ioctl import size_bytes_of
from snapfs.system.holders import describe, holders_of_image
from snapfs.system.image_lock import lock_image


def open_in_place(place: Place, consent: Consent, size_bytes: int) -> int:
    """Open what is there for reading and writing, locked until it is closed; a device has to have `size_bytes`.

    BusyError: somebody has come to use it. The kernel's O_EXCL and the locks are the judge.
    """
    place.check_unchanged()
    with write_errors(str(place.named), "try again"):
        try:
            fd = os.open(place.real, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_EXCL if place.is_device else 0))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise _busy(place) from error
    try:
        if place.status is None or not os.path.samestat(os.fstat(fd), place.status):
            raise SnapfsError(f"{place.named} is another file than before; look at it.", path=place.named)
        lock_image(fd)
        if place.is_device and (device_bytes := size_bytes_of(fd)) < size_bytes:
            raise SnapfsError(
                f"{place.named} has {format_size(device_bytes)}, the image {format_size(size_bytes)}; "
                "name a device that is large enough.",
                path=place.named,
            )
        consent.announce(place)
    except BaseException:
        os.close(fd)
        raise
    return fd


def note_who_can_read(place: Place, access: Access, consent: Consent) -> None:
    """Say, before anything is written there, that more users can read it than a new file, which had `access`."""
    assert place.status is not None
    mode = stat.S_IMODE(place.status.st_mode)
    if not place.is_device and mode & 0o077 & ~access.mode:
        consent.note(
            f"{place.named} keeps its mode, {mode:o}, and more users can read it than if it were new; "
            f"--mode {access.mode:o} changes that."
        )


def _busy(place: Place) -> BusyError:
    holders = holders_of_image(place.real)
    who = describe(holders) or "the kernel does not say by whom"
    return BusyError(
        f"{place.named} is in use: {who}; end that, or name another place.",
        path=place.named,
        holders=[holder.description for holder in holders],
    )
