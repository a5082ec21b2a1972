"""What the messages have in common: a request and its answer, and who may ask until when, about what.

Each rule is a class that the requests it holds for are of, and has the sentence of its refusal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from snapfs.errors import SnapfsError

AnswerT = TypeVar("AnswerT")


class Request(Generic[AnswerT]):
    """What can be asked; `answer` is the class of what is answered."""

    op: ClassVar[str]
    answer: ClassVar[type[Any]]


@dataclass(frozen=True)
class Done:
    """There is nothing to tell."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The asker waits until `deadline_s` of CLOCK_MONOTONIC, which all processes of a machine share."""

    deadline_s: float

    @property
    def left_s(self) -> float:
        """0 when the time is over."""
        return max(0.0, self.deadline_s - time.monotonic())

    def check_time(self) -> None:
        """SnapfsError when the asker does not wait any more."""
        if not self.left_s:
            raise SnapfsError("The time that was given for it is over, so nothing was done; try again.")


@dataclass(frozen=True, kw_only=True)
class OfCut:
    """What is said is about the snapshot of this generation."""

    generation: int

    def check_present(self, generation: int) -> None:
        """SnapfsError when `generation`, the present one, is another."""
        if self.generation != generation:
            raise SnapfsError(
                "The snapshot that was meant has ended, for another one has taken its place, so nothing was done; "
                "see snapfs status."
            )


@dataclass(frozen=True, kw_only=True)
class OfSnapshot:
    """What is said is about the snapshot of this id, which no other has, in whatever store."""

    id: str


def deadline_in(timeout_s: float) -> float:
    """The `deadline_s` of one who waits for `timeout_s` from now on."""
    return time.monotonic() + timeout_s
