"""The servers' small files: damaged in any way they count as missing, and fail nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cow.disk.files import Files
from snapfs.cut_facts import Facts, Unfrozen, Writer
from snapfs.servers.notes import FACTS_NAME, REGIONS_NAME, read_facts, read_regions, write_facts, write_regions
from snapfs.usedmap.result import Region

FACTS = Facts(
    freeze_ms=1.5,
    frozen=("/mnt",),
    frozen_offsets=(0, 1 << 20),
    not_frozen=(Unfrozen("/mnt/fat", "cannot be frozen", None),),
    writers=(Writer("qemu", 0, None),),
)
REGIONS = [Region("ext4", 0, 1 << 20, "trusted", free_bytes=4096), Region("gap", 1 << 20, 512)]
DAMAGES = {
    "missing": None,
    "empty": b"",
    "garbage": os.urandom(200),
    "zeros": bytes(200),
    "deep": b"[" * 100_000,
    "another number": b"1e999",
    "null": b"null",
    "text": b'"text"',
    "object": b"{}",
    "list": b"[1, null]",
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS, Files())
    write_regions(tmp_path, REGIONS)
    assert read_facts(tmp_path) == FACTS
    assert [Region.from_facts(one) for one in read_regions(tmp_path) or []] == REGIONS


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_count_as_missing(tmp_path: Path, damage: str) -> None:
    content = DAMAGES[damage]
    for name in (FACTS_NAME, REGIONS_NAME):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    assert (read_facts(tmp_path), read_regions(tmp_path)) == (None, None)


def test_files_cut_at_any_byte_count_as_missing(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS, Files())
    write_regions(tmp_path, REGIONS)
    facts, regions = (tmp_path / FACTS_NAME).read_bytes(), (tmp_path / REGIONS_NAME).read_bytes()
    for length in range(max(len(facts), len(regions)) - 1):
        (tmp_path / FACTS_NAME).write_bytes(facts[: min(length, len(facts) - 1)])
        (tmp_path / REGIONS_NAME).write_bytes(regions[: min(length, len(regions) - 1)])
        assert (read_facts(tmp_path), read_regions(tmp_path)) == (None, None)


@pytest.mark.parametrize("key", list(asdict(FACTS)))
@pytest.mark.parametrize("value", ["text", {"a": 1}, [{"offset": "0"}], [-1], [[]]])
def test_facts_of_another_shape_count_as_missing(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / FACTS_NAME).write_text(json.dumps(asdict(FACTS) | {key: value}))
    assert read_facts(tmp_path) is None


@pytest.mark.parametrize("key", sorted(REGIONS[0].facts().keys() - {"used_bytes"}))
@pytest.mark.parametrize("value", [[{}], {}, -1, 1.5])
def test_regions_of_another_shape_count_as_missing(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / REGIONS_NAME).write_text(json.dumps([REGIONS[0].facts() | {key: value}]))
    assert read_regions(tmp_path) is None


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_counts_as_missing(tmp_path: Path, make: Any) -> None:
    for name in (FACTS_NAME, REGIONS_NAME):
        make(tmp_path / name)
    assert (read_facts(tmp_path), read_regions(tmp_path)) == (None, None)
