"""Whether this user can make FUSE mounts here, with these options; if not, what to change.

Source: fuse(4), fusermount3(1), mount.fuse3(8) (user_allow_other in fuse.conf), capabilities(7).

Root mounts with mount(2); everyone else through fusermount3, which must be set-user-ID root.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from snapfs.errors import PermissionDeniedError, SnapfsError
from snapfs.system.kernel_text import kernel_lines

_DEVICE: Final = Path("/dev/fuse")
_CONFIG: Final = Path("/etc/fuse.conf")
_CAP_SYS_ADMIN: Final = 1 << 21


def check_fuse_access(fuse_options: Iterable[str] = ()) -> None:
    """`SnapfsError` says why a mount with these options would fail for this user."""
    _check_device()
    if _may_mount():
        return
    _check_fusermount()
    for option in fuse_options:
        if option in ("allow_other", "allow_root") and not _others_allowed():
            raise PermissionDeniedError(
                f"The option {option} is not allowed to this user; let root add the line user_allow_other "
                f"to {_CONFIG}, or leave the option out.",
                path=_CONFIG,
            )


def _check_device() -> None:
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise SnapfsError(
            f"FUSE is not available, because {_DEVICE} is missing; load it with modprobe fuse, "
            f"or give the container --device {_DEVICE}.",
            path=_DEVICE,
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"FUSE is not permitted, because this user may not open {_DEVICE}; let root run "
            f"chmod 666 {_DEVICE}, or give the container --device {_DEVICE}.",
            path=_DEVICE,
        ) from error
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.ENODEV, errno.ENXIO):
            reason = "the kernel has no FUSE loaded"
        raise SnapfsError(
            f"FUSE is not available, because {_DEVICE} cannot be opened: {reason}; load it with modprobe fuse.",
            path=_DEVICE,
        ) from error


def _may_mount() -> bool:
    return bool(int(_process_status("CapEff", "0"), 16) & _CAP_SYS_ADMIN)


def _check_fusermount() -> None:
    found = shutil.which("fusermount3")
    if found is None:
        raise SnapfsError("Mounting without root needs fusermount3, which is missing; install the package fuse3.")
    status = os.stat(found)
    if os.geteuid() != 0 and not (status.st_mode & stat.S_ISUID and status.st_uid == 0):
        raise SnapfsError(
            f"Mounting without root needs {found} to run as root; let root run chmod u+s {found}.", path=found
        )
    if _process_status("NoNewPrivs", "0") == "1":
        raise PermissionDeniedError(
            f"Mounting without root is not possible here, because {found} may not gain privileges "
            "(no_new_privs is set); run snapfs outside that sandbox or as root."
        )


def _others_allowed() -> bool:
    try:
        lines = kernel_lines(_CONFIG)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # only fusermount3 can read it; it will say so itself
    return any(line.split(b"#", 1)[0].strip() == b"user_allow_other" for line in lines)


def _process_status(field: str, default: str) -> str:
    for line in kernel_lines("/proc/self/status"):
        key, _, value = line.partition(b":")
        if key == field.encode():
            return value.decode().strip()
    return default
