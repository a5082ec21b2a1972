"""A raw backup that is brought up to date where it is: only what has changed, and right wherever it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from imager_rig import loop_device, make_ext4, make_files, mounted, overwrite, read_manifest
from nightly_rig import CELL, MIB, Nights, run, snapfs, with_other_bytes

from snapfs.commands.backup import backup
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.commands.verify import VerifyOptions, verify
from snapfs.destination.consent import Consent
from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.imager import target
from snapfs.imager.half_way import Note, manifest_hash
from snapfs.imager.manifest import read_manifest as manifest_at
from snapfs.imager.progress import silent
from snapfs.imager.reader import open_backup
from snapfs.imager.unread import Ranges
from snapfs.options import BackupOptions
from snapfs.stamps import utc_now

# Of 3 extents.
SIZE = 40 * MIB
MOST = 60
STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "rename"),
    (os, "unlink"),
    (target, "write_whole"),
    (target, "make_zeros"),
    (ChainCheckpoints, "hold"),
    (ChainCheckpoints, "let_go"),
)


@pytest.fixture(autouse=True)
def not_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in this process leaves its priority alone."""
    for command in ("backup", "verify"):
        monkeypatch.setattr(f"snapfs.commands.{command}.yield_to_others", lambda: True)


@pytest.fixture
def sparse_image(nights: Nights) -> Nights:
    """Data in some cells of each extent."""
    nights.image.unlink()
    write_cells(nights.image, {number: os.urandom(CELL) for number in (0, 1, 2, 3, 256, 257, 258, 600, 601)})
    os.truncate(nights.image, SIZE)
    return nights


def write_cells(image: Path, cells: dict[int, bytes]) -> None:
    with image.open("r+b" if image.exists() else "wb") as file:
        for number, data in cells.items():
            file.seek(number * CELL)
            file.write(data)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks who else uses the files, which takes longer than all the rest."""
    monkeypatch.setattr("snapfs.destination.place.refuse_in_use", lambda *words: None)
    monkeypatch.setattr("snapfs.imager.image_source.check_image_unused", lambda *words: None)


def dest_of(nights: Nights) -> Path:
    return nights.path / "backup.img"


def updated(nights: Nights, *words: str | Path, source: Path | None = None) -> dict[str, Any]:
    """`snapfs backup --update`; what is said of it."""
    done = snapfs("backup", source or nights.image, dest_of(nights), "--update", "--json", *words).ok()
    made: dict[str, Any] = json.loads(done.out)
    return made


def update_here(nights: Nights, source: Path | None = None) -> None:
    """The same without another process."""
    backup(BackupOptions(source or nights.image, dest_of(nights), format="raw", update=True), silent, Consent())


def state_of(nights: Nights) -> str:
    """By what `snapfs verify` says."""
    try:
        verify(VerifyOptions(dest_of(nights)), silent, lambda sentence: None)
    except BackupDamagedError as error:
        return "half" if "is half brought up to date since" in error.sentence else error.sentence
    return "whole"


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed before this step; False when it has come to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            left = [step]
            for module, name in STEPS:
                setattr(module, name, _dying(getattr(module, name), left))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _dying(step: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def taken(*words: Any, **keywords: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return step(*words, **keywords)

    return taken


def debris(nights: Nights) -> set[str]:
    return {path.name for path in nights.path.iterdir() if path.name.startswith("backup.img")} - {
        "backup.img",
        "backup.img.json",
    }


def test_only_what_differs_is_written(sparse_image: Nights) -> None:
    nights = sparse_image
    assert updated(nights)["kind"] == "full"
    inode = dest_of(nights).stat().st_ino
    write_cells(nights.image, {257: os.urandom(CELL), 620: os.urandom(CELL)})
    run("fallocate", "--punch-hole", "--offset", str(2 * CELL), "--length", str(CELL), nights.image)
    made = updated(nights)
    assert (made["kind"], made["written_bytes"]) == ("update", 2 * CELL)
    assert "is not mounted" in made["why"]
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()
    assert dest_of(nights).stat().st_ino == inode
    assert dest_of(nights).stat().st_blocks <= nights.image.stat().st_blocks, "what was freed is a hole"
    snapfs("verify", dest_of(nights)).ok()
    assert updated(nights, "--verify")["written_bytes"] == 0
    assert debris(nights) == set()


@pytest.mark.usefixtures("alone")
def test_killed_at_every_step_the_next_one_makes_it_right(sparse_image: Nights) -> None:
    """What the killed one wrote was changed back meanwhile: by its hash it looks as if it were there already."""
    nights = sparse_image
    update_here(nights)
    old = {number: nights.image.read_bytes()[number * CELL : (number + 1) * CELL] for number in (1, 257)}
    states = []
    for step in range(MOST):
        write_cells(nights.image, {1: os.urandom(CELL), 257: bytes(CELL)})
        was_killed = killed_at(step, lambda: update_here(nights))
        states.append(state_of(nights))
        write_cells(nights.image, {**old, 601: os.urandom(CELL)})
        update_here(nights)
        assert dest_of(nights).read_bytes() == nights.image.read_bytes(), step
        assert (state_of(nights), debris(nights)) == ("whole", set()), step
        if not was_killed:
            break
    assert not was_killed
    first, end = states.index("half"), len(states) - states[::-1].index("half")
    assert set(states[:first]) == set(states[end:]) == {"whole"}
    assert set(states[first:end]) == {"half"}


@pytest.mark.usefixtures("alone")
def test_each_step_is_on_the_disk_before_the_next(sparse_image: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss, too, it is as it was, or new, or known to be half brought up to date."""
    nights = sparse_image
    update_here(nights)
    write_cells(nights.image, {1: os.urandom(CELL)})
    order = []

    def note(module: Any, name: str, what: Callable[..., str | os.PathLike[str]]) -> None:
        step = getattr(module, name)

        def noted(*words: Any, **keywords: Any) -> Any:
            order.append(f"{name} {Path(what(*words)).name}")
            return step(*words, **keywords)

        monkeypatch.setattr(module, name, noted)

    def of_fd(fd: int, *_: object) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    note(os, "fsync", of_fd)
    note(target, "write_whole", of_fd)
    note(os, "rename", lambda old, new: new)
    note(os, "unlink", lambda path: path)
    update_here(nights)
    directory = nights.path.name
    assert [step for step, _ in groupby(order)] == [
        "fsync backup.img.update.partial",
        "rename backup.img.update",
        f"fsync {directory}",
        "write_whole backup.img",
        "fsync backup.img",
        "fsync backup.img.json.partial",
        f"fsync {directory}",
        "rename backup.img.json",
        f"fsync {directory}",
        "unlink backup.img.update",
        f"fsync {directory}",
    ]


def test_killed_twice_what_both_wrote_is_made_right(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    image = nights.image.read_bytes()
    for number in (1, 257):
        write_cells(nights.image, {number: os.urandom(CELL)})
        assert killed_before_the_manifest(lambda: update_here(nights))
        nights.image.write_bytes(image)
    begun_at = json.loads((nights.path / "backup.img.update").read_text())["begun_at"]
    snapfs("verify", dest_of(nights)).refuses(3, f"since {begun_at}", "--update")
    snapfs("restore", dest_of(nights), nights.path / "restored.img").refuses(3, "half brought up to date")
    snapfs("backup", nights.image, dest_of(nights), "--resume").refuses(2, "half brought up to date", "--update")
    updated(nights, "--resume")
    assert dest_of(nights).read_bytes() == image
    snapfs("backup", nights.image, dest_of(nights), "--update", "--resume").refuses(1, "nothing to resume")


@pytest.mark.usefixtures("alone")
def test_a_damaged_note_says_that_nothing_is_known_of_the_backup(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    image = nights.image.read_bytes()
    write_cells(nights.image, {1: os.urandom(CELL)})
    assert killed_before_the_manifest(lambda: update_here(nights))
    nights.image.write_bytes(image)
    note = nights.path / "backup.img.update"
    os.truncate(note, note.stat().st_size // 2)
    with pytest.raises(BackupDamagedError, match="is half brought up to date; finish that"):
        verify(VerifyOptions(dest_of(nights)), silent, lambda sentence: None)
    update_here(nights)
    assert (dest_of(nights).read_bytes(), debris(nights)) == (image, set())


def killed_before_the_manifest(work: Callable[[], None]) -> bool:
    """Killed when all is written to the backup."""

    def without_hold() -> None:
        ChainCheckpoints.hold = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        work()

    return killed_at(1 << 30, without_hold)


def test_what_somebody_else_has_changed_is_found_by_reading_it(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    with_other_bytes(dest_of(nights), 5)
    with_other_bytes(dest_of(nights), 100 * CELL)
    made = updated(nights)
    assert "somebody else has changed" in made["why"]
    assert made["written_bytes"] == CELL
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_one_of_another_size_than_it_was_is_overwritten_only_with_consent(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    os.truncate(dest_of(nights), MIB)
    snapfs("backup", nights.image, dest_of(nights), "--update").refuses(2, "--force")
    made = updated(nights, "--force")
    assert "is another than when it was made" in made["why"]
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


@pytest.mark.usefixtures("alone")
def test_one_that_is_cut_short_meanwhile_is_not_called_whole(
    sparse_image: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = sparse_image
    update_here(nights)
    write_cells(nights.image, {1: os.urandom(CELL)})
    write = target.write_whole

    def cut_short(fd: int, view: memoryview, offset: int) -> None:
        write(fd, view, offset)
        os.truncate(dest_of(nights), MIB)

    monkeypatch.setattr(target, "write_whole", cut_short)
    with pytest.raises(SnapfsError) as refused:
        update_here(nights)
    assert re.search("changed the size of .* half brought up to date now", refused.value.sentence)
    assert state_of(nights) == "half"


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


def test_nights_of_a_mounted_image(nights: Nights) -> None:
    """By what was noted, also when a night was killed: nothing but that is read."""
    dice = random.Random(3)
    make_files(nights.path / "content", 12 * MIB)
    make_ext4(nights.image, SIZE, nights.path / "content")
    with nights.mounted():
        with mounted(nights.live_file, nights.path / "point", "-o", "loop") as point:
            for night in range(3):
                made = updated(nights, "--cut", source=nights.live)
                assert (made["kind"], made["why"]) == (("update", "") if night else ("full", "all of it was made"))
                (checkpoint,) = nights.status()["checkpoints"]
                assert checkpoint["holders"] == [read_manifest(dest_of(nights))["update"]["holder"]]
                assert state_of(nights) == "whole"
                for path in dice.sample(sorted(path for path in point.iterdir() if path.is_file()), 3):
                    path.unlink()
                (point / f"day{night}").write_bytes(dice.randbytes(200_000))
                run("sync", "--file-system", point)
                if night == 0:
                    snapfs("snapshot", nights.live).ok()
                    assert killed_before_the_manifest(lambda: update_here(nights, nights.live))
        snapfs("snapshot", nights.live).ok()
        overwrite(nights.live_file, 20 * MIB, CELL)
        assert updated(nights, source=nights.live)["why"] == ""
        assert dest_of(nights).read_bytes() == nights.snap_file.read_bytes()
    run("e2fsck", "-fn", dest_of(nights))


def test_one_that_was_made_without_update_is_compared_once(nights: Nights) -> None:
    snapfs("backup", nights.image, dest_of(nights)).ok()
    overwrite(nights.image, MIB, CELL)
    with nights.mounted("--protect", "all"):
        made = updated(nights, source=nights.live)
        assert "was not mounted" in made["why"]
        assert made["written_bytes"] == CELL
        overwrite(nights.live_file, 2 * MIB, CELL)
        made = updated(nights, "--cut", source=nights.live)
        assert (made["why"], made["written_bytes"]) == ("", CELL)
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_whoever_replaces_it_lets_go_of_its_checkpoint(nights: Nights) -> None:
    with nights.mounted():
        updated(nights, source=nights.live)
        assert nights.status()["checkpoints"]
        snapfs("backup", nights.live, dest_of(nights), "--force").ok()
        assert not nights.status()["checkpoints"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_whoever_overwrites_it_on_a_device_lets_go_of_its_checkpoint(nights: Nights) -> None:
    disk, manifest = nights.path / "disk", nights.path / "manifest"
    disk.write_bytes(bytes(8 * MIB))
    with loop_device(disk) as device, nights.mounted():
        words = ("backup", nights.live, device, "--manifest", manifest, "--force")
        snapfs(*words, "--update").ok()
        assert nights.status()["checkpoints"]
        snapfs(*words).ok()
        assert not nights.status()["checkpoints"]


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_a_block_device(sparse_image: Nights) -> None:
    nights = sparse_image
    disk, manifest = nights.path / "disk", nights.path / "manifest"
    disk.write_bytes(os.urandom(MIB))
    os.truncate(disk, SIZE + MIB)
    with loop_device(disk) as device:
        words = ("backup", nights.image, device, "--update")
        snapfs(*words).refuses(2, "--manifest")
        snapfs(*words, "--manifest", manifest).refuses(2, "--force")
        snapfs(*words, "--manifest", manifest, "--force").ok()
        write_cells(nights.image, {257: os.urandom(CELL), 2: bytes(CELL)})
        made = json.loads(snapfs(*words, "--manifest", manifest, "--json").ok().out)
        assert made["written_bytes"] == 2 * CELL
        snapfs("verify", device, "--manifest", manifest).ok()
        with_other_bytes(Path(device), 0)
        # Perhaps it is another disk. What an interrupted one has left does not change that.
        (nights.path / "manifest.update").write_text(note_text(manifest))
        snapfs(*words, "--manifest", manifest).refuses(2, "would be overwritten")
    assert disk.read_bytes()[CELL:SIZE] == nights.image.read_bytes()[CELL:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_disks_that_take_turns_under_one_name_are_compared(sparse_image: Nights) -> None:
    """Each has missed what the other was brought up to date with, and begins like that."""
    nights = sparse_image
    manifest, name = nights.path / "manifest", nights.path / "name"
    disks = [nights.path / "disk0", nights.path / "disk1"]
    for disk in disks:
        disk.write_bytes(bytes(SIZE))
    words = ("backup", "--cut", nights.live, name, "--manifest", manifest, "--update")
    with nights.mounted(), loop_device(disks[0]) as first, loop_device(disks[1]) as second:
        for night, device in enumerate((first, second, first)):
            name.unlink(missing_ok=True)
            name.symlink_to(device)
            overwrite(nights.live_file, (17 + night) * MIB, CELL)
            if night:
                snapfs(*words).refuses(2, "would be overwritten")
            made = json.loads(snapfs(*words, "--force", "--json").ok().out)
            assert not night or "is another disk than" in made["why"]
            snapfs("verify", name, "--manifest", manifest).ok()
        overwrite(nights.live_file, 30 * MIB, CELL)
        assert json.loads(snapfs(*words, "--json").ok().out)["why"] == ""
    assert disks[0].read_bytes() == nights.image.read_bytes()


def note_text(manifest: Path) -> str:
    """As of an update that had begun with the second extent."""
    ranges = Ranges([(256 * CELL, CELL)])
    return Note(manifest_hash(manifest), utc_now(), "disk.img", None, SIZE, ranges).text()


def test_an_image_of_another_size_is_refused(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    os.truncate(nights.image, SIZE + MIB)
    snapfs("backup", nights.image, dest_of(nights), "--update").refuses(
        2, "The size of the image went from", "--force"
    )
    assert updated(nights, "--force")["kind"] == "full"
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
