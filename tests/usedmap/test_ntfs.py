"""NTFS: the map against ntfs-3g's tools, partclone, poison and damage."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

import pytest
from bitarray import bitarray
from foreign_images import (
    copy_image,
    damaged_maps,
    digests,
    fill,
    frees_only,
    mounted,
    poison,
    read_map,
    run,
    used_by_partclone,
    used_units,
)
from ntfs_images import MIB, RECORD_BYTES, make_ntfs, refusal, system_file_offset, write_at

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs import read_free_map

LOG_PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ntfs")


@pytest.fixture(scope="module", params=["512", "2048", "4096", "65536"])
def filled(request: pytest.FixtureRequest, work: Path) -> Path:
    """A volume of that cluster size with files in it, some deleted."""
    path = make_ntfs(work / f"cluster-{request.param}.img", 48 * MIB, "-c", request.param)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        fill(directory)
    return path


@pytest.fixture(scope="module")
def plain(work: Path) -> Path:
    """A small volume with a few files, to be copied and changed."""
    path = make_ntfs(work / "plain.img", 8 * MIB)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        fill(directory)
    return path


def bits_of_ntfscat(path: Path, count: int) -> bitarray:
    """$Bitmap as ntfs-3g reads it, inverted: a set bit is free."""
    done = subprocess.run(["ntfscat", "-f", "-i", "6", path], capture_output=True, check=True)
    bits = bitarray(endian="little")
    bits.frombytes(done.stdout)
    return ~bits[:count]


def probe(path: Path) -> int:
    """What ntfs-3g thinks of mounting it read-write: 0 fine, 14 hibernated or fast startup, 15 unclean."""
    return subprocess.run(["ntfs-3g.probe", "--readwrite", path], capture_output=True, check=False).returncode


def test_equals_the_bitmap_that_ntfs_3g_reads(filled: Path) -> None:
    free_map = read_map(read_free_map, filled)
    assert free_map.free == bits_of_ntfscat(filled, len(free_map.free))
    info = run("ntfsinfo", "-m", "-f", filled)
    assert f"Free Clusters: {free_map.free.count()} " in info
    assert f"Volume Size in Clusters: {len(free_map.free)}\n" in info


def test_equals_partclone(plain: Path, work: Path) -> None:
    free_map = read_map(read_free_map, plain)
    assert ~used_units(free_map, used_by_partclone("ntfs", plain, work)) == free_map.free


def test_poison_harms_nothing(filled: Path, work: Path) -> None:
    copy = copy_image(filled, work / "poisoned.img")
    assert poison(copy, read_map(read_free_map, filled)) > 20 * MIB
    run("ntfsfix", "-n", copy)
    with mounted(filled, "ntfs-3g", work / "mnt") as directory:
        expected = digests(directory)
    with mounted(copy, "ntfs-3g", work / "mnt") as directory:
        assert digests(directory) == expected
    assert len(expected) == 41


def test_sectors_of_4096_bytes(work: Path) -> None:
    path = make_ntfs(work / "4kn.img", 64 * MIB, "-s", "4096")
    free_map = read_map(read_free_map, path)
    assert free_map.free == bits_of_ntfscat(path, len(free_map.free))


def test_clusters_of_2_mib(work: Path) -> None:
    path = make_ntfs(work / "large-clusters.img", 512 * MIB, "-c", "2097152")
    free_map = read_map(read_free_map, path)
    assert free_map.unit_bytes == 2 * MIB
    assert free_map.free == bits_of_ntfscat(path, len(free_map.free))


def test_backup_boot_sector_is_outside_the_map(plain: Path) -> None:
    free_map = read_map(read_free_map, plain)
    assert free_map.data_offset + len(free_map.free) * free_map.unit_bytes <= 8 * MIB - 512


def set_volume_flags(path: Path, flags: int) -> None:
    """Write the flags into $Volume, in $MFT and $MFTMirr alike."""
    with path.open("r+b") as file:
        for number in (layout.MFT_NO, layout.MFT_MIRROR_NO):
            offset = system_file_offset(path, number) + layout.VOLUME_NO * RECORD_BYTES
            file.seek(offset)
            record = file.read(RECORD_BYTES)
            attribute = record.index(struct.pack("<II", layout.VOLUME_INFORMATION, 0x28))
            value = attribute + struct.unpack_from("<H", record, attribute + 20)[0]
            file.seek(offset + value + 10)
            file.write(struct.pack("<H", flags))


@pytest.mark.parametrize("flags", [0x0001, 0x0002, 0x0004, 0x0010, 0x4000, 0x8000, 0x8081])
def test_flags_of_the_volume_are_believed(plain: Path, tmp_path: Path, flags: int) -> None:
    copy = copy_image(plain, tmp_path / "flagged.img")
    set_volume_flags(copy, flags)
    assert "marked dirty" in refusal(copy) or "unfinished work" in refusal(copy)


def test_the_setting_without_short_names_is_no_reason_to_refuse(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "setting.img")
    set_volume_flags(copy, layout.VOLUME_NO_SHORT_NAMES)
    assert read_map(read_free_map, copy).free == read_map(read_free_map, plain).free


def test_mirror_that_differs_is_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "mirror.img")
    with copy.open("r+b") as file:
        file.seek(system_file_offset(copy, layout.MFT_MIRROR_NO) + 3 * RECORD_BYTES + 100)
        file.write(b"\x77")
    assert refusal(copy) == "has an $MFTMirr that differs from its $MFT"


def restart_page(
    *, sequence: int = 100, clients: int = layout.NO_CLIENT, flags: int = 0, version: tuple[int, int] = (1, 1)
) -> bytes:
    """A restart page of $LogFile with one client record, with its update sequence applied."""
    page = bytearray(LOG_PAGE_BYTES)
    count = LOG_PAGE_BYTES // 512 + 1
    head = (b"RSTR", 30, count, 0, LOG_PAGE_BYTES, LOG_PAGE_BYTES, 48, version[1], version[0])
    struct.pack_into("<4sHHQIIHhh", page, 0, *head)
    free_list = 0 if clients == layout.NO_CLIENT else layout.NO_CLIENT
    area = (sequence, 1, free_list, clients, flags, 45, 48 + 160, 48, 2 * MIB, 0, 48, 64)
    struct.pack_into("<QHHHHIHHQIHH", page, 48, *area)
    # The client record: two sequence numbers, then no neighbours in the list, and the name "NTFS".
    struct.pack_into("<QQHHHxxxxxxI", page, 96, sequence, sequence, 0xFFFF, 0xFFFF, 0, 8)
    page[128:136] = "NTFS".encode("utf-16-le")
    for index in range(count):
        page[30 + 2 * index : 32 + 2 * index] = b"\x01\x00" if index == 0 else page[512 * index - 2 : 512 * index]
        if index:
            page[512 * index - 2 : 512 * index] = b"\x01\x00"
    return bytes(page)


CLEAN = restart_page(flags=layout.VOLUME_IS_CLEAN, clients=0)
TORN = CLEAN[:1022] + b"\x09\x00" + CLEAN[1024:]
LOG_STATES = [
    ("no client", [restart_page()] * 2, True, 0),
    ("client, marked clean", [CLEAN] * 2, True, 0),
    ("client", [restart_page(clients=0)] * 2, False, 15),
    ("second page newer, in use", [CLEAN, restart_page(clients=0, sequence=200)], False, 15),
    ("second page newer, clean", [restart_page(clients=0), restart_page(sequence=200)], True, 0),
    ("fast startup", [restart_page(version=(2, 0))] * 2, False, 14),
    ("chkdsk was here", [b"CHKD" + CLEAN[4:]] * 2, True, 0),
]


@pytest.mark.parametrize(("name", "pages", "trusted", "code"), LOG_STATES, ids=[row[0] for row in LOG_STATES])
def test_log_states_agree_with_ntfs_3g(
    plain: Path, tmp_path: Path, name: str, pages: list[bytes], trusted: bool, code: int
) -> None:
    copy = copy_image(plain, tmp_path / "log.img")
    write_log(copy, b"".join(pages))
    assert probe(copy) == code
    if trusted:
        assert read_map(read_free_map, copy).free == read_map(read_free_map, plain).free
    else:
        assert "$LogFile" in refusal(copy) or "fast startup" in refusal(copy)


@pytest.mark.parametrize(
    "log",
    [
        CLEAN + TORN,
        TORN + CLEAN,
        CLEAN + b"\xff" * 4096,
        b"\xff" * 4096 + CLEAN,
        b"\0" * 8192,
        b"\xff" * 70000 + b"\0",
    ],
    ids=["second torn", "first torn", "second missing", "first missing", "zeros", "records in an empty log"],
)
def test_logs_of_unknown_state_are_refused(plain: Path, tmp_path: Path, log: bytes) -> None:
    copy = copy_image(plain, tmp_path / "log.img")
    write_log(copy, log)
    assert "$LogFile" in refusal(copy)


def write_log(path: Path, content: bytes) -> None:
    write_at(path, system_file_offset(path, layout.LOG_FILE_NO), content)


@pytest.mark.parametrize("others", [0, 400], ids=["few files", "root directory of many records"])
def test_hibernated_windows_is_refused(work: Path, tmp_path: Path, others: int) -> None:
    path = make_ntfs(tmp_path / "hibernated.img", 16 * MIB)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        for number in range(others):
            (directory / f"a file with a long enough name {number}").touch()
        (directory / "hiberfil.sys").write_bytes(b"hibr" + bytes(100_000))
    assert probe(path) == 14
    assert refusal(path) == "holds a hibernated Windows"


def test_windows_that_is_off_is_trusted(work: Path, tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "off.img", 16 * MIB)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        (directory / "hiberfil.sys").write_bytes(bytes(100_000))
    assert probe(path) == 0
    assert read_map(read_free_map, path).free.any()


def offset_of_record_named(path: Path, name: str) -> int:
    """Where the MFT record of a file is, by its name."""
    content = path.read_bytes()
    mft = system_file_offset(path, layout.MFT_NO)
    records = range(mft, mft + 400 * RECORD_BYTES, RECORD_BYTES)
    return next(at for at in records if name.encode("utf-16-le") in content[at : at + RECORD_BYTES])


@pytest.mark.parametrize(
    ("offset", "change"), [(22, b"\0\0"), (16, b"\x63\0")], ids=["record free", "record given to another file"]
)
def test_old_entry_of_a_deleted_hibernation_file_says_nothing(
    work: Path, tmp_path: Path, offset: int, change: bytes
) -> None:
    path = make_ntfs(tmp_path / "deleted.img", 16 * MIB)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        (directory / "hiberfil.sys").write_bytes(b"hibr" + bytes(100_000))
    assert refusal(path) == "holds a hibernated Windows"
    with path.open("r+b") as file:
        file.seek(offset_of_record_named(path, "hiberfil.sys") + offset)
        file.write(change)
    assert read_map(read_free_map, path).free.any()


def test_bitmap_in_two_pieces(tmp_path: Path) -> None:
    """The second half of $Bitmap moved by hand, its run list changed to two runs."""
    path = make_ntfs(tmp_path / "pieces.img", 48 * MIB, "-c", "512")
    expected = read_map(read_free_map, path).free
    start, half = system_file_offset(path, layout.BITMAP_NO) // 512, 12
    target = next(iter(expected.search(bitarray("1" * half), start + half)))
    content = path.read_bytes()
    record = system_file_offset(path, layout.MFT_NO) + layout.BITMAP_NO * RECORD_BYTES
    one_run = b"\x21" + struct.pack("<BH", 2 * half, start)
    runs = content.index(one_run, record)
    # The run list grows by 8 bytes, its attribute and the record with it; the attribute is the last one.
    two_runs = b"\x21" + struct.pack("<BH", half, start) + b"\x21" + struct.pack("<Bh", half, target - start)
    (used_bytes,) = struct.unpack_from("<I", content, record + 24)
    assert content[runs + 8 : runs + 12] == b"\xff\xff\xff\xff"
    with path.open("r+b") as file:
        file.seek(runs)
        file.write(two_runs.ljust(16, b"\0") + b"\xff\xff\xff\xff")
        file.seek(runs - 64 + 4)
        file.write(struct.pack("<I", 64 + 16))
        file.seek(record + 24)
        file.write(struct.pack("<I", used_bytes + 8))
        file.seek(target * 512)
        file.write(content[(start + half) * 512 : (start + 2 * half) * 512])
        # The new place is used now and the old one is free; their bits are in the first half.
        assert target + half < half * 512 * 8
        expected[target : target + half] = 0
        expected[start + half : start + 2 * half] = 1
        file.seek(start * 512)
        file.write((~expected).tobytes()[: half * 512])
    free_map = read_map(read_free_map, path)
    assert free_map.free == expected == bits_of_ntfscat(path, len(expected))


def test_volume_larger_than_its_place_is_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "cut.img")
    with copy.open("r+b") as file:
        file.truncate(7 * MIB)
    assert refusal(copy) == "is larger than its place"


def test_bitmap_that_frees_system_files_is_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "bitmap.img")
    with copy.open("r+b") as file:
        file.seek(system_file_offset(copy, layout.BITMAP_NO))
        file.write(b"\0")
    assert refusal(copy) == "has a $Bitmap that calls its own system files free"


def test_damage_never_crashes_nor_frees_what_is_used(plain: Path) -> None:
    truth = read_map(read_free_map, plain)
    mft = system_file_offset(plain, layout.MFT_NO)
    mirror = system_file_offset(plain, layout.MFT_MIRROR_NO)
    log = system_file_offset(plain, layout.LOG_FILE_NO)
    ranges = [
        range(96),
        *(range(mft + number * RECORD_BYTES, mft + number * RECORD_BYTES + 500) for number in range(8)),
        range(mirror, mirror + 4 * RECORD_BYTES - 8),
        range(log, log + 4096),
    ]
    survivors = 0
    for seed, free_map in damaged_maps(read_free_map, plain.read_bytes(), ranges, range(500)):
        assert frees_only(free_map, truth), seed
        survivors += 1
    assert survivors < 250


@pytest.mark.alone
def test_one_tebibyte_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    path = make_ntfs(tmp_path / "large.img", 1 << 40)
    read_map(read_free_map, path)
    started = time.process_time()
    free_map = read_map(read_free_map, path)
    assert time.process_time() - started < 0.6
    assert free_map.free.count() > 1 << 27
