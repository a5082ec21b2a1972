"""Kept stores that do not belong to what is mounted, are of another version, unfinished, or gone.

Damaged ones: see test_damaged_store.py.
"""

from __future__ import annotations

import os
import struct

from command_line import Bench, mounted, processes_about, run, snapfs, wait_until

BLOCK_BYTES = 4096
VERSION_OFFSET = 8


def keep_store(bench: Bench) -> None:
    with bench.mounted("--store", bench.store), bench.live_file.open("r+b") as file:
        file.write(os.urandom(BLOCK_BYTES * 64))


def test_a_store_of_another_image(bench: Bench) -> None:
    keep_store(bench)
    other = bench.path / "other.img"
    other.write_bytes(os.urandom(1 << 20))
    with bench.untouched():
        done = snapfs("mount", other, bench.live, bench.snap, "--store", bench.store)
        done.refuses(1, f"belongs to another image ({bench.image})", "give another --store")


def test_a_store_of_a_newer_version(bench: Bench) -> None:
    keep_store(bench)
    with (bench.store / "header").open("r+b") as file:
        file.seek(VERSION_OFFSET)
        file.write(struct.pack("<I", 99))
    with bench.untouched():
        bench.mount("--store", bench.store).refuses(1, "was written by a newer snapfs (format 99")


def test_a_store_with_blocks_of_another_size(bench: Bench) -> None:
    keep_store(bench)
    with bench.untouched():
        done = bench.mount("--store", bench.store, "--block-size=8K")
        done.refuses(1, "has blocks of 4096 bytes, not 8192")


def test_a_store_of_the_lower_durability(bench: Bench) -> None:
    keep_store(bench)
    with bench.untouched():
        done = bench.mount("--store", bench.store, "--durability=power")
        done.refuses(1, "durability 'process'")


def test_a_store_that_is_removed_while_mounted(bench: Bench) -> None:
    """The live view and what was mapped go on; the end leaves nothing behind."""
    bench.mount().ok()
    run("rm", "-rf", bench.default_store)
    with bench.live_file.open("r+b") as file:
        file.write(b"live data")
    run("umount", bench.snap)
    wait_until(lambda: not processes_about(bench.path))
    assert bench.image.read_bytes().startswith(b"live data")
    assert sorted(os.listdir(bench.path)) == ["disk.img", "live", "snap"]


def test_an_empty_directory_as_store(bench: Bench) -> None:
    bench.store.mkdir()
    with bench.mounted("--store", bench.store):
        assert bench.snap_file.read_bytes() == bench.image.read_bytes()


def test_a_store_that_was_never_finished(bench: Bench) -> None:
    keep_store(bench)
    (bench.store / "header").rename(bench.store / "header.new")
    with bench.mounted("--store", bench.store):
        assert bench.snap_file.read_bytes() == bench.image.read_bytes()


def test_a_store_on_a_disk_that_became_read_only(bench: Bench) -> None:
    with mounted("none", bench.path / "tmp", "-t", "tmpfs") as point:
        with bench.mounted("--store", point / "store"):
            pass
        run("mount", "-o", "remount,ro", point)
        with bench.untouched():
            bench.mount("--store", point / "store").refuses(1, "read-only filesystem")
