"""Whose turn it is to take a cut.

    nobody's    -> a client's that asked for it, of several the first one's
    a client's  -> nobody's, when the client has closed its connection

So from the preparing of a cut until the facts about it are known there is no other one, and what one client froze is
never taken for what was frozen at the cut of another. A client that is stopped keeps its turn: others are told whose
it is, and that can be ended.
"""

from __future__ import annotations

import trio

from snapfs.errors import SnapfsError
from snapfs.servers.control import Client


class Turns:
    """In the event loop only."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._holder: Client | None = None

    def is_of(self, client: Client) -> bool:
        return client is self._holder

    async def take(self, client: Client, patience_s: float) -> None:
        """Wait for the turn. SnapfsError when it does not come in time, or for nobody."""
        if self.is_of(client):
            return
        with trio.move_on_after(patience_s) as waiting:
            await self._limiter.acquire_on_behalf_of(client)
        if waiting.cancelled_caught:
            raise SnapfsError(f"Another snapshot is being taken{self._by()}; try again when it is there.")
        self._holder = client
        if client.is_gone:
            self.give_back(client)
            client.check_waits()

    def give_back(self, client: Client) -> None:
        """Nothing when it is not this client's."""
        if self.is_of(client):
            self._holder = None
            self._limiter.release_on_behalf_of(client)

    def _by(self) -> str:
        return f" by process {self._holder.pid}" if self._holder and self._holder.pid else ""
