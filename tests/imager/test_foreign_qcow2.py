"""A qcow2 from elsewhere, restored or verified: nothing but itself is opened, whatever it or its name asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, read_manifest, run, running, snapfs

from snapfs.errors import BackupDamagedError
from snapfs.imager.qcow2_header import check_header

SECRET = b"the secret of another user"


@pytest.fixture
def secret(small: Bench) -> Path:
    path = small.path / "secret"
    path.write_bytes(SECRET * 1000 + bytes(2 * MIB - len(SECRET) * 1000))
    return path


@pytest.fixture
def backup(small: Bench) -> Path:
    path = small.path / "backup"
    snapfs("backup", small.image, path, "--format", "qcow2").ok()
    return path


def refuses_all(small: Bench, backup: Path, reason: str) -> None:
    snapfs("verify", backup).refuses(3, reason, "not opened")
    snapfs("restore", backup, small.path / "new").refuses(3, reason)
    assert not (small.path / "new").exists()
    assert not (small.path / "new.partial").exists()


@pytest.mark.parametrize("name", ["secret", 'json:{"driver":"file","filename":"secret"}', "nbd:unix:/run/socket"])
def test_a_backing_file_is_not_opened(small: Bench, backup: Path, secret: Path, name: str) -> None:
    os.unlink(backup)
    run(
        "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", backup, str(2 * MIB), cwd=small.path
    )
    refuses_all(small, backup, "has a backing file")


def test_an_external_data_file_is_not_opened(small: Bench, backup: Path, secret: Path) -> None:
    os.unlink(backup)
    made = small.path / "data"
    options = f"data_file={made},data_file_raw=on"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, backup, str(2 * MIB))
    secret.rename(made)
    refuses_all(small, backup, "has its data in another file")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\0" * 104, "is no qcow2"),
        (b"QFI\xfb" + (3).to_bytes(4, "big"), "is no qcow2"),
        (b"QFI\xfb" + (9).to_bytes(4, "big") + bytes(96), "of version 9"),
        (b"QFI\xfb" + (2).to_bytes(4, "big") + (80).to_bytes(8, "big") + bytes(88), "has a backing file"),
        (b"QFI\xfb" + (2).to_bytes(4, "big") + bytes(24) + (2).to_bytes(4, "big") + bytes(68), "is encrypted"),
        (b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(64) + (4).to_bytes(8, "big"), "in another file"),
        (b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(64) + (1 << 40).to_bytes(8, "big"), "not known"),
    ],
)
def test_headers_that_do_not_stand_alone(tmp_path: Path, head: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(head)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(BackupDamagedError, match=reason):
            check_header(fd, tmp_path / "file")
    finally:
        os.close(fd)


def test_a_snapshot_and_a_bitmap_inside_change_nothing(small: Bench, backup: Path) -> None:
    run("qemu-img", "snapshot", "-c", "inside", backup)
    run("qemu-img", "bitmap", "--add", backup, "map")
    snapfs("restore", backup, small.path / "restored", "--verify").ok()
    run("cmp", small.image, small.path / "restored")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_name_is_not_taken_for_an_address_or_options(small: Bench, form: str) -> None:
    name = 'json:{"driver":"null-co","size":2097152}'
    snapfs("backup", small.image, name, "--format", form, "--verify", cwd=small.path).ok()
    snapfs("restore", name, "nbd:unix:x,size=1", cwd=small.path).ok()
    run("cmp", small.image, small.path / "nbd:unix:x,size=1")


def test_an_image_that_holds_a_qcow2_is_bytes(small: Bench, secret: Path) -> None:
    """A guest may have written there whatever it likes: raw is raw."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", small.image, str(2 * MIB))
    content = small.image.read_bytes()
    for form in ("raw", "qcow2"):
        backup = small.path / form
        snapfs("backup", small.image, backup, "--format", form, "--verify").ok()
        assert read_manifest(backup)["image_bytes"] == len(content)
        snapfs("restore", backup, small.path / f"{form}.img").ok()
        assert (small.path / f"{form}.img").read_bytes() == content


def test_a_foreign_unfinished_qcow2_is_not_resumed(small: Bench, secret: Path) -> None:
    """The journal of a real one, with another file in its place."""
    small.image.write_bytes(os.urandom(40 * MIB))
    backup = small.path / "backup"
    with running("backup", small.image, backup, "--format", "qcow2", "--rate", "16M") as process:
        process.await_bytes(20 * MIB)
        process.interrupt()
        process.wait()
    partial = small.path / "backup.partial"
    partial.unlink()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", partial, str(40 * MIB))
    snapfs("backup", small.image, backup, "--format", "qcow2", "--resume").refuses(3, "has a backing file")
