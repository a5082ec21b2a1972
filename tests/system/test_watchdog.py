"""The watchdog as a process; what it does for a cut is in tests/cut."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from snapfs.freezing.watchdog import Watchdog
from snapfs.system.processes import readable


class NeverThawed:
    """Refuses until the file `until` is gone."""

    def __init__(self, until: Path) -> None:
        self._until = until
        self._until.touch()

    def thaw(self) -> bool:
        if self._until.exists():
            raise OSError(errno.EIO, "the device is gone")
        return True


def test_a_watchdog_that_goes_on_keeps_nothing_it_does_not_need(tmp_path: Path) -> None:
    ending, live_fd = os.pipe()
    kept, kept_fd = os.pipe()
    target = NeverThawed(tmp_path / "frozen")
    with Watchdog([target], timeout_s=60, unneeded_fds=[live_fd]) as watchdog:
        watchdog.start()
        watchdog.note_touched(0)
    os.close(live_fd)
    os.close(kept_fd)
    assert readable([ending], timeout_s=5)  # nobody else has it open
    assert not readable([kept], timeout_s=0)  # it still goes on
    (tmp_path / "frozen").unlink()
    assert readable([kept], timeout_s=5)
    os.close(ending)
    os.close(kept)


def test_what_it_does_not_need_may_fail_to_be_closed() -> None:
    closed = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 500)  # not the number of the next one that is opened
    os.close(closed)
    with Watchdog([], timeout_s=60, unneeded_fds=[closed]) as watchdog:
        watchdog.start()
    assert not watchdog.expired
