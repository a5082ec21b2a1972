"""What the engine can refuse or fail at. One root; facts as fields; each class says what its caller should do."""

from __future__ import annotations


class CowError(Exception):
    """Root of everything the engine raises on its own account; OSErrors of the image pass through."""


class OutOfRange(CowError):
    """Offset or length outside the image. The caller asked for what does not exist: EINVAL or end of file."""

    def __init__(self, offset: int, length: int, image_bytes: int) -> None:
        super().__init__(f"bytes {offset}+{length} are outside the image of {image_bytes} bytes")
        self.offset, self.length, self.image_bytes = offset, length, image_bytes


class StoreError(CowError):
    """The store cannot be used as it is. Tell the user `reason` and leave the store untouched."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"store {path} {reason}")
        self.path, self.reason = path, reason


class NotAStore(StoreError):
    """The directory holds files of somebody's, which are not to be removed: another one is the way on."""


class StoreDamaged(StoreError):
    """The store is one, but what says so is damaged or lost. Its snapshot is lost; a new store is the way on."""


class StoreBusy(StoreError):
    """Another process holds the store's lock."""

    def __init__(self, path: str, pid: int | None = None) -> None:
        super().__init__(path, "is in use by " + (f"process {pid}" if pid else "another snapfs process"))
        self.pid = pid


class ImageChanged(StoreError):
    """The image is not what the store left behind: the snapshot can no longer be trusted."""


class Damaged(CowError):
    """Something in the store is not what was written. Answer the read with EIO; never with bytes."""

    def __init__(self, what: str, block_no: int | None = None) -> None:
        super().__init__(what if block_no is None else f"block {block_no}: {what}")
        self.what, self.block_no = what, block_no


class SnapshotLost(CowError):
    """The snapshot overflowed, was lost or is damaged as a whole: every read of it is EIO from now on."""


class SnapshotEnded(CowError):
    """A newer cut replaced the one that is read or worked on: ESTALE; what was to be done for it is not done."""


class BlockReleased(CowError):
    """The block was given back; what the image holds there now may be newer than the cut: ENODATA."""

    def __init__(self, block_no: int) -> None:
        super().__init__(f"block {block_no} was released")
        self.block_no = block_no


class WouldWait(CowError):
    """The call may not wait, and the disk would have to be waited for. Do it again where waiting is allowed."""


class BufferFull(CowError):
    """The side buffer takes no more and the policy is break-write: fail the live write with `errno`."""

    def __init__(self, errno: int) -> None:
        super().__init__("the side buffer is full")
        self.errno = errno


class EngineClosed(CowError):
    """The engine was closed while the call waited. Nothing was written."""
