"""Actors that take turns: one runs at a time, and at each step a number decides which one goes on.

A step is before every change of anything and before every look at what others change, so any interleaving of the
actors may come, and the same number brings the same one again.

- Locks and waiting are made of turns too (`TurnLock`, `waiting`): who cannot go on lets others.
- An actor that has nothing to do calls `step` itself, or all the others would wait for it for ever.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Final

import pytest

import cow.disk.bitmaps
import cow.disk.mapped_file
import cow.live.engine
import cow.live.relief
from cow.live.traffic import Gate

# Nobody waits for longer than a few steps of the others; this ends a test that hangs.
_HANGS_S: Final = 60.0


class _Stopped(Exception):
    """Another actor has failed."""


class _Actor(threading.Thread):
    def __init__(self, turns: Turns, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._turns, self._work = turns, work
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
        self._change_chance = self.dice.choice([0.03, 0.2, 0.8])
        self._actors: list[_Actor] = []
        self._current: _Actor | None = None
        self._all_left = threading.Event()
        self.failure: BaseException | None = None

    def add(self, work: Callable[[], None]) -> None:
        """An actor that does `work`."""
        self._actors.append(_Actor(self, work))

    @property
    def count(self) -> int:
        """How many have not finished."""
        return len(self._actors)

    def run(self) -> None:
        """Until all have finished; raises what failed."""
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
        if self.dice.random() < self._change_chance:
            self._let_others(me)

    def wait(self) -> None:
        """This actor cannot go on just now."""
        me = self._current
        if threading.current_thread() is me:
            if self.failure is not None:
                raise _Stopped
            self._let_others(me)

    def _let_others(self, me: _Actor | None) -> None:
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
        me = self._current
        self._current = self.dice.choice(self._actors)
        if self._current is not me:
            self._current.may_go.release()


class TurnLock:
    """A lock in whose place others go on while it is held."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._lock = turns, threading.Lock()

    def acquire(self, blocking: bool = True) -> bool:
        while not self._lock.acquire(blocking=False):
            if not blocking:
                return False
            self._turns.wait()
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


@contextlib.contextmanager
def waiting(turns: Turns) -> Iterator[None]:
    """Within this, the locks that the engine makes are made of turns, and a write that waits lets others go on."""

    def wait_outside(gate: Gate, is_news: Callable[[], bool]) -> None:
        offset = gate.under_way.pop()
        while True:
            gate._changed.release()
            turns.wait()
            gate._changed.acquire()
            if not gate._closed:
                break
        gate.under_way.append(offset)

    made = SimpleNamespace(Lock=lambda: TurnLock(turns), Condition=threading.Condition, get_ident=threading.get_ident)
    with pytest.MonkeyPatch.context() as patch:
        for module in (cow.live.engine, cow.live.relief, cow.disk.mapped_file, cow.disk.bitmaps):
            patch.setattr(module, "threading", made)
        patch.setattr(Gate, "wait_outside", wait_outside)
        yield
