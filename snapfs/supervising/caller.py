"""Who mounts: told once how it went, and watched until then, for without him everything is undone."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

_LOG = logging.getLogger(__name__)


class Caller:
    """`report` is called once, with what he is told. `fd` is the end of a pipe on which that is reported, None: there
    is none; `on_abandoned` is called when nobody has its other end any more before."""

    def __init__(
        self,
        report: Callable[[str], None],
        fd: int | None,
        selector: selectors.BaseSelector,
        on_abandoned: Callable[[], None],
    ) -> None:
        self._report, self._fd, self._selector, self._on_abandoned = report, fd, selector, on_abandoned
        # Also when there is nobody left to be told.
        self.is_told = False

    def watch(self) -> None:
        if self._fd is not None:
            # Of a pipe's writing end no more is heard than that nobody reads.
            self._selector.register(self._fd, selectors.EVENT_READ, self._abandon)

    def tell(self, sentence: str) -> bool:
        """Whether this is what he is told: not when he was told before, nor when he is gone."""
        if self.is_told:
            return False
        self.is_told = True
        self._forget()
        try:
            self._report(sentence)
        except BrokenPipeError:
            # Killed after we last looked.
            self._abandon()
            return False
        return True

    def _abandon(self) -> None:
        _LOG.error("the command that mounts ended before the views answered")
        self._forget()
        self.is_told = True
        self._on_abandoned()

    def _forget(self) -> None:
        if self._fd is not None:
            self._selector.unregister(self._fd)
            self._fd = None
