"""Maps of more extents and more partitions than any real disk has: memory and time are bounded, nothing is cut."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from cut_rig import SNAPFS
from mounted import run
from PIL import Image
from used_rig import MIB, UsedGround, await_map

GIB = 1 << 30
MAX_MEMORY_BYTES = 200 * MIB
MAX_CPU_S = 10.0
PARTITION_COUNT = 3000
# Started by a small process: the kernel counts what whoever forks holds as the child's own.
MEASURE = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, usage.ru_maxrss << 10, usage.ru_utime + usage.ru_stime]))
"""


def measured(*words: str | Path) -> None:
    """Run `snapfs map` with its output thrown away; it succeeds, and within the limits."""
    measure = [sys.executable, "-c", MEASURE, str(SNAPFS), "map", *map(str, words)]
    done = subprocess.run(measure, capture_output=True, text=True, check=True)
    code, peak_bytes, cpu_s = json.loads(done.stdout)
    assert code == 0
    assert peak_bytes < MAX_MEMORY_BYTES
    assert cpu_s < MAX_CPU_S


@pytest.fixture
def in_pieces(ground: UsedGround) -> Path:
    """A FAT32 of which every second cluster is in use: a million extents."""
    image = ground.image(4 * GIB)
    run("mkfs.fat", "-F", "32", "-s", "8", image)
    with image.open("r+b") as file:
        boot = file.read(512)
        reserved, fat_count, fat_sectors = *struct.unpack_from("<HB", boot, 14), struct.unpack_from("<I", boot, 36)[0]
        file.seek(reserved * 512)
        fat = np.frombuffer(file.read(fat_sectors * 512), "<u4").copy()
        fat[4 : (4 * GIB // 512 - reserved - fat_count * fat_sectors) // 8 + 2 : 2] = 0x0FFFFFFF
        file.seek(reserved * 512)
        file.write(fat.tobytes() * fat_count)
    return image


@pytest.mark.parametrize("option", ["--json", "--png", "--domain"])
def test_a_million_extents_are_never_all_in_memory(in_pieces: Path, option: str) -> None:
    target = [] if option == "--json" else [in_pieces.parent / "target"]
    measured(in_pieces, option, *target)


@pytest.fixture
def many_parts(ground: UsedGround) -> Path:
    """A disk of thousands of partitions, with a gap before each. sfdisk would take minutes for them."""
    image = ground.image((PARTITION_COUNT + 2) * MIB)
    sectors = image.stat().st_size // 512
    entries = b"".join(map(gpt_entry, numbers()))
    with image.open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3xB3xII", 0, 0xEE, 1, sectors - 1).ljust(64, b"\0") + b"\x55\xaa")
        file.write(gpt_header(sectors, entries).ljust(512, b"\0") + entries)
    return image


def gpt_entry(number: int) -> bytes:
    name = "a name as long as a name can be here"
    first = 2048 * number + 100
    return struct.pack("<16s16sQQQ72s", b"t" * 16, b"p" * 16, first, first + 999, 0, name.encode("utf-16-le"))


def gpt_header(sectors: int, entries: bytes) -> bytes:
    places = (1, sectors - 1, 2 + -(-len(entries) // 512), sectors - 2)
    fields = (*places, b"d" * 16, 2, PARTITION_COUNT, 128, zlib.crc32(entries))
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    return header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]


def numbers() -> range:
    return range(1, PARTITION_COUNT + 1)


def test_thousands_of_partitions_are_listed_whole_and_drawn(ground: UsedGround, many_parts: Path) -> None:
    instance = ground.mounted(many_parts)
    await_map(instance)
    answer = instance.status()
    assert len(json.dumps(answer)) > MIB
    regions = answer["snapshot"]["regions"]
    assert [region["partition_number"] for region in regions if region["partition_number"]] == list(numbers())
    png = many_parts.parent / "map.png"
    measured(instance.live, "--png", png)
    with Image.open(png) as picture:
        assert picture.height < 10_000
