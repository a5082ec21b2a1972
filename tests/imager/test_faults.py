"""What can go wrong half-way: no file under the final name, a clear sentence, and `--resume` where it makes sense."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from imager_rig import (
    MIB,
    Bench,
    Original,
    checked_qcow2,
    files_of,
    loop_device,
    mounted,
    names_in,
    overwrite,
    run,
    running,
    snapfs,
    wait_until,
)

from tests.cli.command_line import SNAPFS, small_filesystem
from tests.mount.mounted import find_processes

# Slow enough to be stopped in the middle, fast enough for a test.
SLOWLY = ("--rate", "12M")


def left(bench: Bench) -> set[str]:
    return {name for name in names_in(bench.path) if name.startswith("backup")}


@pytest.mark.parametrize("words", [(), ("--format", "qcow2", "--compress")], ids=" ".join)
def test_an_interrupted_backup_is_resumed(bench: Bench, original: Original, words: tuple[str, ...]) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        with running("backup", bench.live, backup, *SLOWLY, *words) as process:
            process.await_bytes(18 * MIB)
            process.interrupt()
            done = process.wait()
            total = process.progress[0]["total_bytes"]
        assert done.code == 130
        assert "--resume goes on" in done.err
        assert left(bench) == {"backup.partial", "backup.partial.journal"}
        overwrite(bench.live_file, 0, 32 * MIB)
        with running("backup", bench.live, backup, "--resume", "--verify", *words) as process:
            process.wait().ok()
            assert process.progress[0]["total_bytes"] <= total - 8 * MIB, "what was done is not done again"
        if words:
            checked_qcow2(backup, bench.snap_file)
        else:
            run("cmp", backup, bench.snap_file)
    assert left(bench) == {"backup", "backup.json"}
    snapfs("restore", backup, bench.path / "restored.img").ok()
    assert files_of(bench.path / "restored.img", "ext4", bench.path / "point") == original.files


def test_an_interrupted_backup_with_release_is_resumed(bench: Bench, original: Original) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        with running("backup", bench.live, backup, "--release", *SLOWLY) as process:
            process.await_bytes(18 * MIB)
            process.interrupt()
            assert process.wait().code == 130
        snapfs("backup", bench.live, backup, "--release", "--resume").ok()
        assert bench.status()["snapshot"]["owed_blocks"] == 0
    assert files_of(backup, "ext4", bench.path / "point") == original.files


def test_an_unmounted_image_is_resumed_while_it_is_the_same(bench: Bench) -> None:
    backup = bench.path / "backup"
    with running("backup", bench.image, backup, *SLOWLY) as process:
        process.await_bytes(18 * MIB)
        process.interrupt()
        assert process.wait().code == 130
    bench.image.touch()
    snapfs("backup", bench.image, backup, "--resume").refuses(1, "cannot be resumed", "--force")
    snapfs("backup", bench.image, backup).refuses(2, "left by an interrupted", "--resume", "--force")
    snapfs("backup", bench.image, backup, "--force").ok()
    run("e2fsck", "-fn", backup)


def test_an_interrupt_before_anything_is_there_leaves_nothing(bench: Bench) -> None:
    bench.image.write_bytes(os.urandom(20 * MIB))
    with running("backup", bench.image, bench.path / "backup", "--rate", "4M") as process:
        process.await_bytes(1)
        process.interrupt()
        done = process.wait()
    assert (done.code, left(bench)) == (130, set())
    assert "nothing is left" in done.err


def test_nothing_to_resume_is_said(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.path / "backup", "--resume").refuses(1, "nothing to resume")


@pytest.mark.parametrize(
    ("words", "way_out"), [((), "--resume"), (("--format", "qcow2"), "back up again")], ids=["raw", "qcow2"]
)
def test_a_full_disk_is_said_and_what_is_advised_works(bench: Bench, words: tuple[str, ...], way_out: str) -> None:
    """Of a qcow2 nothing is known to be whole yet, so nothing is left to be resumed."""
    with small_filesystem(bench.path, 60 * MIB) as point, bench.mounted():
        (point / "filler").write_bytes(bytes(35 * MIB))
        backup = point / "backup"
        snapfs("backup", bench.live, backup, *words).refuses(1, "does not fit", way_out)
        assert not backup.exists()
        (point / "filler").unlink()
        resume = ("--resume",) if way_out == "--resume" else ()
        assert bool(resume) == (point / "backup.partial").exists()
        snapfs("backup", bench.live, backup, *resume, *words).ok()
        snapfs("verify", backup).ok()
        assert bench.status()["snapshot"]["state"] == "active"


def test_without_room_for_a_journal_nothing_is_left_and_nothing_promised(bench: Bench) -> None:
    with mounted("none", bench.path / "full", "-t", "tmpfs", "-o", "size=8k") as full:
        (full / "filler").write_bytes(bytes(8192))
        done = snapfs("backup", bench.image, full / "backup")
        done.refuses(1, "journal does not fit", "back up again")
        assert [path.name for path in full.iterdir()] == ["filler"]


def test_a_destination_that_vanishes_is_said(bench: Bench) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        with running("backup", bench.live, backup, "--release", *SLOWLY) as process:
            process.await_bytes(4 * MIB)
            (bench.path / "backup.partial").unlink()
            process.wait().refuses(1, "has vanished")
        assert not backup.exists()
        assert bench.status()["snapshot"]["released_blocks"] == 0, "nothing is released that is nowhere"


def test_a_newer_cut_ends_the_backup(bench: Bench) -> None:
    with bench.mounted():
        with running("backup", bench.live, bench.path / "backup", *SLOWLY) as process:
            process.await_bytes(8 * MIB)
            with process.stopped():
                snapfs("snapshot", bench.live, "--no-freeze").ok()
            process.wait().refuses(1, "newer cut")
        assert "backup" not in names_in(bench.path)
        snapfs("backup", bench.live, bench.path / "backup", "--resume").refuses(1, "")
        snapfs("backup", bench.live, bench.path / "backup", "--force").ok()


def test_an_overflow_ends_the_backup(bench: Bench) -> None:
    with bench.mounted("--buffer-limit", "2M"):
        with running("backup", bench.live, bench.path / "backup", *SLOWLY) as process:
            process.await_bytes(8 * MIB)
            with process.stopped():
                overwrite(bench.live_file, 0, 64 * MIB)
                wait_until(lambda: bench.status()["snapshot"]["state"] == "overflowed")
            process.wait().refuses(3, "overflowed")
        assert "backup" not in names_in(bench.path)
        snapfs("backup", bench.live, bench.path / "backup").refuses(3, "overflowed")


def test_a_killed_server_ends_the_backup_and_the_next_mount_resumes_it(bench: Bench, original: Original) -> None:
    backup = bench.path / "backup"
    bench.mount().ok()
    processes = find_processes(bench.status()["pid"])
    try:
        with running("backup", bench.live, backup, *SLOWLY) as process:
            process.await_bytes(18 * MIB)
            for name in ("supervisor", "live", "snapshot", "compactor"):
                processes[name].send(9)
            process.wait().refuses(1, "killed", "--resume")
        for name in processes:
            processes[name].await_end()
    finally:
        for one in processes.values():
            one.close()
    assert "backup" not in names_in(bench.path)
    with bench.mounted():
        snapfs("backup", bench.live, backup, "--resume").ok()
    assert files_of(backup, "ext4", bench.path / "point") == original.files


def test_a_pipe_that_is_closed_is_said(bench: Bench) -> None:
    process = subprocess.Popen(
        [SNAPFS, "backup", bench.image, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert "has ended" in said


def test_a_second_backup_to_the_same_place_is_refused(bench: Bench) -> None:
    with running("backup", bench.image, bench.path / "backup", *SLOWLY) as process:
        process.await_bytes(1)
        with process.stopped():
            snapfs("backup", bench.image, bench.path / "backup").refuses(1, "is in use")
        process.interrupt()
        process.wait()


def test_an_image_that_somebody_uses_is_refused(bench: Bench) -> None:
    with mounted(bench.image, bench.path / "point", "-o", "loop"):
        snapfs("backup", bench.image, bench.path / "backup").refuses(1, "is in use")
    assert left(bench) == set()


def test_a_finished_backup_is_not_overwritten_unasked(bench: Bench) -> None:
    (bench.path / "backup").write_bytes(b"dear")
    snapfs("backup", bench.image, bench.path / "backup").refuses(2, "--force")
    assert (bench.path / "backup").read_bytes() == b"dear"


@pytest.mark.parametrize(
    "words",
    [
        ("-", "--format", "qcow2"),
        ("-", "--verify"),
        ("-", "--resume"),
        ("backup", "--compress"),
        ("backup", "--resume", "--cut"),
        ("backup", "--rate", "0x"),
        ("no/such/directory/backup",),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked_is_refused(bench: Bench, words: tuple[str, ...]) -> None:
    done = snapfs("backup", bench.image, *words, cwd=bench.path)
    done.refuses(1 if "no/such" in words[0] else 2, "")
    assert left(bench) == set()


def test_the_image_itself_is_no_destination(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.image, "--force").refuses(2, "the image itself")


def test_a_source_that_is_none_is_refused(bench: Bench, tmp_path: Path) -> None:
    snapfs("backup", tmp_path / "nothing", bench.path / "backup").refuses(1, "nothing")
    snapfs("backup", tmp_path, bench.path / "backup").refuses(1, str(tmp_path))
    with loop_device(bench.image) as device:
        snapfs("backup", bench.image, bench.path / "backup").refuses(1, str(device))
