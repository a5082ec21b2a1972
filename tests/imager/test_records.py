"""The manifest and the journal: read back as written, and never believed when they are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import BusyError, SnapfsError
from snapfs.imager.extents import Extent
from snapfs.imager.journal import Done, Journal
from snapfs.imager.manifest import Hashed, Manifest, read_manifest, write_manifest
from snapfs.imager.unread import Ranges

EXTENTS = [Extent(0, 4096), Extent(8192, 8192, is_zeros=True), Extent(65536, 4096)]
HASHED = tuple(
    Hashed(extent, None if extent.is_zeros else bytes([index]) * 32) for index, extent in enumerate(EXTENTS)
)
DONE = {0: Done(b"a" * 32), 2: Done(b"c" * 32, [(65536, 512)])}
FACTS = {"cut": "one", "format": "raw"}


@pytest.fixture
def manifest_file(tmp_path: Path) -> Path:
    path = tmp_path / "b.json"
    write_manifest(path, Manifest(1 << 20, "raw", HASHED, {"image": "/srv/disk.img"}))
    return path


def test_a_manifest_is_read_as_it_was_written(manifest_file: Path) -> None:
    manifest = read_manifest(manifest_file)
    assert (manifest.image_bytes, manifest.format, manifest.extents) == (1 << 20, "raw", HASHED)
    assert manifest.facts["image"] == "/srv/disk.img"
    assert manifest.data_bytes == 8192


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("image_bytes", 4096), ("image_bytes", 2 << 20), ("extents", []), ("blake3", "00")],
)
def test_a_manifest_with_another_value_is_refused(manifest_file: Path, key: str, value: Any) -> None:
    data = json.loads(manifest_file.read_text())
    data[key] = value
    manifest_file.write_text(json.dumps(data))
    with pytest.raises(SnapfsError, match="no whole manifest"):
        read_manifest(manifest_file)


NOT_SIZES = [-1, 0.5, 1e400, float("nan"), True, None, "12", [], {}, 2**63, 2**64, 10**300]


@pytest.mark.parametrize("value", NOT_SIZES, ids=lambda value: f"{value!r:.8}")
@pytest.mark.parametrize("key", ["image_bytes", "offset", "length"])
def test_a_manifest_with_an_impossible_number_is_refused(manifest_file: Path, key: str, value: Any) -> None:
    data = json.loads(manifest_file.read_text())
    (data if key == "image_bytes" else data["extents"][1])[key] = value
    manifest_file.write_text(json.dumps(data))
    with pytest.raises(SnapfsError, match="no whole manifest"):
        read_manifest(manifest_file)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "null", '"x"', "{", ""])
def test_what_is_no_manifest_is_refused(manifest_file: Path, text: str) -> None:
    manifest_file.write_text(text)
    with pytest.raises(SnapfsError, match="manifest of snapfs"):
        read_manifest(manifest_file)


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "1",
        "[1, 2]",
        "[[1]]",
        "[[-1, 4096, false]]",
        '[[99, "00", []]]',
        '[[0, "00", [[-1, 1]]]]',
        "[[1e400, 1, 1]]",
    ],
)
def test_a_journal_that_says_the_impossible_is_not_resumed(tmp_path: Path, line: int, text: str) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, FACTS, EXTENTS)
    journal.add({0: DONE[0]})
    journal.close()
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SnapfsError):
        Journal.resume(path, FACTS)


def test_what_is_unread_is_kept_and_covered_by_the_overall_hash(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_manifest(path, Manifest(1 << 20, "raw", HASHED, unread=Ranges([(512, 512)])))
    assert read_manifest(path).unread == Ranges([(512, 512)])
    data = json.loads(path.read_text())
    del data["unread"]
    path.write_text(json.dumps(data))
    with pytest.raises(SnapfsError, match="hash over everything"):
        read_manifest(path)


@pytest.mark.parametrize("key", ["version", "image_bytes", "extents", "blake3", "format"])
def test_a_manifest_without_a_key_is_refused(manifest_file: Path, key: str) -> None:
    data = json.loads(manifest_file.read_text())
    del data[key]
    manifest_file.write_text(json.dumps(data))
    with pytest.raises(SnapfsError):
        read_manifest(manifest_file)


def test_a_manifest_cut_anywhere_is_refused(manifest_file: Path) -> None:
    whole = manifest_file.read_bytes()
    for length in range(len(whole.rstrip()) - 1):
        manifest_file.write_bytes(whole[:length])
        with pytest.raises(SnapfsError):
            read_manifest(manifest_file)


def test_a_changed_hash_is_noticed(manifest_file: Path) -> None:
    text = manifest_file.read_text().replace('"' + "00" * 32, '"01' + "00" * 31)
    manifest_file.write_text(text)
    with pytest.raises(SnapfsError, match="does not fit"):
        read_manifest(manifest_file)


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SnapfsError, match="--manifest"):
        read_manifest(tmp_path / "nothing.json")


def test_a_journal_cut_anywhere_tells_only_what_is_true(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, FACTS, EXTENTS)
    head = path.stat().st_size
    journal.add({0: DONE[0]})
    one = path.stat().st_size
    journal.add({2: DONE[2]})
    journal.close()
    whole = path.read_bytes()
    for length in range(head, len(whole) + 1):
        path.write_bytes(whole[:length])
        resumed = Journal.resume(path, FACTS)
        expected = DONE if length == len(whole) else {0: DONE[0]} if length >= one else {}
        assert resumed.done == expected
        assert resumed.extents == EXTENTS
        resumed.close()


def test_a_resumed_journal_goes_on_after_what_it_believes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, FACTS, EXTENTS)
    journal.add({0: DONE[0]})
    journal.close()
    with path.open("ab") as file:
        file.write(b"[[2, ")
    resumed = Journal.resume(path, FACTS)
    resumed.add({2: DONE[2]})
    resumed.close()
    again = Journal.resume(path, FACTS)
    assert again.done == DONE
    again.close()


def test_a_journal_of_another_cut_is_refused(tmp_path: Path) -> None:
    Journal.create(tmp_path / "journal", FACTS, EXTENTS).close()
    with pytest.raises(SnapfsError, match="its cut differs"):
        Journal.resume(tmp_path / "journal", {**FACTS, "cut": "two"})


def test_two_backups_to_one_place_are_refused(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", FACTS, EXTENTS)
    with pytest.raises(BusyError):
        Journal.create(tmp_path / "journal", FACTS, EXTENTS)
    journal.close()
