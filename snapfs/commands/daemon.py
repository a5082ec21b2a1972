"""The daemon of an instance, forked or in front: its log and streams, and what whoever mounts is told of it."""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import signal
from collections.abc import Callable

from cow import LOG_NAME
from snapfs.client import request as control_request
from snapfs.errors import SnapfsError, shortage
from snapfs.log import configure_log
from snapfs.protocol import BeginMap
from snapfs.servers.instance import LIVE, SNAPSHOT, Instance
from snapfs.servers.pipe import READY, failure_line, sentence_of
from snapfs.stacks import dump_stacks_on_signal
from snapfs.supervising.supervisor import Supervisor
from snapfs.system.mounts import clear_stale
from snapfs.system.processes import detach_streams
from snapfs.system.service_manager import SOCKET_VARIABLE, tell_ready
from snapfs.system.signals import Signals

_LOG = logging.getLogger(__name__)


def run_in_front(instance: Instance, announce: Callable[[], None]) -> int:
    configure_log(None, "snapfs", instance.options.log_level)
    dump_stacks_on_signal()
    said: list[str] = []

    def report(sentence: str) -> None:
        said.append(sentence)
        if not sentence:
            _await_views(instance)
            instance.store.control.is_unseen = False
            # With nobody to say it to it goes on: whoever is in front still has the views.
            with contextlib.suppress(SnapfsError, BrokenPipeError):
                announce()
            tell_ready(instance.summary)

    code = Supervisor(instance, report).run()
    if not said:
        # Told to end before it was a mount.
        raise KeyboardInterrupt
    if said[0]:
        raise SnapfsError(said[0])
    return code


def run_behind(instance: Instance, signals: Signals) -> None:
    """Returns when both views answer. Interrupted, or failed: the daemon has ended, and its views with it."""
    control = instance.store.control
    was_unseen = control.is_unseen
    taken_back = mmap.mmap(-1, 1)  # the daemon's as well: not 0 once what it has reported does not count
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    gc.freeze()  # the servers' share of this process's memory stays shared
    with signals.deferred():
        pid = os.fork()
        if not pid:
            os.close(read_fd)
            _become_daemon(instance, write_fd, taken_back)
        os.close(write_fd)
        answer = b""
        try:
            # When it is closed the daemon knows that nobody waits for it any more.
            with os.fdopen(read_fd, "rb") as pipe, signals.heard():
                # A line, not all there is: the servers have the pipe as well.
                answer = pipe.readline()
                if answer == READY:
                    signals.hold()
        except BaseException:
            # Else one that had reported already, and waits for nobody any more, would go on.
            taken_back[0] = 1
            os.kill(pid, signal.SIGTERM)
            answer = b""
            raise
        finally:
            if answer != READY:
                status = os.waitpid(pid, 0)[1]
                # It may have noted that somebody is told of the snapshot.
                control.is_unseen = was_unseen
                if os.WIFSIGNALED(status):
                    # Killed, it could not unmount what its servers had mounted.
                    clear_stale(instance.live, instance.snap)
    if answer != READY:
        raise SnapfsError(sentence_of(answer) or "snapfs died while it started; try again with -f to see why.")


def _become_daemon(instance: Instance, report_fd: int, taken_back: mmap.mmap) -> None:
    """In the child: never returns."""
    code = 1
    # Who starts services waits for a command in front, not for what it leaves behind.
    os.environ.pop(SOCKET_VARIABLE, None)
    try:
        os.setsid()
        os.chdir("/")
        configure_log(instance.store.path / LOG_NAME, "snapfs", instance.options.log_level)
        dump_stacks_on_signal()
        detach_streams(stderr_too=False)

        def report(sentence: str) -> None:
            control = instance.store.control
            was_unseen = control.is_unseen
            if not sentence:
                _await_views(instance)
                control.is_unseen = False
                detach_streams()
            try:
                os.write(report_fd, failure_line(sentence) if sentence else READY)
            except BrokenPipeError:
                # Who would have told of the snapshot was killed at this moment.
                control.is_unseen = was_unseen
                raise
            os.close(report_fd)

        code = Supervisor(instance, report, report_fd, lambda: bool(taken_back[0])).run()
    except BaseException as error:
        _LOG.exception("snapfs failed")
        with contextlib.suppress(OSError):
            reason = error.sentence if isinstance(error, SnapfsError) else shortage(error) or ""
            os.write(report_fd, failure_line(reason))
    finally:
        os._exit(code)


def _await_views(instance: Instance) -> None:
    os.stat(instance.view_file(LIVE))
    os.stat(instance.view_file(SNAPSHOT) if instance.store.header.shown else instance.point(SNAPSHOT))
    control_request(instance.store.path, BeginMap())
