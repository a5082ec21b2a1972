"""The backups of a directory in order, and chain.json, which lists them. The form is in FORMAT.md.

Rules
- chain.json is written last, under another name first, and gets its name in one step. It holds nothing that is not in
  the facts of the backups, but for what was verified when: when it is missing or damaged it is made again from them.
- A backup that has its facts and is not listed is listed then: its maker was killed just before.
- One that is listed and says itself that it is going is none any more: the prune was killed just before.
- Names come from files that others can write. None of them leads out of the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from snapfs.backups.facts import Facts, Kind, check_name, read_facts
from snapfs.backups.layout import CHAIN_NAME, PROGRAM, QCOW2, VERSION, Names, names_finished
from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.names import partial_path
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.stamps import utc_now, utc_time
from snapfs.system.file_kinds import read_small
from snapfs.whole import put_whole

_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """A line of chain.json: what is shown of a backup without opening it."""

    name: str
    kind: Kind
    taken_at: str
    created_at: str
    cut_id: str | None
    base: str | None
    image_bytes: int
    file_bytes: int
    read_bytes: int
    unread_bytes: int
    verified_at: str | None = None

    @classmethod
    def of(cls, facts: Facts) -> Entry:
        return cls(
            facts.name,
            facts.kind,
            facts.taken_at,
            facts.created_at,
            facts.cut_id,
            None if facts.base is None else facts.base.name,
            facts.image_bytes,
            facts.file_bytes,
            facts.read_bytes,
            facts.unread.total_bytes,
        )

    def as_json(self) -> dict[str, Any]:
        """As it is in the list, and as `snapfs backups` prints it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "taken_at": self.taken_at,
            "created_at": self.created_at,
            "cut": self.cut_id,
            "base": self.base,
            "image_bytes": self.image_bytes,
            "file_bytes": self.file_bytes,
            "read_bytes": self.read_bytes,
            "unread_bytes": self.unread_bytes,
            "verified_at": self.verified_at,
        }


@dataclass
class Chain:
    """What is in `directory`, oldest first. `notes` are sentences about what was found there."""

    directory: Path
    id: str
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, directory: Path) -> Chain:
        """What the directory holds, also nothing; SnapfsError when it cannot be read."""
        try:
            finished = names_finished(directory)
        except OSError as error:
            raise SnapfsError(
                f"{directory} cannot be read: {error.strerror}; name a directory of backups.", path=directory
            ) from error
        chain = _listed(directory)
        reason = "damaged" if (directory / CHAIN_NAME).exists() else "missing"
        known = set() if chain is None else {entry.name for entry in chain.entries}
        found = list(_readable(names for names in finished if names.name not in known))
        if chain is None:
            chain = cls(directory, _id_of(found), [])
            if found:
                chain.notes.append(f"{directory / CHAIN_NAME} is {reason}, and was made again from the backups.")
        chain.entries = [entry for entry in chain.entries if not chain._is_going(entry.name)]
        chain._adopt(found)
        return chain

    def _is_going(self, name: str) -> bool:
        """Of one whose facts are damaged nobody knows."""
        with contextlib.suppress(SnapfsError):
            facts = read_facts(self.names(name).facts, name)
            return facts.is_going and facts.chain == self.id
        return False

    def _adopt(self, found: Sequence[Facts]) -> None:
        """List what is of this chain and is not listed, each after the one below it."""
        waiting = {facts.name: facts for facts in found if facts.chain == self.id and not facts.is_going}
        for facts in sorted(waiting.values(), key=_made_at):
            line: list[Facts] = []
            one: Facts | None = facts
            while one is not None and one.name in waiting:
                line.append(waiting.pop(one.name))
                one = None if one.base is None else waiting.get(one.base.name)
            self.entries += [Entry.of(one) for one in reversed(line)]

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    def names(self, name: str) -> Names:
        return Names(self.directory, name)

    def facts(self, name: str) -> Facts:
        """BackupDamagedError when they are missing or not what was written."""
        found = self.as_it_is(read_facts(self.names(name).facts, name))
        if found.chain != self.id:
            raise BackupDamagedError(
                f"{self.names(name).facts} is of a backup in another chain; take another copy.", path=self.directory
            )
        return found

    def as_it_is(self, facts: Facts) -> Facts:
        """What a backup is by its facts, in the midst of a merge too."""
        if facts.merged is not None and facts.base is not None and not self.names(facts.base.name).qcow2.exists():
            # The file of the one below has become its own.
            return facts.merged
        return facts

    def links(self, name: str) -> list[Facts]:
        """The backup and all those below it, from the full one on; BackupDamagedError when one is not what the next
        one was made on."""
        links = [self.facts(name)]
        while (base := links[-1].base) is not None:
            below = self.facts(base.name)
            if (below.id, below.cut_id) != (base.id, base.cut_id):
                raise self._not_below(below.name, links[-1].name)
            if below.image_bytes != links[-1].image_bytes or any(one.name == below.name for one in links):
                raise self._not_below(below.name, links[-1].name)
            links.append(below)
        return links[::-1]

    def _not_below(self, below: str, above: str) -> BackupDamagedError:
        return BackupDamagedError(
            f"{self.names(below).facts} is not the backup that {above} was made on; take another copy.",
            path=self.directory,
        )

    def increments(self, name: str) -> list[Entry]:
        """The increments from this backup down to its full one, by the list alone."""
        by_name = {entry.name: entry for entry in self.entries}
        found: list[Entry] = []
        one = by_name.get(name)
        while one is not None and one.base is not None and len(found) < len(by_name):
            found.append(one)
            one = by_name.get(one.base)
        return found

    def full_of(self, name: str) -> str:
        """The name of the full backup that it stands on, by the list alone."""
        found = self.increments(name)
        return found[-1].base or name if found else name

    def find(self, at: str | None) -> Entry:
        """The backup called so, or the newest that is not after that time; None: the newest. UsageError: none is."""
        if not self.entries:
            raise UsageError(f"There is no backup in {self.directory}; name a directory of backups.")
        if at is None:
            return self.entries[-1]
        for entry in self.entries:
            if at in (entry.name, entry.name + QCOW2):
                return entry
        until = read_time(at)
        times = [(utc_time(entry.taken_at), number) for number, entry in enumerate(self.entries)]
        fitting = [time for time in times if time[0] <= until]
        if not fitting:
            raise UsageError(
                f"The oldest backup in {self.directory} is of {min(times)[0]:%Y-%m-%dT%H:%M:%SZ}, after {at}; name a "
                "later time, or a backup (snapfs backups)."
            )
        return self.entries[max(fitting)[1]]

    def note_verified(self, names: Iterable[str]) -> None:
        now, verified = utc_now(), set(names)
        self.entries = [
            replace(entry, verified_at=now) if entry.name in verified else entry for entry in self.entries
        ]

    def save(self, access: Access | None = None) -> None:
        """Write chain.json, for those who may have it; without `access` for the same as now."""
        path = self.directory / CHAIN_NAME
        with write_errors(str(path), "try again"):
            write_text(path, self.text(), access or _access_of(path))

    def text(self) -> str:
        """As it is in the file."""
        backups = [entry.as_json() for entry in self.entries]
        data = {"version": VERSION, "program": PROGRAM, "chain": self.id, "backups": backups}
        return json.dumps(data, indent=2) + "\n"


def read_time(text: str) -> datetime:
    """A time as snapfs writes it, in ISO 8601 or of the local time zone; of a day alone its last second."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text} is neither a backup nor a time; give the name of one (snapfs backups), or a time such as "
            "2026-01-31T12:00:00Z or '2026-01-31 12:00'."
        ) from error
    if len(text) == len("2026-01-31"):
        time += timedelta(days=1, seconds=-1)
    return time.astimezone()


def _id_of(found: Sequence[Facts]) -> str:
    """That of the newest backup; a new one without any."""
    newest = max(found, key=_made_at, default=None)
    return uuid.uuid4().hex if newest is None else newest.chain


def _made_at(facts: Facts) -> tuple[str, str]:
    return facts.created_at, facts.name


def _readable(names: Iterable[Names]) -> Iterable[Facts]:
    """What is not a backup of ours is somebody else's file."""
    for one in names:
        try:
            facts = read_facts(one.facts, one.name)
        except SnapfsError:
            continue
        if _ID.fullmatch(facts.chain):
            yield facts


def _listed(directory: Path) -> Chain | None:
    """What chain.json says; None when it is missing, or not what was written."""
    try:
        data = json.loads(read_small(directory / CHAIN_NAME, "", flags=os.O_NOFOLLOW))
        if data["version"] != VERSION or not _ID.fullmatch(data["chain"]):
            return None
        entries = [_entry(one) for one in data["backups"]]
    except (OSError, SnapfsError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return Chain(directory, data["chain"], entries)


def _entry(data: dict[str, Any]) -> Entry:
    utc_time(data["taken_at"])
    return Entry(
        check_name(data["name"]),
        "full" if data["kind"] == "full" else "increment",
        str(data["taken_at"]),
        str(data["created_at"]),
        data["cut"],
        None if data["base"] is None else check_name(data["base"]),
        int(data["image_bytes"]),
        int(data["file_bytes"]),
        int(data["read_bytes"]),
        int(data["unread_bytes"]),
        data["verified_at"],
    )


def _access_of(path: Path) -> Access:
    try:
        return Access.of(path)
    except FileNotFoundError:
        return Access(NEW_MODE)


def remove_unwritten(path: Path, access: Access | None = None) -> None:
    """What a `write_text` that was killed has left; `access`: of the file, if that is not there yet."""
    partial = partial_path(path)
    left = open_left(partial, {os.geteuid(), (access or Access.of(path)).uid})
    if left is not None:
        os.unlink(partial)
        os.close(left)


def write_text(path: Path, text: str, access: Access) -> None:
    """Durably, in one step."""
    partial = partial_path(path)
    remove_unwritten(path, access)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, NEW_MODE)
    try:
        put_whole(fd, memoryview(text.encode()))
        access.give_to(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(partial, path)
    sync_directory(path.parent)
