"""Where results go: asked for, as private as what was read, whole under their names; and never a mixture of two."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, loop_device, mounted, names_in, run, running, snapfs

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.directory import free_name, names
from snapfs.destination.place import Place, look_at
from snapfs.destination.result import new_result
from snapfs.errors import SnapfsError, UsageError
from snapfs.system.file_kinds import open_readable


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what is there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["new", "new.partial", "new.partial.journal"])
def test_a_manifest_is_neither_the_backup_nor_what_is_beside_it_meanwhile(small: Bench, manifest: str) -> None:
    words = ("backup", small.image, small.path / "new", "--manifest", small.path / manifest)
    snapfs(*words).refuses(2, "the same file", "name two")
    assert not (small.path / manifest).exists()


def test_nothing_is_replaced_unasked_and_force_says_what(small: Bench) -> None:
    for words in (
        ("backup", small.image, small.path / "dear"),
        ("map", small.image, "--domain", small.path / "dear"),
        ("map", small.image, "--svg", small.path / "dear"),
        ("backup", small.image, small.path / "new", "--manifest", small.path / "dear"),
    ):
        (small.path / "dear").write_text("dear")
        snapfs(*words).refuses(2, "dear exists (a file of 4 B, changed ", "--force")
        assert (small.path / "dear").read_text() == "dear"
        assert "dear (a file of 4 B, changed " in snapfs(*words, "--force").ok().err
        assert (small.path / "dear").stat().st_size > 4
        (small.path / "new").unlink(missing_ok=True)


def test_force_says_which_device_it_replaces(small: Bench) -> None:
    (small.path / "disk").write_bytes(bytes(2 * MIB))
    with loop_device(small.path / "disk") as device:
        said = snapfs("backup", small.image, device, "--force").ok().err
        assert f"{device} (a block device of 2 MiB, over {small.path}/disk) is replaced" in said
        assert snapfs("backup", small.image, device, "--force", "-q").ok().err == ""


def test_a_symbolic_link_is_followed_and_stays(small: Bench) -> None:
    (small.path / "elsewhere").mkdir()
    link = small.path / "link"
    link.symlink_to("elsewhere/backup")
    snapfs("backup", small.image, link).refuses(2, "link is a symbolic link", "does not exist")
    (small.path / "elsewhere" / "backup").write_text("old")
    snapfs("backup", small.image, link, "--force").ok()
    assert link.is_symlink()
    assert names_in(small.path / "elsewhere") == {"backup", "backup.json"}
    for name in (link, small.path / "elsewhere" / "backup"):
        snapfs("verify", name).ok()


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize("kind", ["FIFO", "socket", "directory", "character device", "symbolic link"])
def test_what_is_no_file_is_neither_written_nor_waited_for(small: Bench, kind: str) -> None:
    odd = small.path / "odd"
    make: dict[str, Callable[[], object]] = {
        "FIFO": lambda: os.mkfifo(odd),
        "socket": lambda: bind_socket(odd),
        "directory": odd.mkdir,
        "character device": lambda: os.mknod(odd, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
        "symbolic link": lambda: odd.symlink_to("/dev/null"),
    }
    make[kind]()
    name = "character device" if kind == "symbolic link" else kind
    with pytest.raises(UsageError, match=name):
        look_at(odd)
    with pytest.raises((SnapfsError, OSError)):
        open_readable(odd, "name another")
    if kind == "FIFO":
        snapfs("map", odd).refuses(1, "neither")
        snapfs("backup", odd, small.path / "new").refuses(1, "neither")
        snapfs("backup", small.image, small.path / "backup").ok()
        snapfs("restore", small.path / "backup", odd, "--force").refuses(2, f"odd is a {name}")
        snapfs("restore", odd, small.path / "new").refuses(1, "neither")
        snapfs("verify", small.path / "backup", "--manifest", odd).refuses(1, f"odd is a {name}")
        snapfs("mount", odd, small.live, small.snap).refuses(1, name)


# --- unfinished ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_the_second_of_two_at_once_is_told_who_the_first_is(small: Bench, command: str) -> None:
    source, dest = small.image, small.path / "dest"
    small.image.write_bytes(os.urandom(12 * MIB))
    other = small.path / "other"
    run("cp", source, other)
    if command == "restore":
        source = other = small.path / "backup"
        snapfs("backup", small.image, source).ok()
    with running(command, source, dest, "--rate", "1M") as first:
        first.await_bytes(1)
        with first.stopped():
            snapfs(command, other, dest, "--force").refuses(1, "dest.partial is in use: process ", "(snapfs)")
        first.interrupt()
        assert first.wait().code == 130
    assert not dest.exists()


def test_a_prepared_unfinished_name_is_not_followed(small: Bench) -> None:
    victim = small.path / "victim"
    victim.write_text("dear")
    for name in ("backup.partial", "backup.partial.journal", "backup.json.partial"):
        make = os.link if name == "backup.partial" else os.symlink
        make(victim, small.path / name)
        snapfs("backup", small.image, small.path / "backup", "--force").refuses(1, name)
        (small.path / name).unlink()
        assert victim.read_text() == "dear"
    os.symlink(victim, small.path / "map.png.partial")
    snapfs("map", small.image, "--png", small.path / "map.png", "--force").refuses(1, "map.png.partial")
    (small.path / "backup.partial").write_text("of somebody")
    os.chown(small.path / "backup.partial", 65534, 65534)
    snapfs("backup", small.image, small.path / "backup", "--force").refuses(1, "belongs to another user")


def write_result(place: Place, meanwhile: Callable[[], object]) -> None:
    with new_result(place, Consent(), Access(0o600)) as file:
        file.write_text("new")
        meanwhile()


def test_a_name_that_appears_meanwhile_is_not_replaced(small: Bench) -> None:
    place = look_at(small.path / "map")
    with pytest.raises(SnapfsError, match="appeared"):
        write_result(place, lambda: (small.path / "map").write_text("dear"))
    assert (small.path / "map").read_text() == "dear"
    assert (small.path / "map.partial").read_text() == "new", "it is said to be left"
    (small.path / "other").write_text("old")
    place = look_at(small.path / "other")
    (small.path / "fresh").write_text("dear")
    with pytest.raises(SnapfsError, match="another file"):
        write_result(place, lambda: (small.path / "fresh").rename(small.path / "other"))
    assert (small.path / "other").read_text() == "dear"


# --- who may read it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_image", "expected"), [(0o600, 0o600), (0o440, 0o640), (0o666, 0o644), (0o755, 0o644)])
def test_the_mode_of_a_copy_is_no_wider_than_that_of_its_source_and_the_umask(
    tmp_path: Path, of_image: int, expected: int
) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "image").chmod(of_image)
    assert Access.of(tmp_path / "image").mode == expected


@pytest.mark.parametrize(("of_image", "words", "expected"), [(0o600, (), 0o600), (0o644, ("--mode", "400"), 0o400)])
def test_a_copy_is_as_private_as_its_source(
    small: Bench, of_image: int, words: tuple[str, ...], expected: int
) -> None:
    small.image.chmod(of_image)
    os.chown(small.image, 1234, 4321)
    backup, restored, drawn = (small.path / name for name in ("backup", "restored", "map.svg"))
    snapfs("backup", small.image, backup, *words).ok()
    snapfs("restore", backup, restored, *words).ok()
    snapfs("map", small.image, "--svg", drawn, *words).ok()
    for file in (backup, backup.with_name("backup.json"), restored, drawn):
        assert (mode_of(file), file.stat().st_uid, file.stat().st_gid) == (expected, 1234, 4321), file


def test_a_backup_of_a_snapshot_is_as_private_as_the_image_and_never_less(small: Bench) -> None:
    small.image.write_bytes(os.urandom(12 * MIB))
    small.image.chmod(0o640)
    slowly = ("--rate", "4M", "--mode", "644")
    with small.mounted(), running("backup", small.live, small.path / "backup", *slowly) as process:
        process.await_bytes(1)
        with process.stopped():
            left = {path: mode_of(path) for path in small.path.glob("backup*")}
        assert set(left.values()) == {0o600}, left
        process.wait().ok()
        assert mode_of(small.path / "backup") == 0o644
        snapfs("backup", small.live, small.path / "other").ok()
        assert mode_of(small.path / "other") == 0o640


def test_a_group_that_cannot_be_kept_gets_what_everybody_has(small: Bench) -> None:
    file = small.path / "copy"
    file.touch()
    pid = os.fork()
    if not pid:
        os.chown(file, 65534, 65534)
        fd = os.open(file, os.O_RDWR)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        Access(0o664, 0, 0).give_to(fd)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert mode_of(file) == 0o644


# --- restore ---------------------------------------------------------------------------------------------------


def damaged_backup(small: Bench, *words: str) -> Path:
    """With one byte of its last extent changed."""
    small.image.write_bytes(os.urandom(20 * MIB))
    backup = small.path / "backup"
    snapfs("backup", small.image, backup, *words).ok()
    with backup.open("r+b") as file:
        file.seek(18 * MIB)
        byte = file.read(1)[0]
        file.seek(18 * MIB)
        file.write(bytes([byte ^ 1]))
    return backup


@pytest.mark.parametrize(("form", "words"), [("raw", ("--check-first",)), ("qcow2", ())])
def test_a_damaged_backup_is_found_before_anything_is_overwritten(
    small: Bench, form: str, words: tuple[str, ...]
) -> None:
    backup = damaged_backup(small, "--format", form)
    target = small.path / "target"
    target.write_bytes(bytes(20 * MIB))
    snapfs("restore", backup, target, "--force", *words).refuses(3, "is damaged")
    assert not any(target.read_bytes())


def test_an_image_that_is_half_restored_is_called_so(small: Bench) -> None:
    backup = damaged_backup(small)
    target = small.path / "target"
    target.write_bytes(bytes(20 * MIB))
    target.chmod(0o600)
    done = snapfs("restore", backup, target, "--force", "-q")
    done.refuses(3, "is damaged", "target is half restored now", "restore again before it is used")
    with loop_device(target) as device, running("restore", backup, device, "--force", "--rate", "8M") as process:
        process.await_bytes(1)
        process.interrupt()
        done = process.wait()
    assert done.code == 130
    assert f"Interrupted, and {device} is half restored now; restore again before it is used." in done.err


# --- a directory -----------------------------------------------------------------------------------------------


def test_the_nightly_job_of_the_readme_works_every_night(small: Bench) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.startswith("$ snapfs backup --cut"))
    command = line.removeprefix("$ snapfs ").partition("#")[0].split()
    assert command[-2:] == ["/mnt/live", "/backups/"]
    backups = small.path / "backups"
    backups.mkdir()
    run("mkfs.ext4", "-q", "-F", small.image)
    with small.mounted(), mounted(small.live_file, small.path / "point", "-o", "loop") as point:
        for night in ("one", "two"):
            (point / night).write_text(night)
            made = snapfs(*command[:-2], small.live, f"{backups}/").ok().out.split()[0]
            snapfs("verify", made).ok()
    found = sorted(path.stem for path in backups.glob("*.qcow2"))
    assert len(found) == 2
    assert all(re.fullmatch(r"disk-\d{4}-\d\d-\d\dT\d{6}Z(_\d\d)?", name) for name in found)
    files = {name + end for name in found for end in (".qcow2", ".cells", ".json")}
    assert names_in(backups) == files | {"chain.json"}
    assert Path(made).stem == found[-1], "they sort by time"
    for name, has_two in zip(found, (False, True), strict=True):
        restored = small.path / f"{name}.restored"
        snapfs("restore", backups, restored, "--at", name).ok()
        assert (b"two" in restored.read_bytes()) == has_two


def test_names_of_one_second_differ_and_sort(tmp_path: Path) -> None:
    found = []
    for _ in range(12):
        name = free_name(names(tmp_path, "disk.img", "2026-01-31T12:00:00Z", ".qcow2"))
        (name if len(found) % 2 else name.with_name(f"{name.name}.partial")).touch()
        found.append(name)
    assert found[0].name == "disk-2026-01-31T120000Z.qcow2"
    later = next(names(tmp_path, "disk.img", "2026-01-31T12:00:01Z", ".qcow2"))
    assert sorted({*found, later}) == [*found, later]


def test_an_interrupted_backup_in_a_directory_is_resumed_there(small: Bench) -> None:
    small.image.write_bytes(os.urandom(40 * MIB))
    backups = small.path / "backups"
    backups.mkdir()
    with small.mounted():
        words = ("backup", small.live, backups, "--format", "raw")
        snapfs(*words, "--resume").refuses(1, "nothing to resume")
        with running(*words, "--rate", "12M") as process:
            process.await_bytes(18 * MIB)
            process.interrupt()
            process.wait().refuses(130, "--resume goes on")
        snapfs(*words, "--resume").ok()
    (backup,) = backups.glob("*.img")
    assert names_in(backups) == {backup.name, f"{backup.name}.json"}
    run("cmp", backup, small.image)


def test_a_directory_that_is_not_there_is_not_made(small: Bench) -> None:
    """It may be where a disk should have been mounted."""
    snapfs("backup", small.image, f"{small.path}/missing/").refuses(1, "is no directory")
    words = ("--format", "raw", "--json")
    assert json.loads(snapfs("backup", small.image, small.path, *words).ok().out)["backup"].startswith(
        f"{small.path}/disk-20"
    )
