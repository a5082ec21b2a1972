"""Live writes that wait for the cuts of other images: begun by a client, ended by him, his end, or the time."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from cow import LiveEngine
from snapfs.errors import SnapfsError


class Hold:
    """Writes wait from now on, and after `lease_s` go on whatever has become of who wanted it. Made in a thread: it
    waits for the writes under way. OSError: see `LiveEngine.held`."""

    def __init__(self, engine: LiveEngine, lease_s: float) -> None:
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._held.enter_context(engine.held())
        # No task of the event loop: what hangs must not keep everybody waiting.
        self._lease = threading.Timer(lease_s, self._release)
        self._lease.daemon = True
        self.is_over = False
        self._lease.start()

    def check(self) -> None:
        """SnapfsError when writes may have gone on meanwhile."""
        if self.is_over:
            raise SnapfsError("Holding the writes of all images took too long, so there was no cut; try again.")

    def end(self) -> None:
        """They go on; nothing when they do already."""
        self._lease.cancel()
        self._release()

    def _release(self) -> None:
        with self._lock:
            self.is_over = True
            self._held.close()
