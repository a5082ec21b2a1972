"""Restoring onto a larger or a smaller disk: the GPT at its end, and nothing that is needed left out."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, digests, loop_device, make_ext4, mounted, names_in, run, snapfs

from tests.cli.command_line import SNAPFS, TIMEOUT_S

SIZE = 40 * MIB
# The partition: from 1 to 17 MiB.
END = 17 * MIB
COPY_BYTES = 33 * 512


@pytest.fixture
def disk(small: Bench) -> Bench:
    """A disk of 40 MiB with a GPT and an ext4 in its first half."""
    content = small.path / "content"
    content.mkdir()
    (content / "file").write_bytes(os.urandom(3 * MIB))
    make_ext4(small.path / "part", END - MIB, content)
    small.image.write_bytes(b"")
    os.truncate(small.image, SIZE)
    run("sgdisk", "-a", "2048", "-n", f"1:2048:{END // 512 - 1}", "-c", "1:data", small.image)
    run("dd", f"if={small.path / 'part'}", f"of={small.image}", "bs=1M", "seek=1", "conv=notrunc")
    return small


def backed_up(disk: Bench) -> Path:
    snapfs("backup", disk.image, disk.path / "backup").ok()
    return disk.path / "backup"


def target_of(disk: Bench, size_bytes: int) -> Path:
    """An image of that size, full of something else."""
    path = disk.path / "target"
    path.write_bytes(b"\xa5" * size_bytes)
    return path


def check_disk(path: Path, disk: Bench) -> None:
    """The table is as sgdisk wants it, and the files are there."""
    text = run("sgdisk", "-v", path)
    assert "No problems found" in text, text
    assert "Caution" not in text, text
    assert "data" in run("sgdisk", "-p", path)
    with loop_device(path, "--read-only", f"--offset={MIB}") as device:
        run("e2fsck", "-fn", device)
        with mounted(device, disk.path / "point", "-o", "ro,noload") as point:
            assert digests(point) == digests(disk.path / "content")


@pytest.mark.parametrize("size_bytes", [SIZE + 20 * 512, END + COPY_BYTES])
def test_the_gpt_is_at_the_end_of_an_image_of_another_size(disk: Bench, size_bytes: int) -> None:
    backup, target = backed_up(disk), target_of(disk, size_bytes)
    snapfs("restore", backup, target, "--force", "--fit-gpt", "--verify").ok()
    assert target.stat().st_size == size_bytes
    check_disk(target, disk)


def test_the_gpt_is_at_the_end_of_a_device(disk: Bench) -> None:
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    with loop_device(target) as device:
        snapfs("restore", backup, device, "--force", "--fit-gpt").ok()
    check_disk(target, disk)
    assert target.read_bytes()[SIZE - COPY_BYTES : SIZE] == bytes(COPY_BYTES)


def test_a_table_for_large_sectors_is_moved(disk: Bench) -> None:
    os.truncate(disk.image, 0)
    os.truncate(disk.image, SIZE)
    with loop_device(disk.image, "--sector-size=4096") as device:
        run("sgdisk", "-n", f"1:256:{END // 4096 - 1}", device)
    backup, target = backed_up(disk), target_of(disk, 24 * MIB)
    with loop_device(target) as device:
        snapfs("restore", backup, device, "--force", "--fit-gpt").refuses(1, "sectors of 512 bytes", "in 4096")
    with loop_device(target, "--sector-size=4096") as device:
        snapfs("restore", backup, device, "--force", "--fit-gpt").ok()
        assert "No problems found" in run("sgdisk", "-v", device)


@pytest.mark.parametrize("offset", [512, SIZE - 512], ids=["first", "second"])
def test_of_two_copies_one_may_be_damaged(disk: Bench, offset: int) -> None:
    with disk.image.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(512))
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    snapfs("restore", backup, target, "--force", "--fit-gpt").ok()
    check_disk(target, disk)


def test_a_gpt_that_comes_through_a_pipe_is_moved(disk: Bench) -> None:
    target, manifest = target_of(disk, 48 * MIB), disk.path / "m.json"
    command = [os.fspath(SNAPFS), "backup", os.fspath(disk.image), "-", "--manifest", os.fspath(manifest)]
    stream = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout
    command = [SNAPFS, "restore", "-", target, "--manifest", manifest, "--force", "--fit-gpt", "--verify"]
    subprocess.run(command, input=stream, check=True, capture_output=True, timeout=TIMEOUT_S)
    check_disk(target, disk)


def test_a_backup_of_a_directory_goes_to_a_smaller_disk(disk: Bench) -> None:
    (disk.path / "backups").mkdir()
    snapfs("backup", disk.image, disk.path / "backups").ok()
    target = target_of(disk, 24 * MIB)
    snapfs("restore", disk.path / "backups", target, "--force", "--fit-gpt").ok()
    check_disk(target, disk)


def test_a_disk_that_would_cut_a_partition_is_refused_with_what_it_takes(disk: Bench) -> None:
    backup, target = backed_up(disk), target_of(disk, END + COPY_BYTES - 512)
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, f"needs {END + COPY_BYTES} bytes")
    assert target.read_bytes() == b"\xa5" * (END + COPY_BYTES - 512)


def test_what_is_outside_every_partition_is_not_cut(disk: Bench) -> None:
    at = 30 * MIB + 100
    with disk.image.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    backup, target = backed_up(disk), target_of(disk, 24 * MIB)
    needed_bytes = at // 512 * 512 + 512 + COPY_BYTES
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, f"needs {needed_bytes} bytes")


def test_a_smaller_device_has_to_have_the_gpt_moved(disk: Bench) -> None:
    backup, target = backed_up(disk), target_of(disk, 24 * MIB)
    with loop_device(target) as device:
        snapfs("restore", backup, device, "--force").refuses(1, "say --fit-gpt")
        snapfs("restore", backup, device, "--force", "--fit-gpt", "--verify").ok()
    check_disk(target, disk)


def test_a_disk_without_a_gpt_goes_to_a_smaller_device(disk: Bench) -> None:
    run("sgdisk", "-m", "1", disk.image)
    run("sgdisk", "-p", disk.image)
    backup, target = backed_up(disk), target_of(disk, END)
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(2, "has no GPT")
    with loop_device(target) as device:
        snapfs("restore", backup, device, "--force").ok()
    run("cmp", "-n", str(END), target, disk.image)


def test_a_bare_filesystem_is_never_cut(disk: Bench) -> None:
    snapfs("backup", disk.path / "part", disk.path / "backup").ok()
    with loop_device(target_of(disk, END - 2 * MIB)) as device:
        snapfs("restore", disk.path / "backup", device, "--force").refuses(1, f"needs {END - MIB} bytes")


def test_two_copies_that_differ_are_refused_before_anything_is_written(disk: Bench) -> None:
    backup = backed_up(disk)
    other = disk.path / "other"
    run("cp", disk.image, other)
    run("sgdisk", "-c", "1:elsewhere", other)
    content = bytearray(disk.image.read_bytes())
    content[-COPY_BYTES:] = other.read_bytes()[-COPY_BYTES:]
    disk.image.write_bytes(content)
    snapfs("backup", disk.image, backup, "--force").ok()
    target = target_of(disk, 48 * MIB)
    before = names_in(disk.path)
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, "differ")
    assert names_in(disk.path) == before
    assert target.read_bytes()[:MIB] == b"\xa5" * MIB


def change_copy(image: Path, own: int, **fields: int) -> None:
    """Other fields in the header in that sector, and checksums that are right."""
    places = {"last_usable": 48, "entries": 72}
    with image.open("r+b") as file:
        file.seek(own * 512)
        header = bytearray(file.read(512))
        for name, value in fields.items():
            struct.pack_into("<Q", header, places[name], value)
        file.seek(struct.unpack_from("<Q", header, 72)[0] * 512)
        struct.pack_into("<I", header, 88, zlib.crc32(file.read(128 * 128)))
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header[:92]))
        file.seek(own * 512)
        file.write(header)


@pytest.mark.parametrize("is_stream", [False, True], ids=["file", "stream"])
def test_a_second_copy_is_never_written_into_a_partition(disk: Bench, is_stream: bool) -> None:
    """Of an image that is cut short, a larger one may still be too small."""
    image_bytes = 16 * MIB
    os.truncate(disk.image, image_bytes)
    backup, target = backed_up(disk), target_of(disk, image_bytes + 512)
    if not is_stream:
        snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, f"needs {END + COPY_BYTES} bytes")
        assert target.read_bytes() == b"\xa5" * (image_bytes + 512)
        return
    command = [SNAPFS, "restore", "-", target, "--manifest", f"{backup}.json", "--force", "--fit-gpt"]
    done = subprocess.run(command, input=backup.read_bytes(), capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert f"needs {END + COPY_BYTES} bytes" in done.stderr.decode()
    assert target.read_bytes()[:image_bytes] == disk.image.read_bytes()


def test_entries_that_both_copies_share_are_not_cleared(disk: Bench) -> None:
    change_copy(disk.image, SIZE // 512 - 1, entries=2)
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    snapfs("restore", backup, target, "--force", "--fit-gpt").ok()
    check_disk(target, disk)


def test_a_second_copy_within_a_partition_is_not_cleared(disk: Bench) -> None:
    content = bytearray(disk.image.read_bytes())
    # Nothing that has free space.
    content[MIB : 2 * MIB] = os.urandom(MIB)
    content[END - COPY_BYTES : END - 512] = content[1024 : 1024 + COPY_BYTES - 512]
    disk.image.write_bytes(content)
    change_copy(disk.image, SIZE // 512 - 1, entries=(END - COPY_BYTES) // 512, last_usable=3000)
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    snapfs("restore", backup, target, "--force", "--fit-gpt").ok()
    assert target.read_bytes()[MIB:END] == content[MIB:END]


def test_a_first_copy_with_entries_at_the_end_is_refused(disk: Bench) -> None:
    change_copy(disk.image, 1, entries=(SIZE - COPY_BYTES) // 512)
    backup, target = backed_up(disk), target_of(disk, 24 * MIB)
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, "in an unusual place")
    assert target.read_bytes() == b"\xa5" * (24 * MIB)


@pytest.mark.parametrize("sector", [1000, 2], ids=["moved", "usual"])
def test_a_damaged_first_copy_is_not_mended_over_a_boot_loader(disk: Bench, sector: int) -> None:
    """It stands in sector 16, where the entries would be; with them moved they are found."""
    if sector != 2:
        run("sgdisk", "-j", str(sector), disk.image)
    with disk.image.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))
        file.seek(16 * 512)
        file.write(b"boot loader")
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    done = snapfs("restore", backup, target, "--force", "--fit-gpt")
    if sector == 2:
        done.refuses(1, "something else may be where it belongs")
        return
    done.ok()
    assert target.read_bytes()[16 * 512 :].startswith(b"boot loader")
    assert "data" in run("sgdisk", "-p", target)


@pytest.mark.parametrize("regions", [5, [1], [{}], [{"kind": "ext4", "offset": -1, "length": 1.5}]], ids=str)
def test_a_manifest_that_lists_nonsense_is_damaged(disk: Bench, regions: object) -> None:
    backup, target = backed_up(disk), target_of(disk, 24 * MIB)
    manifest = disk.path / "backup.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "regions": regions}))
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(3, "does not list what is where")
    assert target.read_bytes() == b"\xa5" * (24 * MIB)


def test_a_gpt_for_other_sectors_that_comes_through_a_pipe_is_not_moved(disk: Bench) -> None:
    backup, target = backed_up(disk), target_of(disk, 48 * MIB)
    with loop_device(target, "--sector-size=4096") as device:
        command = [SNAPFS, "restore", "-", device, "--manifest", f"{backup}.json", "--force", "--fit-gpt"]
        done = subprocess.run(command, input=backup.read_bytes(), capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert "has sectors of 4096 bytes" in done.stderr.decode()


def test_a_gpt_without_partitions_keeps_room_for_one(disk: Bench) -> None:
    """Or else its second copy would be written over the first."""
    os.truncate(disk.image, 0)
    os.truncate(disk.image, SIZE)
    run("sgdisk", "-o", disk.image)
    backup, least_bytes = backed_up(disk), 35 * 512 + COPY_BYTES
    target = target_of(disk, least_bytes - 512)
    snapfs("restore", backup, target, "--force", "--fit-gpt").refuses(1, f"needs {least_bytes} bytes")
    target = target_of(disk, least_bytes)
    snapfs("restore", backup, target, "--force", "--fit-gpt").ok()
    assert "No problems found" in run("sgdisk", "-v", target)
