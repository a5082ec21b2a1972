"""Snapshots as files of some MiB each: they are the snapshot, and as before where nothing has changed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from chunk_rig import MIB, changed, folder, joined, seen, write
from ground import Ground
from mounted import Mounted, run, snapfs, wait_until

IMAGE_BYTES = 10 * MIB + 5000


@pytest.fixture
def whole(ground: Ground) -> Mounted:
    """Every block is protected."""
    store = ground.path / "store"
    return ground.mounted(
        ground.image(os.urandom(IMAGE_BYTES)), "--protect", "all", "--store", store, "--chunk-size", "2M"
    )


@pytest.fixture
def used(ground: Ground) -> Mounted:
    """An ext4 of 40 MiB, in chunks of a MiB."""
    image = ground.image(40 * MIB)
    run("mkfs.ext4", "-q", image)
    return ground.mounted(image, "--chunk-size", "1M", "--store", ground.path / "store")


def test_the_chunks_are_the_snapshot_whatever_is_written_to_the_image(whole: Mounted) -> None:
    write(whole, 3 * MIB, b"x" * MIB)
    assert list(seen(folder(whole))) == ["00M", "02M", "04M", "06M", "08M", f"10M-{IMAGE_BYTES}.end"]
    assert joined(folder(whole)) == whole.snap_file.read_bytes() != whole.live_file.read_bytes()


def test_a_chunk_is_another_file_only_when_something_in_it_was_written(whole: Mounted) -> None:
    first = seen(folder(whole))
    write(whole, 5 * MIB - 10, b"x" * 20)
    write(whole, IMAGE_BYTES - 1, b"x")
    whole.cut()
    second = seen(folder(whole))
    assert changed(first, second) == ["04M", f"10M-{IMAGE_BYTES}.end"]
    assert all(second[name].modified_ns > first[name].modified_ns for name in changed(first, second))
    whole.cut()
    assert changed(second, seen(folder(whole))) == []
    assert joined(folder(whole)) == whole.live_file.read_bytes()


def test_a_snapshot_with_a_name_has_a_folder_of_its_own(whole: Mounted) -> None:
    whole.cut("--name", "mon")
    content, mon = whole.live_file.read_bytes(), seen(folder(whole, "mon"))
    write(whole, 0, b"x")
    whole.cut()
    assert sorted(os.listdir(whole.snap / ".chunks")) == ["mon", "newest"]
    assert seen(folder(whole, "mon")) == mon
    assert joined(folder(whole, "mon")) == content
    assert {chunk.inode for chunk in mon.values()}.isdisjoint(chunk.inode for chunk in seen(folder(whole)).values())


def test_the_next_snapshot_of_the_same_name_has_the_same_files(whole: Mounted) -> None:
    whole.cut("--name", "nightly")
    first = seen(folder(whole, "nightly"))
    write(whole, 0, b"x")
    assert snapfs("delete", whole.live, "nightly").returncode == 0
    # Of nothing at all nobody would know what has changed since.
    whole.cut("--name", "nightly")
    second = seen(folder(whole, "nightly"))
    assert [chunk.inode for chunk in first.values()] == [chunk.inode for chunk in second.values()]
    assert joined(folder(whole, "nightly")) == whole.live_file.read_bytes()


@pytest.mark.parametrize("ends", ["delete", "snapshot"])
def test_what_is_open_of_a_folder_that_shows_it_no_more_is_stale(whole: Mounted, ends: str) -> None:
    whole.cut("--name", "mon")
    name = "mon" if ends == "delete" else "newest"
    with (folder(whole, name) / "02M").open("rb", buffering=0) as chunk:
        assert chunk.read(10)
        if ends == "delete":
            assert snapfs("delete", whole.live, "mon").returncode == 0
        else:
            write(whole, 2 * MIB, b"x")
            whole.cut()
            assert (folder(whole) / "02M").read_bytes()[:1] == b"x"
        with pytest.raises(OSError, match="Stale") as failed:
            os.pread(chunk.fileno(), 4096, MIB)
    assert failed.value.errno == errno.ESTALE
    assert ("mon" in os.listdir(whole.snap / ".chunks")) == (ends != "delete")


def test_what_was_read_of_a_chunk_is_not_shown_for_a_later_one(whole: Mounted) -> None:
    path = folder(whole) / "02M"
    for number in range(3):
        with path.open("rb") as held:
            held.read()
            write(whole, 2 * MIB + 4096 * number, bytes([number]) * 4096)
            whole.cut()
            assert path.read_bytes() == whole.live_file.read_bytes()[2 * MIB : 4 * MIB]


@pytest.mark.parametrize("ends", ["umount", "kill"])
def test_times_outlive_the_servers(whole: Mounted, ends: str) -> None:
    write(whole, 0, b"x")
    whole.cut()
    first = seen(folder(whole))
    write(whole, 6 * MIB, b"x")
    if ends == "kill":
        whole.kill()
    else:
        whole.umount()
    whole.mount()
    assert seen(folder(whole)) == first
    whole.cut()
    assert changed(first, seen(folder(whole))) == ["06M"]


def test_chunks_of_another_size_have_the_same_times(whole: Mounted) -> None:
    write(whole, 6 * MIB, b"x")
    whole.cut()
    first = seen(folder(whole))
    whole.umount()
    whole.mount("--chunk-size", "4M")
    again = seen(folder(whole))
    assert list(again) == ["00M", "04M", f"08M-{IMAGE_BYTES}.end"]
    assert again["04M"].inode == first["04M"].inode
    assert again["04M"].modified_ns == first["06M"].modified_ns
    assert joined(folder(whole)) == whole.snap_file.read_bytes()


def test_nobody_writes_to_a_chunk_or_beside_it(whole: Mounted) -> None:
    for path, flags in ((folder(whole) / "00M", os.O_RDWR), (folder(whole) / "new", os.O_CREAT | os.O_WRONLY)):
        with pytest.raises(OSError, match="Read-only") as failed:
            os.open(path, flags)
        assert failed.value.errno == errno.EROFS


def test_no_other_name_is_there(whole: Mounted) -> None:
    assert ".chunks" not in os.listdir(whole.snap)
    for name in ("../x", "00M", "newest/1M", "newest/00M-1.end", "tue"):
        assert not (whole.snap / ".chunks" / name).exists()


def test_free_chunks_take_no_space_and_holes_neither(ground: Ground, used: Mounted) -> None:
    blocks = {path.name: path.stat().st_blocks for path in folder(used).iterdir()}
    assert blocks["30M"] == 0
    assert 0 < blocks["00M"] <= MIB // 512
    sparse = ground.mounted(
        ground.image(4 * MIB, "sparse"), "--protect", "all", "--chunk-size", "1M", name="sparse-views"
    )
    write(sparse, MIB, b"x")
    write(sparse, 3 * MIB, bytes(4096))
    # The second is a hole of the snapshot, but no longer of the image.
    assert [path.stat().st_blocks > 0 for path in sorted(folder(sparse).iterdir())] == [False, True, False, True]


def test_a_file_that_comes_or_goes_changes_its_chunks(ground: Ground, used: Mounted) -> None:
    loop = ground.loop(used.live_file)
    mounted = ground.mount(loop)
    (mounted / "kept").write_bytes(os.urandom(3 * MIB))
    (mounted / "gone").write_bytes(os.urandom(5 * MIB))
    used.cut()
    first, content = seen(folder(used)), used.snap_file.read_bytes()
    (mounted / "gone").unlink()
    run("sync", "-f", mounted)
    used.cut()
    second, later = seen(folder(used)), used.snap_file.read_bytes()
    run("umount", mounted)
    ground.drop_loop(loop)
    assert joined(folder(used)) == later
    moved = set(changed(first, second))
    for number, name in enumerate(first):
        piece = slice(number * MIB, (number + 1) * MIB)
        assert name in moved or content[piece] == later[piece]
    # Where the file was, nothing was written, but there are zeros now.
    assert 5 <= len(moved) < len(first) // 2


def test_a_map_that_fails_leaves_every_byte_in_its_chunk(ground: Ground) -> None:
    image = ground.image(os.urandom(4 * MIB))
    instance = ground.mounted(image, "--chunk-size", "1M")
    assert joined(folder(instance)) == instance.snap_file.read_bytes()
    first = seen(folder(instance))
    write(instance, MIB, b"x")
    instance.cut()
    assert changed(first, seen(folder(instance))) == ["1M"]


def test_rsync_copies_what_has_changed_and_join_makes_an_image_of_it(ground: Ground, whole: Mounted) -> None:
    copy = ground.path / "copy"

    def sync() -> list[str]:
        lines = run("rsync", "-a", "--itemize-changes", f"{folder(whole)}/", f"{copy}/").splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if line.startswith(">f")]

    assert len(sync()) == 6
    write(whole, 8 * MIB, b"x")
    whole.cut()
    assert sync() == ["08M"]
    assert sync() == []
    done = snapfs("join", copy, ground.path / "restored")
    assert (done.returncode, done.stderr) == (0, "")
    assert (ground.path / "restored").read_bytes() == whole.snap_file.read_bytes()
    (copy / "04M").unlink()
    done = snapfs("join", copy, ground.path / "refused")
    assert done.returncode == 1
    assert "The chunk after" in done.stderr
    assert not (ground.path / "refused").exists()


def test_join_writes_over_a_device(ground: Ground, whole: Mounted) -> None:
    device = ground.loop(ground.image(16 * MIB, "device"))
    done = snapfs("join", folder(whole), device, "--force")
    assert done.returncode == 0, done.stderr
    with device.open("rb") as file:
        assert file.read(IMAGE_BYTES) == whole.snap_file.read_bytes()


def test_without_a_snapshot_there_is_no_folder(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB), "--no-snapshot")
    assert os.listdir(instance.snap / ".chunks") == []
    assert not folder(instance).exists()
    instance.cut()
    wait_until(lambda: list(seen(folder(instance))) == [f"0M-{MIB}.end"])


def test_what_is_released_cannot_be_read(whole: Mounted) -> None:
    assert snapfs("release", whole.live, "--offset", "2M", "--length", "4K").returncode == 0
    with pytest.raises(OSError, match="No data") as failed:
        (folder(whole) / "02M").read_bytes()
    assert failed.value.errno == errno.ENODATA
    assert len((folder(whole) / "04M").read_bytes()) == 2 * MIB


def test_a_copy_is_all_that_is_needed(ground: Ground, used: Mounted) -> None:
    shutil.copytree(folder(used), ground.path / "copy")
    assert joined(Path(ground.path / "copy")) == used.snap_file.read_bytes()
