"""The files are what FORMAT.md says: read here by that document alone, without a line of snapfs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from nightly_rig import CELL, Nights, run, snapfs

from snapfs.backups.facts import read_facts
from snapfs.errors import BackupDamagedError


def table_of(path: Path) -> tuple[int, dict[int, bytes | None]]:
    """Bytes of the image, and of each cell that is held its digest, None for zeros."""
    data = path.read_bytes()
    magic, version, cell_bytes, image_bytes, held, hidden = struct.unpack_from("<8sIIQQQ", data)
    assert (magic, version, cell_bytes) == (b"SNAPCELL", 1, CELL)
    count = -(-image_bytes // CELL)
    size = -(-count // 8)

    def cells(at: int) -> list[int]:
        return [cell for cell in range(count) if data[at + cell // 8] >> cell % 8 & 1]

    start = 64 + 2 * size
    digests = [data[at : at + 32] for at in range(start, len(data), 32)]
    found: dict[int, bytes | None] = dict(zip(cells(64), digests, strict=True))
    assert len(found) == held
    assert len(cells(64 + size)) == hidden
    return image_bytes, found | dict.fromkeys(cells(64 + size))


def checked_facts(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    rest = {key: value for key, value in data.items() if key != "blake3"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert blake3(text.encode()).hexdigest() == data["blake3"]
    return data


def test_the_image_of_a_time_is_what_tables_and_facts_say(nights: Nights) -> None:
    nights.back_up()
    nights.change(2, 64)
    run("fallocate", "--punch-hole", "--offset", str(5 * CELL), "--length", str(2 * CELL), nights.image)
    nights.back_up()
    image = nights.image.read_bytes()
    cells: dict[int, bytes | None] = {}
    for one in json.loads((nights.backups / "chain.json").read_text())["backups"]:
        facts = checked_facts(nights.backups / f"{one['name']}.json")
        path = nights.backups / f"{one['name']}.cells"
        image_bytes, held = table_of(path)
        assert facts["cells"]["whole"] == blake3(path.read_bytes()).hexdigest()
        assert (image_bytes, facts["image_bytes"]) == (len(image), len(image))
        assert facts["data_cells"] == sum(digest is not None for digest in held.values())
        cells |= held
    assert facts["base"]["name"] == nights.listed()[0]["name"]
    for cell in range(-(-len(image) // CELL)):
        content = image[cell * CELL : (cell + 1) * CELL]
        assert cells.get(cell) == (blake3(content).digest() if any(content) else None), cell


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("base", {"name": "../x", "cut": None, "cells": ""}, "is no name of a backup"),
        ("kind", "full", "what only the other has"),
        ("version", 2, "its version is 2"),
        ("image_bytes", -1, "no size"),
        ("unread", [{"offset": 1 << 40, "length": 1}], "past the image"),
        ("taken_at", "monday", "does not match"),
        ("cells", None, "of the wrong kind|subscriptable"),
    ],
)
def test_facts_that_cannot_be_are_refused_also_with_their_hash(
    nights: Nights, key: str, value: Any, reason: str
) -> None:
    nights.back_up()
    nights.back_up()
    path = nights.file(1, ".json")
    data = json.loads(path.read_text())
    data[key] = value
    del data["blake3"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**data, "blake3": blake3(text.encode()).hexdigest()}))
    with pytest.raises(BackupDamagedError, match=reason):
        read_facts(path, path.stem)
    snapfs("restore", nights.backups, nights.path / "r.img").refuses(3, path.name)
