"""The one FUSE session of a process: mounting, serving, and what the kernel holds of the view."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pyfuse3

from snapfs.errors import SnapfsError
from snapfs.fuse import more_operations
from snapfs.fuse.receive import hurry_receive
from snapfs.fuse.view import IMAGE_INODE, View
from snapfs.system.mounts import set_read_ahead
from snapfs.system.view_mounts import ViewId, session_fd

_LOG = logging.getLogger(__name__)
_READ_AHEAD_KIB = 4096
# Enough for a loop device or a deep queue to keep both cores busy; the default is 12.
_MAX_BACKGROUND = 64
_MAX_HEARD_BYTES = 4096
_NOBODY_ASKS = os.strerror(errno.ENOENT)


def mount(view: View, mount_point: Path, image_path: Path, options: Iterable[str]) -> None:
    """Mount `view` there; `image_path` is named as its source. SnapfsError when FUSE refuses."""
    fuse_options = {"default_permissions", "subtype=snapfs", f"fsname={_escaped(image_path)}", *options}
    said: list[str] = []
    try:
        with _overheard(said):
            more_operations.hand_over_to(view)
            pyfuse3.init(view, str(mount_point), {_Option(option) for option in fuse_options})
    except RuntimeError as error:
        reason = ", ".join(dict.fromkeys(said)) or str(error)
        raise SnapfsError(
            f"FUSE cannot mount {mount_point}: {reason.replace(';', ',')}; change that or the options after -o.",
            path=mount_point,
        ) from error
    logging.getLogger(pyfuse3.__name__).addFilter(_is_news)
    if (why := more_operations.why_not()) is not None:
        _LOG.info("holes are not shown: %s", why)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether pyfuse3 has something to tell: not when the kernel takes no answer any more.

    That is usual when a view is unmounted: the kernel waits for no answer to the last RELEASE, and for none at all
    when it is forced. libfuse itself is silent about it for the same reason.
    """
    text = record.getMessage()
    return not ("fuse_reply_" in text and text.endswith(_NOBODY_ASKS))


@contextlib.contextmanager
def _overheard(said: list[str]) -> Iterator[None]:
    """What libfuse or fusermount3 writes to stderr meanwhile goes to `said`, a line an item."""
    stderr_fd, heard_fd = os.dup(2), os.memfd_create("heard")
    os.dup2(heard_fd, 2)
    try:
        yield
    finally:
        os.dup2(stderr_fd, 2)
        text = os.pread(heard_fd, _MAX_HEARD_BYTES, 0).decode(errors="replace")
        said += [line.removeprefix("fuse: ").rstrip(".") for line in text.splitlines()]
        os.close(stderr_fd)
        os.close(heard_fd)


class _Option(str):
    """pyfuse3 encodes options as ASCII and fails at any other letter; a path may hold any bytes."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def _escaped(path: Path) -> str:
    """A path as a mount option's value: commas and backslashes would end it."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


async def serve() -> None:
    """Answer requests until the view is unmounted or the session is told to end."""
    hurry_receive(session_fd())
    async with more_operations.answering():
        try:
            await pyfuse3.main()
        except* OSError as errors:
            # The kernel has ended the connection: as ENODEV, which libfuse takes for an umount.
            if errors.subgroup(lambda one: isinstance(one, OSError) and one.errno != errno.ECONNABORTED):
                raise


def why_no_holes() -> str | None:
    """Why the view knows no lseek and no fallocate; None when it does. The other view is of the same making."""
    return more_operations.why_not()


def close() -> None:
    """End the session; who unmounts is another matter."""
    pyfuse3.close(unmount=False)


def tune(view: ViewId | None) -> None:
    """Let the kernel ask ahead and in parallel; without permission it is only slower."""
    if view is None:
        return
    set_read_ahead((view.major, view.minor), _READ_AHEAD_KIB)
    connection = Path(f"/sys/fs/fuse/connections/{view.minor}")
    for name, value in (("max_background", _MAX_BACKGROUND), ("congestion_threshold", _MAX_BACKGROUND * 3 // 4)):
        try:
            (connection / name).write_text(f"{value}\n")
        except OSError:
            return


# --- what the kernel holds of the view -----------------------------------------------------------------------
# Each may wait for the kernel, which may have to ask for something first: never in the event loop.


def write_back() -> None:
    """Have the kernel hand over what it holds of the live file."""
    try:
        pyfuse3.invalidate_inode(IMAGE_INODE)
    except OSError as error:
        # The kernel has forgotten the file, or the whole view: then it holds nothing.
        if error.errno not in (errno.ENOENT, errno.ENOTCONN, errno.ENODEV):
            _LOG.error("the kernel could not write out what it holds: %s", error.strerror)


def drop_pages(inode: pyfuse3.InodeT) -> None:
    """Have the kernel ask again for all of the file."""
    with contextlib.suppress(OSError):  # the kernel had none
        pyfuse3.invalidate_inode(inode)


def forget(name: bytes, inode: pyfuse3.InodeT) -> None:
    """Have the kernel look the name up again, and drop what it cached of the file that was called so."""
    for forget_it in (
        partial(pyfuse3.invalidate_entry, pyfuse3.ROOT_INODE, name),
        partial(pyfuse3.invalidate_inode, inode),
    ):
        with contextlib.suppress(OSError):  # the kernel knew nothing of it
            forget_it()
