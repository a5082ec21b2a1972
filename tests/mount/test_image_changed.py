"""The image deleted, replaced, cut short, grown or renamed while mounted: noticed, told, and never wrong bytes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.mount.ground import Ground
from tests.mount.mounted import Mounted, run, snapfs, wait_until

MIB = 1 << 20
OLD = random.Random(4).randbytes(4 * MIB)


@pytest.fixture
def instance(ground: Ground) -> Mounted:
    return ground.mounted(ground.image(OLD), "--protect", "all")


def write(instance: Mounted, offset: int, data: bytes) -> None:
    fd = os.open(instance.live_file, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path, offset: int, length: int) -> bytes:
    """Past what the kernel has of it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def umount_tells(instance: Mounted, *words: str, options: tuple[str, ...] = ()) -> None:
    done = snapfs("umount", instance.live, *options)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    instance.await_end()


def delete(image: Path) -> None:
    image.unlink()


def replace(image: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(b"other")
    other.rename(image)


@pytest.mark.parametrize(("lose", "state"), [(delete, "deleted"), (replace, "replaced")])
def test_an_image_without_a_name_is_not_unmounted_unasked(instance: Mounted, lose: object, state: str) -> None:
    instance.expect_log(f"was {state}")
    assert callable(lose)
    lose(instance.image)
    status = snapfs("status", instance.live)
    assert f"was {state}" in status.stdout
    assert instance.status()["image_state"] == state
    done = snapfs("umount", instance.live)
    assert done.returncode == 1
    assert f"cp --sparse=always {instance.live_file}" in done.stderr
    assert "--force" in done.stderr
    run("cp", "--sparse=always", instance.live_file, instance.image.with_name("saved.img"))
    assert instance.image.with_name("saved.img").read_bytes() == OLD
    umount_tells(instance, f"was {state}", "restore it", options=("--force",))
    assert instance.log().count(f"was {state}") == 1


def test_a_lost_name_is_noticed_while_writes_go_on(instance: Mounted) -> None:
    instance.expect_log("was deleted")
    instance.image.unlink()

    def is_logged() -> bool:
        write(instance, 0, b"new")
        return "was deleted" in instance.log()

    wait_until(is_logged)
    umount_tells(instance, "was deleted", options=("--force",))


def test_a_renamed_image_is_followed(instance: Mounted) -> None:
    moved = instance.image.with_name("moved.img")
    instance.image.rename(moved)
    write(instance, 0, b"new")
    status = instance.status()
    assert (status["image_state"], status["image"]) == ("in-place", str(moved))
    done = snapfs("backup", instance.live, moved.with_name("backup"))
    assert done.returncode == 0, done.stderr
    assert snapfs("snapshot", instance.live, "--no-freeze").returncode == 0
    instance.umount()
    assert moved.read_bytes() == b"new" + OLD[3:]


def test_what_a_truncation_took_is_an_error_and_never_zeros(instance: Mounted) -> None:
    """Also after the file has its old size again, by whomever: what is there then nobody ever wrote."""
    instance.expect_log("cut short|of the image failed|lost to the snapshot")
    write(instance, 2 * MIB, b"new!")
    os.truncate(instance.image, MIB)
    with pytest.raises(OSError, match="Input/output"):
        write(instance, 3 * MIB, b"x" * 4096)
    assert instance.image.stat().st_size == MIB, "a write does not hide the loss"
    os.truncate(instance.image, len(OLD))
    for file in (instance.live_file, instance.snap_file):
        with pytest.raises(OSError, match="Input/output"):
            read(file, 3 * MIB, 4096)
        assert read(file, MIB - 4096, 4096) == OLD[MIB - 4096 : MIB]
    assert read(instance.snap_file, 2 * MIB, 4096) == OLD[2 * MIB :][:4096], "what was preserved is still right"
    write(instance, 0, b"new")
    assert read(instance.snap_file, 0, 3) == OLD[:3]
    status = instance.status()
    assert (status["image_state"], status["snapshot"]["state"]) == ("truncated", "damaged")
    umount_tells(instance, "was cut short", "restore it")


def test_no_cut_is_made_of_half_an_image(instance: Mounted) -> None:
    instance.expect_log("cut short")
    os.truncate(instance.image, 0)
    done = snapfs("snapshot", instance.live, "--no-freeze")
    assert (done.returncode, "was cut short" in done.stderr) == (1, True)
    os.truncate(instance.image, len(OLD))
    assert snapfs("snapshot", instance.live, "--no-freeze").returncode == 0
    assert read(instance.snap_file, MIB, 4096) == read(instance.live_file, MIB, 4096) == bytes(4096)
    assert instance.status()["image_state"] == "in-place"
    instance.umount()


def test_an_image_that_grew_is_told(instance: Mounted) -> None:
    instance.expect_log("has grown")
    with instance.image.open("ab") as file:
        file.write(b"more")
    assert instance.status()["image_state"] == "grown"
    assert instance.snap_file.read_bytes() == OLD
    umount_tells(instance, "has grown")


def test_a_device_that_shrinks_is_noticed(ground: Ground) -> None:
    backing = ground.image(OLD)
    device = ground.loop(backing)
    instance = ground.mounted(device, "--store", ground.path / "store")
    instance.expect_log("cut short|of the image failed|lost to the snapshot")
    os.truncate(backing, MIB)
    run("losetup", "--set-capacity", device)
    assert instance.status()["image_state"] == "truncated"
    with pytest.raises(OSError, match="Input/output"):
        read(instance.snap_file, 3 * MIB, 4096)
    umount_tells(instance, "was cut short")
