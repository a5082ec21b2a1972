"""A raw backup that cannot be brought up to date where it is: what is said then, and that it stays as it was."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from imager_rig import mounted
from nightly_rig import CELL, MIB, Nights, snapfs
from update_rig import SIZE, dest_of, stay_before_others, update_here, updated, with_sparse_image, write_cells

from snapfs.commands.backup import backup
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.manifest import read_manifest as manifest_at
from snapfs.imager.progress import silent
from snapfs.imager.reader import open_backup
from snapfs.options import BackupOptions


@pytest.fixture(autouse=True)
def not_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_before_others(monkeypatch)


@pytest.fixture
def sparse_image(nights: Nights) -> Nights:
    return with_sparse_image(nights)


def test_who_can_read_more_than_the_image_is_said(sparse_image: Nights) -> None:
    nights = sparse_image
    nights.image.chmod(0o644)
    updated(nights)
    nights.image.chmod(0o600)
    done = snapfs("backup", nights.image, dest_of(nights), "--update").ok()
    assert "keeps its mode, 644" in done.err
    done = snapfs("backup", nights.image, dest_of(nights), "--update", "--mode", "600").ok()
    assert "mode" not in done.err
    assert dest_of(nights).stat().st_mode & 0o777 == 0o600


def test_without_room_it_says_what_is_left_and_what_it_advises_works(sparse_image: Nights) -> None:
    nights = sparse_image
    point = nights.path / "point"
    point.mkdir()
    with mounted("none", point, "-t", "tmpfs", "-o", "size=8M"):
        words = ("backup", nights.image, point / "backup.img", "--update")
        snapfs(*words).ok()
        write_cells(nights.image, {number: os.urandom(CELL) for number in range(600, 620)})
        fill(point / "filler")
        snapfs(*words).refuses(1, "backup.img.update does not fit", "make room, then say --update again")
        assert {path.name for path in point.iterdir()} == {"backup.img", "backup.img.json", "filler"}
        os.truncate(point / "filler", (point / "filler").stat().st_size - MIB)
        done = snapfs(*words)
        done.refuses(1, "is half brought up to date now; make room, then say --update again before it is used.")
        (point / "filler").unlink()
        snapfs(*words).ok()
        assert (point / "backup.img").read_bytes() == nights.image.read_bytes()


def fill(path: Path) -> None:
    """All the room that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_an_image_of_another_size_is_refused(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    os.truncate(nights.image, SIZE + MIB)
    snapfs("backup", nights.image, dest_of(nights), "--update").refuses(
        2, "The size of the image went from", "--force"
    )
    assert updated(nights, "--force")["kind"] == "full"
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_one_of_another_size_than_it_was_is_overwritten_only_with_consent(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    os.truncate(dest_of(nights), MIB)
    snapfs("backup", nights.image, dest_of(nights), "--update").refuses(2, "--force")
    made = updated(nights, "--force")
    assert "is another than when it was made" in made["why"]
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_what_must_not_be_written_to_is_refused(sparse_image: Nights) -> None:
    nights, dest = sparse_image, dest_of(sparse_image)
    update_here(nights)
    before = dest.read_bytes()
    write_cells(nights.image, {1: os.urandom(CELL)})
    with open_backup(dest, manifest_at(Path(f"{dest}.json"))):
        snapfs("backup", nights.image, dest, "--update").refuses(1, "is in use")
    os.link(dest, nights.path / "second")
    with pytest.raises(SnapfsError, match=r"has another name as well, .* --force"):
        update_here(nights)
    (nights.path / "second").unlink()
    (nights.path / "backup.img.update").write_text("mine")
    with pytest.raises(SnapfsError, match="is not what snapfs has noted"):
        update_here(nights)
    (nights.path / "backup.img.update").unlink()
    other = nights.path / "other.img"
    other.write_bytes(nights.image.read_bytes())
    with pytest.raises(SnapfsError, match="name another DEST"):
        update_here(nights, other)
    assert dest.read_bytes() == before
    (nights.path / "link").symlink_to(dest)
    snapfs("backup", nights.image, nights.path / "link", "--update").ok()
    assert dest.read_bytes() == nights.image.read_bytes()


@pytest.mark.parametrize(
    ("dest", "words"),
    [("disk.img", "is the image itself"), ("-", "--update needs"), ("backups", "leave out --update")],
)
def test_what_cannot_be_brought_up_to_date_is_refused(nights: Nights, dest: str, words: str) -> None:
    path = Path(dest) if dest == "-" else nights.path / dest
    with pytest.raises(UsageError, match=words):
        backup(BackupOptions(nights.image, path, update=True), silent, Consent())
