"""What a store says when it is opened again: carried on, lost, of another image, in use, changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_rig import BOOT, NEXT_BOOT, QuickFiles, Rig, pattern

from cow.disk.directory import lock_store, remove_store
from cow.disk.image import Image
from cow.disk.layout import CutCounter, Durability, State
from cow.errors import ImageChanged, StoreBusy, StoreError
from cow.mount.recovery import Outcome, Request, open_store

OLD = pattern(20 * 4096)
NEW = pattern(20 * 4096, 2)
MakeRig = Callable[..., Rig]


def used_rig(make_rig: MakeRig, **options: object) -> Rig:
    rig = make_rig(OLD, **options)
    rig.open()
    rig.write(0, NEW[: 6 * 4096])
    return rig


@pytest.mark.parametrize("boot", [BOOT, NEXT_BOOT])
def test_a_clean_end_is_carried_on_in_any_boot(make_rig: MakeRig, boot: bytes) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    opened = rig.open(boot)
    assert (opened.outcome, opened.notes) == (Outcome.CARRIED_ON, [])
    assert rig.snapshot() == OLD


def test_the_seal_goes_when_the_store_is_opened(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    rig.open()
    assert not (rig.cut.path / "seal").exists()


def test_process_durability_does_not_survive_the_machine(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    now = rig.live()
    rig.abandon()
    opened = rig.open(NEXT_BOOT)
    assert opened.outcome is Outcome.LOST
    assert opened.notes == ["the snapshot did not survive the restart of the machine"]
    assert rig.snapshot() == now


def test_power_durability_survives_the_machine(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig, durability=Durability.POWER)
    rig.abandon()
    assert rig.open(NEXT_BOOT).outcome is Outcome.CARRIED_ON
    assert rig.snapshot() == OLD


def test_an_unreadable_snapshot_stays_so_across_a_power_loss(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig, durability=Durability.POWER)
    rig.abandon()
    (rig.store_path / "control").unlink()
    rig.open()
    rig.abandon()
    rig.open(NEXT_BOOT)
    assert rig.numbers.state is State.DAMAGED
    assert rig.numbers[CutCounter.UNREADABLE] == 1


def test_records_found_after_a_kill_are_made_durable(make_rig: MakeRig) -> None:
    class Noting(QuickFiles):
        def __init__(self) -> None:
            self.synced: set[str] = set()

        def sync(self, fd: int) -> None:
            self.synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    files = Noting()
    rig = used_rig(make_rig, durability=Durability.POWER, files=files)
    rig.abandon()
    files.synced.clear()
    rig.open()
    paths = {str(rig.cut.segments.path(number)) for number in rig.cut.segments.numbers()}
    assert paths
    assert paths <= files.synced


@pytest.mark.parametrize("end", ["seal", "abandon"])
def test_an_image_changed_by_others_is_refused(make_rig: MakeRig, end: str) -> None:
    rig = used_rig(make_rig)
    getattr(rig, end)()
    os.utime(rig.image_fd, ns=(0, os.fstat(rig.image_fd).st_mtime_ns + 10_000_000_000))
    with pytest.raises(ImageChanged):
        rig.open()
    assert (rig.store_path / "cut-00000001/index").exists()


def test_the_time_noted_in_a_pause_is_exact(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = used_rig(make_rig)
    monkeypatch.setattr("time.monotonic_ns", lambda: 1 << 62)
    assert rig.engine.note_quiet()
    rig.abandon()
    os.utime(rig.image_fd, ns=(0, os.fstat(rig.image_fd).st_mtime_ns + 1))
    with pytest.raises(ImageChanged):
        rig.open()


def test_an_image_of_another_size_is_refused(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    os.truncate(rig.image_path, len(OLD) + 1)
    image = Image(rig.image_fd, len(OLD) + 1, rig.files)
    rig.image = type(rig.image)(rig.image_fd, len(OLD) + 1, rig.files)
    with pytest.raises(ImageChanged):
        rig.open()
    assert image.size_bytes


def test_the_store_of_another_image_is_refused(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    (tmp_path / "other").write_bytes(OLD)
    fd = os.open(tmp_path / "other", os.O_RDWR)
    try:
        with pytest.raises(StoreError, match="belongs to another image"):
            open_store(rig.store_path, Image(fd, len(OLD), rig.files), rig.request(), rig.files)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_bytes": 512}, "has blocks of 4096 bytes, not 512"),
        ({"durability": Durability.POWER}, "cannot become 'power'"),
    ],
)
def test_a_store_made_otherwise_is_refused(make_rig: MakeRig, change: dict[str, object], reason: str) -> None:
    rig = used_rig(make_rig)
    rig.seal()
    request: Request = replace(rig.request(), **change)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=reason):
        open_store(rig.store_path, rig.image, request, rig.files)


def test_a_store_in_use_says_by_whom(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}") as caught:
        lock_store(rig.store_path)
    assert caught.value.pid == os.getpid()


def test_a_directory_of_other_things_is_no_store(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.store_path.mkdir()
    (rig.store_path / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"holds other files \(letter.txt\)"):
        rig.open()
    assert (rig.store_path / "letter.txt").read_text() == "dear"


def test_a_file_is_no_store(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.store_path.write_text("a file")
    with pytest.raises(StoreError, match="is not a directory"):
        rig.open()


def test_removing_leaves_what_is_not_ours(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.abandon()
    (rig.store_path / "letter.txt").write_text("dear")
    remove_store(rig.store_path)
    assert os.listdir(rig.store_path) == ["letter.txt"]


def test_a_store_that_cannot_be_made_leaves_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(rig.files), "write_whole", refuse)
    with pytest.raises(OSError, match="No space"):
        rig.open()
    assert not rig.store_path.exists()


def test_free_blocks_are_known_again_after_a_kill(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    assert rig.settle_free([(10, 12)]) == 2
    assert rig.settle_free([(12, 14)]) == 0, "a map is made known once"
    rig.write(10 * 4096, NEW[: 2 * 4096])
    rig.abandon()
    assert rig.open().notes == []
    assert rig.reader.read(10 * 4096, 3 * 4096) == bytes(2 * 4096) + OLD[12 * 4096 : 13 * 4096]


def test_a_free_map_of_an_ended_cut_is_not_applied(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    ended = rig.cut
    rig.make_cut()
    assert rig.engine.cuts.settle_free([(10, 12)], ended) == 0
    assert not rig.cut.settled.any_set(0, 20)


@pytest.mark.parametrize("durability", list(Durability))
def test_a_cut_that_the_disk_refuses_leaves_the_old_one(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    rig = used_rig(make_rig, durability=durability)
    old_path = rig.cut.path

    def refuse_once(files: QuickFiles, path: Path, data: bytes, *, durable: bool = True) -> None:
        monkeypatch.undo()
        files.write_whole(path, data, durable=False)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):  # noqa: PT012
        monkeypatch.setattr(QuickFiles, "write_whole", refuse_once)
        rig.make_cut()
    rig.write(10 * 4096, NEW[: 4 * 4096])
    assert rig.snapshot() == OLD
    rig.abandon()
    rig.open()
    assert rig.cut.path == old_path
    assert rig.snapshot() == OLD


@pytest.mark.parametrize("hours", [(-1, 0), (0, -1), (-1, 0, -1)], ids=["forward", "backward", "there and back"])
def test_a_clock_that_steps_before_a_kill_changes_nothing(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, hours: tuple[int, ...]
) -> None:
    rig = make_rig(OLD)
    rig.open()
    now_ns = time.time_ns
    for number, offset in enumerate(hours):
        # The image gets its time from the kernel's clock, which nobody sets for a test; ours is the one that is off.
        monkeypatch.setattr(
            "cow.live.heartbeat.time.time_ns", lambda offset=offset: now_ns() + offset * 3_600_000_000_000
        )
        rig.write(number * 4096, NEW[:4096])
    monkeypatch.undo()
    rig.abandon()
    assert rig.open().outcome is Outcome.CARRIED_ON
