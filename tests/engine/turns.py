"""Actors that take turns: one runs at a time, and at each step a number decides which one goes on.

A step is before every change of anything and before every look at what others change, so any interleaving of the
actors may come, and the same number brings the same one again.

- An actor that pauses with the engine's lock keeps out the others that want it.
- An actor that has nothing to do calls `step` itself, or all the others would wait for it for ever.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

# Nobody waits for longer than a few steps of the others; this ends a test that hangs.
_HANGS_S: Final = 60.0


class _Stopped(Exception):
    """Another actor has failed."""


class _Actor(threading.Thread):
    def __init__(self, turns: Turns, work: Callable[[], None], *, wants_lock: bool) -> None:
        super().__init__(daemon=True)
        self._turns, self._work, self.wants_lock = turns, work, wants_lock
        self.may_go = threading.Semaphore(0)

    def run(self) -> None:
        self.may_go.acquire()
        try:
            self._work()
        except _Stopped:
            pass
        except BaseException as failure:
            self._turns.failure = self._turns.failure or failure
        finally:
            self._turns.leave(self)


class Turns:
    """`seed` decides who goes on, and how often that changes."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self._lock = threading.Lock()
        self._change_chance = self.dice.choice([0.03, 0.2, 0.8])
        self._actors: list[_Actor] = []
        self._current: _Actor | None = None
        self._holder: _Actor | None = None
        self._all_left = threading.Event()
        self.failure: BaseException | None = None

    def add(self, work: Callable[[], None], *, wants_lock: bool) -> None:
        """An actor that does `work`; without `wants_lock` it never takes the lock."""
        self._actors.append(_Actor(self, work, wants_lock=wants_lock))

    @property
    def count(self) -> int:
        """How many have not finished."""
        return len(self._actors)

    def run(self, lock: threading.Lock) -> None:
        """Until all have finished; raises what failed. `lock` is the one that actors share."""
        self._lock = lock
        actors = list(self._actors)
        for actor in actors:
            actor.start()
        self._give_turn()
        assert self._all_left.wait(_HANGS_S), "an actor hangs"
        for actor in actors:
            actor.join()
        if self.failure is not None:
            raise self.failure

    def step(self) -> None:
        """Perhaps let others go on, or end when one failed; for a thread that is no actor nothing."""
        me = self._current
        if threading.current_thread() is not me:
            return
        if self.failure is not None:
            raise _Stopped
        if self.dice.random() >= self._change_chance:
            return
        self._give_turn()
        if self._current is not me and me is not None:
            assert me.may_go.acquire(timeout=_HANGS_S), "nobody gives the turn back"

    def leave(self, actor: _Actor) -> None:
        """It has finished."""
        self._actors.remove(actor)
        if self._actors:
            self._give_turn()
        else:
            self._all_left.set()

    def _give_turn(self) -> None:
        me, is_held = self._current, self._lock.locked()
        if is_held and me is not None and me.wants_lock:
            # Who wants it runs only while nobody else has it, so this one has.
            self._holder = me
        able = [actor for actor in self._actors if not (is_held and actor.wants_lock and actor is not self._holder)]
        self._current = self.dice.choice(able)
        if self._current is not me:
            self._current.may_go.release()
