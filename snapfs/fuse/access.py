"""Whether who opens a file of a view may: what the kernel said of the process that asks, beside the permission."""

from __future__ import annotations

import os
from contextlib import suppress

import pyfuse3

from snapfs.serving.permissions import Permission

_READ, _WRITE = 4, 2


def allows(permission: Permission, context: pyfuse3.RequestContext, wanted: int) -> bool:
    """Whether who asks may do what is `wanted` (bits as in a digit of a mode). Root may."""
    if context.uid == 0:
        return True
    if context.uid == permission.uid:
        bits = permission.mode >> 6
    elif permission.gid in _groups_of(context):
        bits = permission.mode >> 3
    else:
        bits = permission.mode
    return bits & wanted == wanted


def wanted_by(flags: int) -> int:
    """What opening with `flags` asks for."""
    access = flags & os.O_ACCMODE
    return {os.O_RDONLY: _READ, os.O_WRONLY: _WRITE}.get(access, _READ | _WRITE)


def _groups_of(context: pyfuse3.RequestContext) -> set[int]:
    groups = {context.gid}
    with suppress(OSError, ValueError, RuntimeError):  # it has ended, or is in another world of process numbers
        groups |= pyfuse3.get_sup_groups(context.pid)
    return groups


def wants_write(flags: int) -> bool:
    """Whether open flags ask for more than reading."""
    return flags & os.O_ACCMODE != os.O_RDONLY
