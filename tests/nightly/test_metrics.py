"""`snapfs metrics`: what Prometheus reads of instances and of directories of backups."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from nightly_rig import Done, Nights, snapfs
from prometheus_client.parser import text_string_to_metric_families

import snapfs.commands.metrics as metrics_command
from snapfs.errors import SnapfsError

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Each sample by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def read(*words: str | Path) -> Samples:
    return parsed(snapfs("metrics", *words).ok().out)


def refused(done: Done, code: int, word: str) -> None:
    assert done.code == code, done.err
    assert word in done.err


def test_a_directory_of_backups_tells_its_newest(nights: Nights) -> None:
    began = int(time.time())
    nights.back_up()
    nights.change(3)
    made = nights.back_up()
    entry = nights.listed()[-1]
    samples = read(nights.backups)

    def value(name: str) -> float:
        return samples[name, frozenset({("directory", str(nights.backups))})]

    assert value("snapfs_backups_readable") == 1
    assert (value("snapfs_backups"), value("snapfs_backups_full"), value("snapfs_backups_unfinished")) == (2, 1, 0)
    assert began <= value("snapfs_backup_last_cut_timestamp_seconds") <= time.time()
    assert began <= value("snapfs_backup_last_success_timestamp_seconds") <= time.time()
    assert 0 <= value("snapfs_backup_last_duration_seconds") < 60
    assert value("snapfs_backup_last_read_bytes") == made["read_bytes"]
    assert value("snapfs_backup_last_file_bytes") == entry["file_bytes"]
    assert value("snapfs_backup_last_unread_bytes") == 0
    assert not any("verified" in name for name, _ in samples)
    snapfs("verify", nights.backups).ok()
    samples = read(nights.backups)
    assert began <= value("snapfs_backup_last_verified_timestamp_seconds") <= time.time()


def test_an_empty_directory_has_no_success(nights: Nights) -> None:
    names = {name for name, labels in read(nights.backups) if labels}
    counts = {"", "_full", "_unfinished", "_bytes", "_readable"}
    assert names == {f"snapfs_backups{end}" for end in counts}


def test_of_a_snapshot_that_was_there_before_no_duration_is_known(nights: Nights) -> None:
    with nights.mounted():
        nights.back_up_of(nights.live)
        assert "snapfs_backup_last_duration_seconds" not in {name for name, _ in read(nights.backups)}
        nights.back_up_of(nights.live, "--cut")
        assert "snapfs_backup_last_duration_seconds" in {name for name, _ in read(nights.backups)}


def test_a_backup_that_is_being_made_is_neither_kept_from_it_nor_waited_for(nights: Nights) -> None:
    nights.back_up()
    fd = os.open(nights.backups, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert read(nights.backups)["snapfs_backups", frozenset({("directory", str(nights.backups))})] == 1
    finally:
        os.close(fd)


def test_a_mounted_image_tells_how_it_is(nights: Nights) -> None:
    with nights.mounted("--buffer-limit", "8M", "--protect", "all"):
        samples = read()
        snapfs("snapshot", nights.live, "--name", "kept").ok()
        later = read()
    image, user = ("image", str(nights.image)), ("user", str(os.getuid()))

    def value(name: str, *labels: tuple[str, str], of: Samples = samples) -> float:
        return of[name, frozenset({image, user, *labels})]

    size = nights.image.stat().st_size
    assert value("snapfs_image_bytes") == size
    assert value("snapfs_buffer_limit_bytes") == 8 << 20
    assert value("snapfs_buffer_stored_bytes") == 0
    assert value("snapfs_snapshot_owed_bytes") >= size
    assert (value("snapfs_snapshot_lost_bytes"), value("snapfs_instance_error")) == (0, 0)
    assert value("snapfs_snapshot_state", ("state", "active")) == 1
    assert value("snapfs_snapshot_state", ("state", "overflowed")) == 0
    assert value("snapfs_snapshots", ("state", "active")) == 1
    assert value("snapfs_snapshots", ("state", "active"), of=later) == 1
    assert "snapfs_snapshot_freeze_seconds" not in {name for name, _ in samples}
    assert time.time() - 60 < value("snapfs_snapshot_taken_timestamp_seconds") <= time.time()


def test_a_file_is_replaced_in_one_step_and_can_be_read_by_all(nights: Nights) -> None:
    file = nights.path / "snapfs.prom"
    file.write_text("old")
    before = file.stat().st_ino
    snapfs("metrics", nights.backups, "--output", file).ok()
    assert parsed(file.read_text())["snapfs_instances_silent", frozenset()] == 0
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_ino != before) == (0o644, True)
    assert [path.name for path in nights.path.glob("snapfs.prom*")] == ["snapfs.prom"]


def test_nothing_but_a_file_for_it_is_replaced(nights: Nights) -> None:
    refused(snapfs("metrics", "--output", nights.image), 2, "name a file that ends in .prom")


def test_a_link_leads_to_nothing_but_a_file_for_it(nights: Nights) -> None:
    link, before = nights.path / "snapfs.prom", nights.image.stat()
    link.symlink_to(nights.image)
    refused(snapfs("metrics", "--output", link), 2, f"is a symbolic link to {nights.image}")
    assert os.path.samestat(nights.image.stat(), before)


def test_a_disk_without_room_is_named_and_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "snapfs.prom"
    file.write_text("old")

    def full(path: Path, text: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SnapfsError, match=f"{file} cannot be written: No space left on device"):
        metrics_command.write_metrics(metrics_command.output_place(file), b"new")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "old"


def test_a_directory_that_cannot_be_read_is_named_beside_the_rest(nights: Nights) -> None:
    nothing = nights.path / "nothing"
    done = snapfs("metrics", nights.backups, nothing)
    refused(done, 4, f"{nothing} is no directory")
    samples = parsed(done.out)
    assert samples["snapfs_backups_readable", frozenset({("directory", str(nothing))})] == 0
    assert samples["snapfs_backups", frozenset({("directory", str(nights.backups))})] == 0


def test_a_name_of_another_hand_makes_no_line(nights: Nights) -> None:
    odd = nights.path / os.fsdecode(b'a"\nb\xff')
    odd.mkdir()
    assert read(odd)["snapfs_backups", frozenset({("directory", f'{nights.path}/a"\\nb\\udcff')})] == 0


def test_what_would_be_there_twice_is_there_once(nights: Nights) -> None:
    odd = nights.path / "a\n"
    odd.mkdir()
    same = nights.path / "a\\n"
    same.mkdir()
    out = snapfs("metrics", odd, f"{odd}/", same).ok().out
    assert out.count("\nsnapfs_backups{") == 1


def test_two_images_whose_names_are_written_alike_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_command, "_is_usable", lambda _: True)
    monkeypatch.setattr(metrics_command, "text_of", lambda found, *_: str(len(found)).encode())
    answers = [(tmp_path, {"image": "a\n"}), (tmp_path, {"image": "a\\n"})]
    monkeypatch.setattr(metrics_command, "statuses_by_store", lambda: nullcontext((answers, [])))
    assert metrics_command.metrics([]).text == b"1"


def test_a_name_that_leads_nowhere_keeps_nothing_else_from_being_told(nights: Nights) -> None:
    loop = nights.path / "loop"
    loop.symlink_to(loop)
    for odd in (loop, nights.path / ("a" * 300)):
        done = snapfs("metrics", odd, nights.backups)
        refused(done, 4, str(odd))
        assert parsed(done.out)["snapfs_backups", frozenset({("directory", str(nights.backups))})] == 0


def test_an_answer_of_another_kind_leaves_the_others_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[tuple[Path, dict[str, Any]]] = [(tmp_path, {"image": "a"}), (tmp_path, {"snapshot": []})]
    monkeypatch.setattr(metrics_command, "statuses_by_store", lambda: nullcontext((answers, [])))
    made = metrics_command.metrics([])
    assert parsed(made.text.decode())["snapfs_instances_silent", frozenset()] == 2
    assert all("is not understood" in sentence for sentence in made.problems)
