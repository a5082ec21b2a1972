"""How often a server that dies may be started again: a few times at once, and then as often as time allows."""

from __future__ import annotations

from typing import Final

BURST: Final = 5
REFILL_S: Final = 12.0


class Restarts:
    """Of one server. Each start takes one of `BURST` tokens, and every `REFILL_S` one comes back."""

    def __init__(self) -> None:
        self._tokens, self._looked_at_s = float(BURST), 0.0

    def take(self, now_s: float) -> float:
        """0.0: start it now. Else in how many seconds to ask again."""
        self._tokens = min(float(BURST), self._tokens + (now_s - self._looked_at_s) / REFILL_S)
        self._looked_at_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) * REFILL_S
        self._tokens -= 1
        return 0.0
