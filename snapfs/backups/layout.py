"""The names in a directory of backups and the form of NAME.cells, as FORMAT.md has them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.destination.names import journal_path, partial_path

VERSION: Final = 1
PROGRAM: Final = "snapfs"
CHAIN_NAME: Final = "chain.json"
QCOW2: Final = ".qcow2"
_CELLS: Final = ".cells"
_FACTS: Final = ".json"
_DIGESTS: Final = ".digests"

CELLS_MAGIC: Final = b"SNAPCELL"
# magic, version, bytes of a cell, bytes of the image, cells that are held as data, cells that are held as zeros
CELLS_HEADER: Final = struct.Struct("<8sIIQQQ24x")


@dataclass(frozen=True)
class Names:
    """The files of the backup `name` in `directory`."""

    directory: Path
    name: str

    @property
    def qcow2(self) -> Path:
        return self.directory / (self.name + QCOW2)

    @property
    def cells(self) -> Path:
        return self.directory / (self.name + _CELLS)

    def table(self, merges: int) -> Path:
        """The table of one into which so many others were merged."""
        return self.cells if not merges else self.directory / f"{self.name}.{merges}{_CELLS}"

    @property
    def facts(self) -> Path:
        return self.directory / (self.name + _FACTS)

    @property
    def finished(self) -> tuple[Path, Path, Path]:
        """In the order in which they get their names; the last makes it a backup."""
        return self.qcow2, self.cells, self.facts

    @property
    def digests(self) -> Path:
        """The first that is there of an unfinished one, and the last that goes: what has it beside is ours."""
        return _with(partial_path(self.qcow2), _DIGESTS)

    @property
    def journal(self) -> Path:
        return journal_path(partial_path(self.qcow2))

    @property
    def unfinished(self) -> tuple[Path, ...]:
        return (*map(partial_path, self.finished), self.journal, self.digests)


def names_left(directory: Path) -> list[Names]:
    """Those of which something unfinished is there."""
    end = partial_path(Path(QCOW2)).name + _DIGESTS
    return sorted(
        (Names(directory, path.name.removesuffix(end)) for path in directory.iterdir() if path.name.endswith(end)),
        key=lambda names: names.name,
    )


def names_finished(directory: Path) -> list[Names]:
    """Those that have what may be the facts of a backup, and more of it."""
    return [one for one in names_with_facts(directory) if one.cells.exists() or one.qcow2.exists()]


def names_with_facts(directory: Path) -> list[Names]:
    """Those that have what may be the facts of a backup."""
    found = (path for path in directory.iterdir() if path.name.endswith(_FACTS) and path.name != CHAIN_NAME)
    return sorted((Names(directory, path.name.removesuffix(_FACTS)) for path in found), key=lambda names: names.name)


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
