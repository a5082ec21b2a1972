"""Sizes as people write them, and values that a mount cannot have."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import cow
import snapfs
from snapfs.errors import BackupDamagedError, BusyError, SnapfsError, SnapshotLostError, UsageError
from snapfs.options import (
    Durability,
    Format,
    MountOptions,
    OnOverflow,
    Protect,
    format_size,
    parse_size,
    split_fuse_options,
)

SIZES = [
    ("0", 0),
    ("4096", 4096),
    ("4K", 4096),
    ("4k", 4096),
    (" 4 KiB ", 4096),
    ("1.5G", 3 << 29),
    ("0.5K", 512),
    ("2M", 2 << 20),
    ("16T", 16 << 40),
    ("16tib", 16 << 40),
]
NO_SIZES = [
    "",
    "K",
    "-1",
    "4X",
    "4 4K",
    "0x10",
    "1e9",
    "4Ki",
    "4iB",
    "nan",
    "0.3",
    "1.0001K",
    "9000000T",
    "٤K",
]


@pytest.mark.parametrize(("text", "size_bytes"), SIZES)
def test_a_size_is_read_in_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+\.$"):
        parse_size(text)


@pytest.mark.parametrize("text", ["4KB", "4kB", "1 GB"])
def test_an_ambiguous_size_is_refused_with_the_clear_one(text: str) -> None:
    with pytest.raises(UsageError, match=f"write {text[:-1]} for powers of 1024"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (3 << 29, "1.5 GiB"),
        (16 << 40, "16 TiB"),
    ],
)
def test_a_size_is_shown_with_at_most_one_decimal(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def options(**changes: Any) -> MountOptions:
    return MountOptions(image=Path("disk.img"), live=Path("live"), snap=Path("snap"), **changes)


def test_the_defaults_are_valid_and_frozen() -> None:
    defaults = options()
    assert (defaults.block_bytes, defaults.on_overflow, defaults.cache) == (
        4096,
        "break-snapshot",
        "writeback",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults.block_bytes = 512  # type: ignore[misc]


@pytest.mark.parametrize("block_bytes", [512, 4096, 1 << 20])
def test_a_power_of_two_in_range_is_a_block_size(block_bytes: int) -> None:
    assert options(block_bytes=block_bytes).block_bytes == block_bytes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_bytes": 0}, "block size"),
        ({"block_bytes": -4096}, "block size"),
        ({"block_bytes": 256}, "block size"),
        ({"block_bytes": 3000}, "block size"),
        ({"block_bytes": 2 << 20}, "block size"),
        ({"buffer_limit_bytes": 0}, "buffer limit"),
        ({"buffer_limit_bytes": -1}, "buffer limit"),
        ({"buffer_limit_bytes": 4095}, "buffer limit"),
        ({"protect": "some"}, "--protect"),
        ({"on_overflow": "panic"}, "--on-overflow"),
        ({"durability": "never"}, "--durability"),
        ({"cache": "none"}, "--cache"),
        ({"fuse_options": ("fsname=x",)}, "fsname"),
        ({"fuse_options": ("",)}, "FUSE option"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error_naming_it(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        options(**changes)
    assert caught.value.sentence.endswith(".")
    assert "\n" not in caught.value.sentence


def test_a_limit_of_exactly_one_block_is_accepted() -> None:
    assert options(buffer_limit_bytes=4096).buffer_limit_bytes == 4096


def test_fuse_options_of_several_o_are_split_in_order() -> None:
    assert split_fuse_options(["allow_other,noexec", "nodev,"]) == ("allow_other", "noexec", "nodev")


def test_exit_codes_tell_failed_usage_and_lost_apart() -> None:
    kinds = (SnapfsError, BusyError, UsageError, SnapshotLostError, BackupDamagedError)
    assert [kind.exit_code for kind in kinds] == [1, 1, 2, 3, 3]


def test_an_error_carries_its_sentence_and_its_facts() -> None:
    error = BusyError("disk.img is in use.", path="disk.img", holders=["process 1 (init)"])
    assert (str(error), error.path, error.holders) == (
        "disk.img is in use.",
        Path("disk.img"),
        ("process 1 (init)",),
    )


@pytest.mark.parametrize(
    ("choices", "known"),
    [(OnOverflow, cow.OverflowPolicy), (Durability, cow.Durability), (Protect, cow.Protect)],
)
def test_the_engine_knows_every_choice_of_a_mount(choices: Any, known: Any) -> None:
    assert set(get_args(choices)) == {one.name.lower().replace("_", "-") for one in known}


def test_the_schema_of_a_backup_knows_every_format() -> None:
    schema = json.loads((Path(snapfs.__file__).parent / "output.schema.json").read_text())
    assert schema["$defs"]["snapshot"]["properties"]["protect"]["enum"] == list(get_args(Protect))
    formats = list(get_args(Format))
    assert [one for one in _enums(schema, "format") if one not in (formats, [*formats, "rbd", "restic"])] == []


def _enums(node: Any, name: str) -> Iterator[list[str]]:
    """The words of every property called `name`."""
    for key, value in node.items() if isinstance(node, dict) else []:
        if key == name and isinstance(value, dict) and "enum" in value:
            yield value["enum"]
        yield from _enums(value, name)
