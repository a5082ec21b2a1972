"""One view in one process: mounting, serving, and telling the supervisor how it goes.

A server says `ready` when it answers requests and `gone` when its view has been unmounted (see `pipe`). After
`gone` it stays until it is stopped: the live server still owns the state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio

from snapfs.fuse import session
from snapfs.fuse.view import View
from snapfs.servers.instance import LIVE, Instance
from snapfs.servers.pipe import GONE, READY, tell
from snapfs.system.processes import detach_streams, set_io_flusher
from snapfs.system.view_mounts import session_view

_LOG = logging.getLogger(__name__)


def mount_view(instance: Instance, name: str, view: View, options: Iterable[str]) -> None:
    """Mount `view`, and note which filesystem it is; SnapfsError when FUSE refuses."""
    mount_point = instance.live if name == LIVE else instance.snap
    session.mount(view, mount_point, instance.image_path, options)
    _LOG.debug("mounted %s", mount_point)
    instance.places.note(name, session_view(mount_point))
    set_io_flusher()


async def serve_view(instance: Instance, view: str, pipe_fd: int) -> None:
    """Answer requests until the view is unmounted or the session is told to end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_ready, instance, view, pipe_fd)
        await session.serve()
        nursery.cancel_scope.cancel()
    _LOG.debug("the view is unmounted")
    # From here on the number may be given to somebody else's filesystem.
    instance.places.note(view, None)
    tell(pipe_fd, GONE)


async def _tell_ready(instance: Instance, view: str, pipe_fd: int) -> None:
    await trio.to_thread.run_sync(session.tune, instance.places.view(view))
    if not instance.options.foreground:
        # Until here libfuse may have had something to say to the user.
        detach_streams()
    tell(pipe_fd, READY)
