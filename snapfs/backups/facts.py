"""NAME.json: what one backup of a chain is. The form is in FORMAT.md.

It is the last of the three files that gets its name: with it there is a backup, without it there is none. It has a
hash over itself, and those of its table; the table has those of the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from blake3 import blake3

from snapfs.backups.layout import CHAIN_NAME, PROGRAM, VERSION
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import CELL_BYTES, read_size
from snapfs.imager.manifest import read_unread
from snapfs.imager.unread import Ranges
from snapfs.stamps import utc_time
from snapfs.system.file_kinds import read_small

Kind = Literal["full", "increment"]
_WAY_OUT: Final = "take another copy"


@dataclass(frozen=True)
class Base:
    """The backup below one: its name, its cut, and its id, which stays whatever is merged into it."""

    name: str
    cut_id: str | None
    id: str


@dataclass(frozen=True)
class Facts:
    """One backup. `why` says why it is a full one, or why all was read for an increment, else it is empty.

    `merges`: how many others were merged into it. One that `is_going` is no backup any more, but others stand on it.
    `merged`: what it is once its own file is the one that was that of the backup below it.
    """

    name: str
    id: str
    chain: str
    kind: Kind
    why: str
    image: str
    image_bytes: int
    block_bytes: int
    taken_at: str
    created_at: str
    cut: Mapping[str, Any] | None
    base: Base | None
    data_cells: int
    zero_cells: int
    read_bytes: int
    file_bytes: int
    maps_blake3: str
    table_blake3: str
    used_blake3: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    regions: tuple[Mapping[str, Any], ...] = ()
    unread: Ranges = field(default_factory=Ranges)
    merges: int = 0
    is_going: bool = False
    merged: Facts | None = None

    @property
    def cut_id(self) -> str | None:
        """None when the image was not mounted."""
        return None if self.cut is None else str(self.cut["id"])

    @property
    def data_bytes(self) -> int:
        """How much of the image its file holds; the last cell counts as a whole one."""
        return self.data_cells * CELL_BYTES

    def text(self) -> str:
        """As it is in the file."""
        data = self._as_json()
        return json.dumps({**data, "blake3": _self_hash(data)}, indent=2) + "\n"

    def _as_json(self) -> dict[str, Any]:
        base = self.base
        return {
            "version": VERSION,
            "program": PROGRAM,
            "name": self.name,
            "id": self.id,
            "chain": self.chain,
            "kind": self.kind,
            "why": self.why,
            "image": self.image,
            "image_bytes": self.image_bytes,
            "block_bytes": self.block_bytes,
            "taken_at": self.taken_at,
            "created_at": self.created_at,
            "cut": self.cut,
            "base": None if base is None else {"name": base.name, "cut": base.cut_id, "id": base.id},
            "data_cells": self.data_cells,
            "zero_cells": self.zero_cells,
            "read_bytes": self.read_bytes,
            "file_bytes": self.file_bytes,
            "cells": {"maps": self.maps_blake3, "whole": self.table_blake3},
            "used": self.used_blake3,
            "identity": self.identity,
            "regions": list(self.regions),
            "unread": [{"offset": offset, "length": length} for offset, length in self.unread],
            "merges": self.merges,
            "is_going": self.is_going,
            "merged": None if self.merged is None else self.merged._as_json(),
        }


def read_facts(path: Path, name: str) -> Facts:
    """The facts of the backup `name` at `path`; BackupDamagedError when they are missing, or not what was written."""
    try:
        data = json.loads(read_small(path, _WAY_OUT, flags=os.O_NOFOLLOW))
        if data["blake3"] != _self_hash({key: value for key, value in data.items() if key != "blake3"}):
            raise ValueError("its hash does not fit what it says")
        return _parsed(data, name)
    except FileNotFoundError as error:
        raise BackupDamagedError(
            f"{path} is missing, and without it {name} is no backup; {_WAY_OUT}.", path=path
        ) from error
    except OSError as error:
        raise SnapfsError(f"{path} cannot be read: {error.strerror}; check the disk it is on.", path=path) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BackupDamagedError(
            f"{path} is not what snapfs wrote of a backup ({error or 'a value is of the wrong kind'}); {_WAY_OUT}.",
            path=path,
        ) from error


def check_name(name: Any) -> str:
    """ValueError unless it can be the name of a backup in its directory: one that leads elsewhere must not."""
    if not isinstance(name, str) or not name or "/" in name or "\0" in name:
        raise ValueError(f"{name!r:.40} is no name of a backup")
    if f"{name}.json" == CHAIN_NAME:
        raise ValueError(f"{name!r:.40} is the name of the list")
    return name


def _parsed(data: dict[str, Any], name: str) -> Facts:
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r:.40}, this snapfs knows {VERSION}")
    if data["name"] != name:
        raise ValueError(f"it is of {data['name']!r:.80}, under another name")
    kind: Kind = "full" if data["kind"] == "full" else "increment"
    image_bytes = read_size(data["image_bytes"])
    utc_time(data["taken_at"])
    return Facts(
        name=check_name(name),
        id=str(data["id"]),
        chain=str(data["chain"]),
        kind=kind,
        why=str(data["why"]),
        image=str(data["image"]),
        image_bytes=image_bytes,
        block_bytes=read_size(data["block_bytes"]),
        taken_at=str(data["taken_at"]),
        created_at=str(data["created_at"]),
        cut=data["cut"],
        base=_base(data["base"], kind),
        data_cells=int(data["data_cells"]),
        zero_cells=int(data["zero_cells"]),
        read_bytes=int(data["read_bytes"]),
        file_bytes=int(data["file_bytes"]),
        maps_blake3=str(data["cells"]["maps"]),
        table_blake3=str(data["cells"]["whole"]),
        used_blake3=str(data["used"]),
        identity=dict(data["identity"]),
        regions=tuple(data["regions"]),
        unread=read_unread(data["unread"], image_bytes),
        merges=_count(data["merges"]),
        is_going=bool(data["is_going"]),
        merged=None if data["merged"] is None else _parsed(data["merged"], name),
    )


def _base(data: dict[str, Any] | None, kind: Kind) -> Base | None:
    if (data is None) != (kind == "full"):
        raise ValueError("it is of one kind and has what only the other has")
    return None if data is None else Base(check_name(data["name"]), data["cut"], str(data["id"]))


def _count(value: Any) -> int:
    """It becomes a part of a name."""
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _self_hash(data: Mapping[str, Any]) -> str:
    return blake3(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
