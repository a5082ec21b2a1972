"""Nothing that is there is replaced unless the user says so: on the terminal, or before with --force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from snapfs.destination.place import Place
from snapfs.errors import UsageError

Confirm = Callable[[str], bool]
Note = Callable[[str], None]


def _refuse(question: str) -> bool:
    return False


def _say_nothing(sentence: str) -> None:
    return


@dataclass
class Consent:
    """`force`: asked for beforehand, then `note` says what it replaces, unless `quiet`. Else `confirm` asks."""

    force: bool = False
    confirm: Confirm = _refuse
    note: Note = _say_nothing
    quiet: bool = False
    _given: set[str] = field(default_factory=set)

    def ask_for(self, place: Place) -> None:
        """UsageError when what is at the place is to stay."""
        if place.is_new or self.force:
            return
        if not self.confirm(f"{place.named} ({place.text}) will be overwritten. Go on?"):
            raise UsageError(
                f"{place.named} exists ({place.text}) and would be overwritten; say --force, or name another place."
            )
        self._given.add(str(place.real))

    def gives(self, place: Place) -> bool:
        """Whether what an interrupted command left of this place may go as well."""
        return self.force or str(place.real) in self._given

    def covers(self, place: Place) -> None:
        """What is at the place goes with something that was asked for."""
        self._given.add(str(place.real))

    def announce(self, place: Place) -> None:
        """Just before: say what --force replaces."""
        if self.force and not place.is_new and not self.quiet:
            self.note(f"{place.named} ({place.text}) is replaced.")
