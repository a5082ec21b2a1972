"""Backups that go. What others need of one is merged into the next: a full one and the increment above it become a
full one, in time and room by what the increment holds.

Of G, which goes, and N above it:

    (1) every file that will be merged is read: it holds what was written to it
    (2) G.json says that G is going; chain.json lists it no more
    (3) what N holds is written over what G has, in G.qcow2
    (4) N.1.cells, the table of what is in G.qcow2 now; N.json says what N will be (`Facts.merged`)
    (5) G.qcow2 is renamed to N.qcow2
    (6) N.json says it alone; the tables of before, and G.json last, go

Read through G.qcow2, N is the same after each of these steps: what is written there is what N hides. Stopped
anywhere, the next prune goes on. One that nothing stands on is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from snapfs.backups.chain import Chain, Entry, remove_unwritten, write_text
from snapfs.backups.facts import Facts
from snapfs.backups.overlay import Overlay
from snapfs.backups.reading import backing_of, open_alone, open_link, open_table
from snapfs.backups.survey import survey
from snapfs.backups.table import Table, write_table
from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import CELL_BYTES, extents_of
from snapfs.imager.progress import Report
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.qcow2_map import held_by
from snapfs.imager.qemu import Link, check_structure
from snapfs.imager.reader import BackupReader

_WAY_OUT: Final = "prune again"
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Pruner:
    """Prunes the backups of `chain`, in whose directory it has the turn."""

    def __init__(self, chain: Chain, report: Report) -> None:
        self._chain, self._report = chain, report
        found = survey(chain)
        # Those whose facts are damaged are not among them.
        self._all, self._left_alone = found.facts, found.left_alone

    def prune(self, going: Iterable[str]) -> None:
        """Those of these names go, after what an interrupted one has left; not what is to be left alone (`survey`).
        BackupDamagedError: one that stays, or is needed by it, is damaged; nothing else has changed."""
        self._tidy_up()
        # In the file of one that was going already there may be half of the one above it, which must not go before.
        self._let_go(set())
        self._let_go(set(going) - self._left_alone)

    def _tidy_up(self) -> None:
        """What is left of merges that have come to their end: facts that say it twice, and of those that went. And of
        facts that were about to be written again."""
        for facts in list(self._all.values()):
            if facts.merged is not None and facts.base is not None and not self._file_of(facts.base.name).exists():
                self._settle(facts.name)
        for facts in self._all.values():
            self._remove_tables_of_before(facts)
            remove_unwritten(self._chain.names(facts.name).facts)
        while tops := self._all_going() - {facts.base.name for facts in self._all.values() if facts.base is not None}:
            for name in sorted(tops):
                self._remove(name)

    def _all_going(self) -> set[str]:
        return {facts.name for facts in self._all.values() if facts.is_going} - self._left_alone

    def _let_go(self, going: Container[str]) -> None:
        self._check_merged(going)
        for facts in list(self._all.values()):
            if facts.name in going and not facts.is_going:
                self._write(replace(facts, is_going=True))
        stay = (self._all.keys() | self._left_alone) - self._all_going()
        self._chain.entries = [one for one in self._chain.entries if one.name in stay]
        self._chain.save()
        for name in [facts.name for facts in reversed(self._all.values()) if not self._is_needed(facts, ())]:
            self._remove(name)
        all_going = self._all_going()
        for name in [name for name in self._all if name in all_going]:
            above = self._above(self._all[name])
            assert above is not None, "nothing else goes"
            self._merge(self._all[name], above)
            self._settle(above.name)
            self._remove(name)

    def _check_merged(self, going: Container[str]) -> None:
        """What will be merged into others has to be what was written to it: those might be the last good ones. And
        what it is written into has to know what is free in it, and to be nobody else's."""
        for facts in self._all.values():
            base = None if facts.base is None else self._all.get(facts.base.name)
            if base is not None and self._goes(base, going) and self._is_needed(facts, going):
                with _alone(self._chain, facts) as (reader, _):
                    reader.verify(self._report)
                with open_link(self._file_of(base.name), base) as link:
                    check_structure(link)
                    _check_has_one_name(link)

    def _is_needed(self, facts: Facts, going: Container[str]) -> bool:
        """Whether it stays, or something that stays stands on it."""
        if not self._goes(facts, going):
            return True
        above = self._above(facts)
        return above is not None and self._is_needed(above, going)

    def _goes(self, facts: Facts, going: Container[str]) -> bool:
        return (facts.name in going or facts.is_going) and facts.name not in self._left_alone

    def _above(self, facts: Facts) -> Facts | None:
        found = [one for one in self._all.values() if one.base is not None and one.base.name == facts.name]
        if len(found) > 1:
            raise SnapfsError(
                f"{' and '.join(one.name for one in found)} both stand on {facts.name}, so it cannot go; remove one.",
                path=self._chain.directory,
            )
        return found[0] if found else None

    # --- one that goes ---------------------------------------------------------------------------------------

    def _merge(self, below: Facts, above: Facts) -> None:
        size_bytes = above.image_bytes
        with contextlib.ExitStack() as stack:
            reader, table = stack.enter_context(_alone(self._chain, above))
            older = stack.enter_context(contextlib.closing(open_table(self._chain, below)))
            path = self._file_of(below.name)
            with write_errors(str(path), _WAY_OUT):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            target = Qcow2Target(
                fd, path, size_bytes, compress=False, keep=True, way_out=_WAY_OUT, backing=backing_of(below)
            )
            try:
                damaged: list[int] = []
                reader.run("prune", target.write, damaged.append, self._report)
                if damaged:
                    raise reader.damage(damaged)
                _, zero_cells = table.maps()
                for extent in extents_of(zero_cells, size_bytes, is_zeros=True):
                    target.hide(extent.offset, extent.length)
                target.sync()
                target.finish()
            finally:
                target.close()
            merged = self._described(below, above, older, table, fd)
        self._write(replace(above, merged=merged))
        with write_errors(str(path), _WAY_OUT):
            os.rename(path, self._file_of(above.name))
            sync_directory(path.parent)

    def _described(self, below: Facts, above: Facts, older: Table, table: Table, fd: int) -> Facts:
        """What the one above is with the file of the one below, which holds both; its table is written."""
        size_bytes, names = above.image_bytes, self._chain.names(above.name)
        held = held_by(fd, self._file_of(below.name), size_bytes)
        overlay = Overlay(size_bytes, (older, table))
        data, zero_cells = table.maps()
        if held.data != overlay.held or held.zeros != (older.maps()[1] & ~data) | zero_cells:
            raise BackupDamagedError(
                f"{self._file_of(below.name)} does not hold what was merged into it; check the disk it is "
                "on, and prune again.",
                path=self._chain.directory,
            )
        digests = (
            overlay.digests(extent.offset // CELL_BYTES, -(-extent.end // CELL_BYTES)).tobytes()
            for extent in extents_of(held.data, size_bytes)
        )
        path = names.table(above.merges + 1)
        access = Access.of(names.facts)
        with write_errors(str(path), _WAY_OUT), _new_file(path, access) as table_fd:
            access.give_to(table_fd)
            hashes = write_table(table_fd, size_bytes, held.data, held.zeros, digests)
        return replace(
            above,
            kind=below.kind,
            why=f"{below.name} was merged into it",
            base=below.base,
            data_cells=held.data.count(),
            zero_cells=held.zeros.count(),
            file_bytes=os.fstat(fd).st_size,
            maps_blake3=hashes[0],
            table_blake3=hashes[1],
            merges=above.merges + 1,
            # Of an interrupted one.
            merged=None,
        )

    def _settle(self, name: str) -> None:
        """Its file is that of the one below by now."""
        was = self._all[name]
        assert was.merged is not None, "it says what it is then"
        self._write(was.merged)
        self._chain.entries = [
            replace(Entry.of(was.merged), verified_at=one.verified_at) if one.name == name else one
            for one in self._chain.entries
        ]
        self._chain.save()
        self._remove_tables_of_before(was.merged)

    def _remove_tables_of_before(self, facts: Facts) -> None:
        for merges in range(facts.merges):
            path = self._chain.names(facts.name).table(merges)
            if path.exists():
                self._unlink(path)

    def _remove(self, name: str) -> None:
        """What shows that it is going last."""
        facts, names = self._all.pop(name), self._chain.names(name)
        for path in (names.qcow2, names.table(facts.merges), names.facts):
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        with write_errors(str(path), _WAY_OUT):
            path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def _file_of(self, name: str) -> Path:
        return self._chain.names(name).qcow2

    def _write(self, facts: Facts) -> None:
        path = self._chain.names(facts.name).facts
        write_text(path, facts.text(), Access.of(path))
        self._all[facts.name] = facts


def _check_has_one_name(link: Link) -> None:
    if os.fstat(link.fd).st_nlink != 1:
        raise SnapfsError(
            f"{link.path} has another name as well, and would change under that, too; put a copy of its own in its "
            "place, or remove the other name.",
            path=link.path,
        )


@contextlib.contextmanager
def _new_file(path: Path, access: Access) -> Iterator[int]:
    """In the place of what an interrupted one has left."""
    left = open_left(path, {os.geteuid(), access.uid})
    if left is not None:
        os.unlink(path)
        os.close(left)
    fd = os.open(path, _NEW, NEW_MODE)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)


@contextlib.contextmanager
def _alone(chain: Chain, facts: Facts) -> Iterator[tuple[BackupReader, Table]]:
    """What the backup holds itself."""
    with contextlib.closing(open_table(chain, facts)) as table:
        table.check_whole(facts.table_blake3)
        with open_alone(chain.names(facts.name).qcow2, facts, table) as reader:
            yield reader, table
