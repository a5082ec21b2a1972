"""What both views have in common: one image, of a fixed size, asked for ranges of it.

Rules:
- A request that needs no wait is answered inside the event loop; only one that would wait gets a thread. What the
  loop answers with may lie in memory that the next request uses again: it is sent before.
- A front inherits the methods of requests and hands them on as they are: between a request and its answer there is
  no further call.
- Whatever goes wrong leaves as `failure` with an errno, and nothing else does.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar, Final, NamedTuple

from snapfs.serving.permissions import Permission, Permissions

# The largest request that is answered from memory that is there: what the kernel asks for at most, through FUSE.
MAX_REQUEST_BYTES: Final = 1 << 20


class RequestError(Exception):
    """The request failed with `errno`."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class Attributes(NamedTuple):
    """Of the image as a file; it takes `sectors` of 512 bytes on its disk. Times in nanoseconds."""

    permission: Permission
    sectors: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int


class Served:
    """`failure` is what a front wants to have raised, called with an errno."""

    failure: ClassVar[type[Exception]] = RequestError

    def __init__(self, permissions: Permissions, image_bytes: int, block_bytes: int) -> None:
        self.image_bytes, self.block_bytes = image_bytes, block_bytes
        self._permissions = permissions
        self._scratch = memoryview(bytearray(MAX_REQUEST_BYTES))

    def attributes(self) -> Attributes:
        """As they are now."""
        raise NotImplementedError

    def permission(self) -> Permission:
        """Who may open it now."""
        return self._permissions.now

    def check_seek(self, offset: int, whence: int, size_bytes: int) -> bool:
        """Whether a hole is asked for, in a file of that size; EINVAL, ENXIO: there is nothing to look for."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise self.failure(errno.EINVAL)
        if not 0 <= offset < size_bytes:
            raise self.failure(errno.ENXIO)
        return whence == os.SEEK_HOLE

    def found(self, offset: int | None) -> int:
        """ENXIO for None: there is no data any more."""
        if offset is None:
            raise self.failure(errno.ENXIO)
        return offset
