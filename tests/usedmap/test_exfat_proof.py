"""exFAT: the allocation bitmap is believed only as far as the directories bear it out."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from exfat_images import (
    ENTRY_BYTES,
    MIB,
    bitmap_of,
    change_set,
    cluster_offset,
    first_cluster,
    fragment,
    layout_of,
    link_offset,
    make_exfat,
    refusal,
    set_offset,
    set_used,
    write_at,
)
from foreign_images import MemoryImage, copy_image, damage_bitmap, frees_only, read_map

from snapfs.usedmap import exfat_tree
from snapfs.usedmap.exfat import read_free_map
from snapfs.usedmap.exfat_geometry import Fat, open_volume
from snapfs.usedmap.result import MapError

FREED = "has files in clusters that its bitmap calls free"
TWICE = "has files that claim the same clusters"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("exfat-proof")
    return fragment(make_exfat(work / "plain.img", 16 * MIB, "-c", "2K"), work / "mnt")


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return copy_image(plain, tmp_path / "copy.img")


def chain(path: Path, first: int) -> list[int]:
    """The clusters of a chain."""
    with path.open("rb") as file:
        links = file.read()[link_offset(path, 0) :]
    clusters = [first]
    while (following := struct.unpack_from("<I", links, 4 * clusters[-1])[0]) != 0xFFFFFFFF:
        clusters.append(following)
    return clusters


def test_every_used_cluster_is_claimed(plain: Path) -> None:
    """Bytes of the bitmap that have a bit set become zero: no used cluster escapes the proof."""
    image = MemoryImage(plain.read_bytes())
    for at in [at for at in bitmap_of(plain)[:-1] if image.content[at]]:
        old = image.content[at]
        image.content[at] = 0
        with pytest.raises(MapError, match=r"calls (its own structures )?free"):
            read_free_map(image.source())
        image.content[at] = old


def test_random_damage_of_the_bitmap_never_frees_what_is_used(plain: Path) -> None:
    truth, bitmap, content = read_map(read_free_map, plain), [bitmap_of(plain)], plain.read_bytes()
    noticed = 0
    for seed in range(150):
        image = MemoryImage(content)
        damage_bitmap(image.content, bitmap, random.Random(seed))
        try:
            assert frees_only(read_free_map(image.source()), truth), seed
        except MapError:
            noticed += 1
    assert noticed > 60


@pytest.mark.parametrize("name", ["pieces", "grown", "last.bin", "folder-1", "deeper-1", "between"])
def test_a_lost_bit_of_any_file_or_directory_is_noticed(copy: Path, name: str) -> None:
    set_used(copy, first_cluster(copy, name), False)
    assert refusal(copy) == FREED


def test_a_lost_bit_at_the_end_of_a_chain_is_noticed(copy: Path) -> None:
    clusters = chain(copy, first_cluster(copy, "pieces"))
    assert len(clusters) == -(-900_000 // 2048)
    assert clusters != list(range(clusters[0], clusters[0] + len(clusters)))
    set_used(copy, clusters[-1], False)
    assert refusal(copy) == FREED


def test_deleted_entries_claim_nothing(copy: Path, plain: Path) -> None:
    """What a deletion changes: the first bit of each kind, and the bits of the clusters."""
    at = set_offset(copy, "between")
    for entry, kind in enumerate((0x05, 0x40, 0x41)):
        write_at(copy, at + entry * ENTRY_BYTES, bytes([kind]))
    first = struct.unpack_from("<I", plain.read_bytes(), at + ENTRY_BYTES + 20)[0]
    for cluster in range(first, first + 5):
        set_used(copy, cluster, False)
    assert read_map(read_free_map, copy).free.count() == read_map(read_free_map, plain).free.count() + 5


def test_sets_over_the_ends_of_batches_count(plain: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exfat_tree, "_BATCH_BYTES", 64)
    monkeypatch.setattr(exfat_tree, "_FIRST_READ_BYTES", 64)
    monkeypatch.setattr(exfat_tree, "_READ_BYTES_MAX", 64)
    assert read_map(read_free_map, copy).free == read_map(read_free_map, plain).free
    set_used(copy, first_cluster(copy, "between"), False)
    assert refusal(copy) == FREED


@pytest.mark.parametrize(
    ("offset", "change", "reason"),
    [
        (0, b"\x84", "has a directory with entries of an unknown kind"),
        (0, b"\xa1", "has a directory with entries of an unknown kind"),
        (32, b"\xe2", "has a directory with entries of an unknown kind"),
        (0, b"\x05", "has a directory with a broken set of entries"),
        (1, b"\1", "has a directory with a broken set of entries"),
        (1, b"\3", "has a directory with a broken set of entries"),
        (1, b"\xff", "has a directory with a broken set of entries"),
        (32, b"\xc1", "has a directory with a broken set of entries"),
        (32, b"\x40", "has a directory with a broken set of entries"),
        (64, b"\xc0", "has a directory with a broken set of entries"),
        (2, b"\x11\x22", "has a directory entry with a wrong checksum"),
        (52, b"\x99", "has a directory entry with a wrong checksum"),
        (67, b"\x99", "has a directory entry with a wrong checksum"),
        (0, b"\0", "has a directory with entries behind its end mark"),
    ],
)
def test_a_set_that_is_not_understood_proves_nothing(copy: Path, offset: int, change: bytes, reason: str) -> None:
    write_at(copy, set_offset(copy, "between") + offset, change)
    assert refusal(copy) == reason


NO_CLUSTERS = b"\0\0\0\0"
FAR_AWAY = b"\xff\xff\xff\x7f"
HUGE = b"\xff" * 8


@pytest.mark.parametrize(
    ("name", "offset", "change", "reason"),
    [
        ("between", 52, NO_CLUSTERS, "has a file whose sizes contradict each other"),
        ("between", 33, b"\2", "has a file whose sizes contradict each other"),
        ("between", 52, b"\1\0\0\0", "has a file with clusters outside the volume"),
        ("between", 52, FAR_AWAY, "has a file with clusters outside the volume"),
        ("between", 56, HUGE, "has a file with clusters outside the volume"),
        ("pieces", 52, FAR_AWAY, "has a file with clusters outside the volume"),
        ("pieces", 56, b"\0\0\x60\0", "has a file whose chain of clusters is too short"),
        ("folder-1", 56, b"\1", "has a directory of an impossible size"),
        ("folder-1", 56, bytes(8), "has a directory of an impossible size"),
        ("folder-1", 56, bytes(6) + b"\1", "has a file with clusters outside the volume"),
    ],
)
def test_streams_that_lie_are_refused_even_if_signed(
    copy: Path, name: str, offset: int, change: bytes, reason: str
) -> None:
    change_set(copy, name, offset, change)
    assert refusal(copy) == reason


def test_files_on_the_same_clusters_are_refused(copy: Path) -> None:
    change_set(copy, "between", 52, struct.pack("<I", first_cluster(copy, "last.bin")))
    assert refusal(copy) == TWICE


def test_a_directory_that_became_empty_is_missed(copy: Path) -> None:
    """Zeros over a directory look like one without entries; what it named is in use and claimed by nobody."""
    write_at(copy, cluster_offset(copy, first_cluster(copy, "folder-1")), bytes(2048))
    assert refusal(copy) == "has clusters in use that no file claims"


def test_a_circle_of_directories_ends(copy: Path) -> None:
    change_set(copy, "folder-1", 52, struct.pack("<I", layout_of(copy)["Root Cluster"]))
    assert refusal(copy) == TWICE


def test_a_chain_in_a_circle_ends(copy: Path) -> None:
    clusters = chain(copy, first_cluster(copy, "pieces"))
    write_at(copy, link_offset(copy, clusters[-1]), struct.pack("<I", clusters[0]))
    assert refusal(copy) == TWICE


@pytest.mark.parametrize("link", [0, 1, 0xFFFFFFF7, 0x7FFFFFFF])
def test_a_chain_that_leaves_the_volume_is_refused(copy: Path, link: int) -> None:
    clusters = chain(copy, first_cluster(copy, "pieces"))
    write_at(copy, link_offset(copy, clusters[9]), struct.pack("<I", link))
    assert refusal(copy) == "has a chain of clusters that leaves the volume"


def test_an_up_case_table_of_a_wrong_length_is_refused(copy: Path) -> None:
    root = cluster_offset(copy, layout_of(copy)["Root Cluster"])
    entries = copy.read_bytes()[root : root + 8 * ENTRY_BYTES]
    at = next(at for at in range(0, len(entries), ENTRY_BYTES) if entries[at] == 0x82)
    write_at(copy, root + at + 24, struct.pack("<Q", 60_000))
    assert refusal(copy) == "has an up-case table whose chain of clusters has a wrong length"


def test_rows_of_a_chain_over_several_windows_are_whole(tmp_path: Path) -> None:
    """A chain of 40,000 clusters that follow each other, then a step back, then two single ones."""
    path = make_exfat(tmp_path / "large.img", 64 * MIB, "-c", "512")
    ahead = list(range(20_000, 60_000))
    clusters = [*ahead, 15_000, 15_002, 15_001]
    for start in range(0, len(ahead), 1000):
        write_at(path, link_offset(path, 20_000 + start), struct.pack("<1000I", *clusters[start + 1 : start + 1001]))
    for cluster, following in ((15_000, 15_002), (15_002, 15_001), (15_001, 0xFFFFFFFF)):
        write_at(path, link_offset(path, cluster), struct.pack("<I", following))
    image = MemoryImage(path.read_bytes())
    rows = Fat(open_volume(image.source())).rows(20_000)
    assert [cluster for first, length in rows for cluster in range(first, first + length)] == clusters
