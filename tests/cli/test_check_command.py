"""`snapfs check` of whole, damaged and running stores, and of what is no store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import Bench, snapfs

SEGMENT = "segments/00000001-00000001"


@pytest.fixture
def store(bench: Bench) -> Path:
    """A kept store with 64 preserved blocks."""
    with bench.mounted("--store", bench.store), bench.live_file.open("r+b") as file:
        file.write(os.urandom(64 * 4096))
    return bench.store


def damage(file: Path, offset: int) -> None:
    with file.open("r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 1]))


def test_a_kept_store_is_whole(bench: Bench, store: Path) -> None:
    with bench.untouched():
        done = snapfs("check", store).ok()
    assert done.out.startswith(f"{store} is whole: 64 preserved blocks, ")


def test_a_store_in_use_is_found_by_its_views_and_its_image(bench: Bench) -> None:
    with bench.mounted():
        with bench.live_file.open("r+b") as file:
            file.write(os.urandom(64 * 4096))
        for path in (bench.live, bench.snap, bench.image, bench.default_store):
            assert f"{bench.default_store} is whole: 64 preserved" in snapfs("check", path).ok().out


def test_a_damaged_record_is_named(bench: Bench, store: Path) -> None:
    for offset in range(0, 64 * 4096, 4096):
        damage(store / SEGMENT, offset + 1000)
    with bench.untouched():
        done = snapfs("check", store)
    assert done.code == 3
    assert "damaged: block " in done.out
    assert f"\n{store} is damaged: " in done.out


@pytest.mark.parametrize("name", ["control", "staging", "cut-00000001/settled", "cut-00000001/index"])
def test_a_missing_file_is_named(bench: Bench, store: Path, name: str) -> None:
    (store / name).unlink()
    with bench.untouched():
        done = snapfs("check", store)
    assert done.code == 3
    assert f"damaged: {Path(name).name}: No such file" in done.out


def test_a_changed_map_is_named(bench: Bench, store: Path) -> None:
    (store / "cut-00000001/settled").write_bytes(b"\xff" * 32)
    done = snapfs("check", store)
    assert done.code == 3
    assert "damaged: settled: not what was sealed" in done.out


@pytest.mark.parametrize("reason", ["has a damaged header", "has lost its header"])
def test_a_store_whose_header_is_gone_is_lost(bench: Bench, store: Path, reason: str) -> None:
    header = store / "header"
    header.write_bytes(b"no snapfs" + header.read_bytes()[9:])
    if "lost" in reason:
        header.unlink()
    with bench.untouched():
        snapfs("check", store).refuses(3, f"{store} {reason}")
        bench.mount("--store", store).refuses(3, f"{store} {reason}")


def test_a_dump_shows_header_maps_and_records(store: Path) -> None:
    done = snapfs("check", store, "--dump").ok()
    for words in ("header:\n  block_bytes 4096\n", "settled:\n  0..63\n", "segment 1 offset 0 blocks 0..15", "seal:"):
        assert words in done.out


def test_a_dump_of_a_store_that_lost_a_file_says_where_it_ends(bench: Bench, store: Path) -> None:
    (store / "control").unlink()
    done = snapfs("check", store, "--dump")
    assert done.code == 3
    assert "header:\n" in done.out
    assert "the rest cannot be read" in done.out


@pytest.mark.parametrize("name", ["live", "missing", "disk.img"])
def test_what_is_no_store(bench: Bench, name: str) -> None:
    with bench.untouched():
        snapfs("check", bench.path / name).refuses(1, f"{bench.path / name} ")


@pytest.mark.parametrize("option", ["--json", "-q"])
def test_a_dump_is_for_people(store: Path, option: str) -> None:
    done = snapfs("check", store, "--dump", option)
    assert (done.code, done.out) == (2, "")
    assert done.err == "snapfs: A dump is text for people; leave out --json and -q, or --dump.\n"
