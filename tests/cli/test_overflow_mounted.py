"""A side buffer with a limit of N, and N + 10 MiB of first-touch random data, under each policy."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Bench, processes_about, run, snapfs, wait_until
from writers import MIB, random_file, reading, write_all, writing

LIMIT_MIB = 4
IMAGE_BYTES = 24 * MIB
PROMPT_S = 10.0  # far below the time that a request would wait for room, far above what a busy machine needs


@pytest.fixture
def frozen(bench: Bench) -> bytes:
    """The image is large enough for all that is written; its content at the cut."""
    bench.image.write_bytes(os.urandom(IMAGE_BYTES))
    return bench.image.read_bytes()


@pytest.fixture
def too_much(bench: Bench) -> Path:
    return random_file(bench.path / "new.bin", (LIMIT_MIB + 10) * MIB)


def new_content(frozen: bytes, source: Path) -> bytes:
    new = source.read_bytes()
    return new + frozen[len(new) :]


def log_of(bench: Bench, store: Path | None = None) -> str:
    return (store or bench.default_store).joinpath("log").read_text()


def disk_bytes(path: Path) -> int:
    return sum(int(line.split()[0]) for line in run("du", "-s", "-B1", path).splitlines())


def test_a_set_that_just_fits_does_not_overflow(bench: Bench, frozen: bytes) -> None:
    fits = random_file(bench.path / "new.bin", LIMIT_MIB * MIB)
    with bench.mounted(f"--buffer-limit={LIMIT_MIB}M"):
        assert write_all(bench.live_file, fits)[0] == "synced"
        assert snapfs("status", bench.live).code == 0
        assert bench.snap_file.read_bytes() == frozen
        wait_until(lambda: bench.status()["buffer"]["staged_bytes"] == 0)
        buffer = bench.status()["buffer"]
        assert buffer["stored_bytes"] <= buffer["limit_bytes"]
    assert bench.image.read_bytes() == new_content(frozen, fits)


# --- break-snapshot ------------------------------------------------------------------------------------------


def test_break_snapshot_gives_up_the_snapshot_only(bench: Bench, frozen: bytes, too_much: Path) -> None:
    with bench.mounted(f"--buffer-limit={LIMIT_MIB}M"):
        assert write_all(bench.live_file, too_much)[0] == "synced"
        assert bench.live_file.read_bytes() == new_content(frozen, too_much)
        with pytest.raises(OSError, match="Input/output error"):
            bench.snap_file.read_bytes()
        done = snapfs("status", bench.live)
        assert done.code == 3
        assert "overflowed" in done.out
        status = bench.status()
        assert status["snapshot"]["state"] == "overflowed"
        assert "the side buffer is full" in status["error"]
    assert bench.image.read_bytes() == new_content(frozen, too_much)


def test_the_log_warns_before_and_tells_the_overflow_once(bench: Bench, frozen: bytes, too_much: Path) -> None:
    # Written through, so that no single write is larger than the steps.
    with bench.mounted(f"--buffer-limit={LIMIT_MIB}M", "--cache=writethrough"):
        write_all(bench.live_file, too_much)
        write_all(bench.live_file, too_much)
        log = log_of(bench)
        for percent in (80, 90, 95):
            assert log.count(f"reached {percent} % of its limit") == 1
        assert log.count("the snapshot is lost") == 1


def test_break_snapshot_gives_the_space_back(bench: Bench, frozen: bytes, too_much: Path) -> None:
    with bench.mounted(f"--buffer-limit={LIMIT_MIB}M"):
        write_all(bench.live_file, too_much)
        segments = bench.default_store / "segments"
        wait_until(lambda: disk_bytes(segments) <= 8192)


# --- break-write ---------------------------------------------------------------------------------------------


def test_break_write_keeps_the_snapshot(bench: Bench, frozen: bytes, too_much: Path) -> None:
    limit = f"--buffer-limit={LIMIT_MIB}M"
    with bench.mounted(limit, "--on-overflow=break-write", "--cache=writethrough"):
        said, done_bytes = write_all(bench.live_file, too_much)
        assert said == f"errno {errno.ENOSPC}"
        assert done_bytes >= (LIMIT_MIB - 1) * MIB
        assert bench.snap_file.read_bytes() == frozen
        assert snapfs("status", bench.live).code == 0
        new, live = too_much.read_bytes(), bench.live_file.read_bytes()
        assert live[:done_bytes] == new[:done_bytes]
        assert live[done_bytes + MIB :] == frozen[done_bytes + MIB :]
        snapfs("limit", bench.live, "none").ok()
        assert write_all(bench.live_file, too_much)[0] == "synced"
        assert bench.snap_file.read_bytes() == frozen
    assert bench.image.read_bytes() == new_content(frozen, too_much)


# --- wait ----------------------------------------------------------------------------------------------------


@contextmanager
def promptly() -> Iterator[None]:
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < PROMPT_S


def is_waiting(bench: Bench) -> bool:
    return "live writes wait" in log_of(bench)


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_wait_goes_on_when_the_limit_is_raised(bench: Bench, frozen: bytes, too_much: Path, cache: str) -> None:
    options = f"--buffer-limit={LIMIT_MIB}M", "--on-overflow=wait", f"--cache={cache}"
    with bench.mounted(*options), writing(bench.live_file, too_much) as writer:
        wait_until(lambda: is_waiting(bench))
        with promptly():
            assert bench.status()["snapshot"]["state"] == "active"
        with promptly(), reading(bench.live_file, IMAGE_BYTES - MIB, MIB) as content:
            assert content == frozen[-MIB:]
        with promptly():
            assert bench.snap_file.read_bytes() == frozen
        with promptly():
            assert os.listdir(bench.live) == [bench.image.name]
        assert not writer.is_over
        with promptly():
            snapfs("limit", bench.live, f"{LIMIT_MIB + 20}M").ok()
        assert writer.finish() == ("synced", (LIMIT_MIB + 10) * MIB)
        assert bench.snap_file.read_bytes() == frozen
    assert bench.image.read_bytes() == new_content(frozen, too_much)


def test_umount_while_a_writer_waits_changes_nothing(bench: Bench, frozen: bytes, too_much: Path) -> None:
    options = f"--buffer-limit={LIMIT_MIB}M", "--on-overflow=wait", "--cache=writethrough"
    with bench.mounted(*options), writing(bench.live_file, too_much) as writer:
        wait_until(lambda: is_waiting(bench))
        with promptly():
            bench.umount().refuses(1, "in use", f"process {writer.pid}")
        assert not writer.is_over
        snapfs("limit", bench.live, "none").ok()
        writer.finish()


@pytest.mark.parametrize("store", ["default", "kept"])
def test_sigterm_while_writes_wait(bench: Bench, frozen: bytes, too_much: Path, store: str) -> None:
    options = [f"--buffer-limit={LIMIT_MIB}M", "--on-overflow=wait"]
    path = bench.store if store == "kept" else bench.default_store
    bench.mount(*options, *(["--store", path] if store == "kept" else [])).ok()
    with writing(bench.live_file, too_much) as writer:
        wait_until(lambda: "live writes wait" in log_of(bench, path))
        os.kill(bench.status()["pid"], signal.SIGTERM)
        writer.finish()
        wait_until(lambda: not [pid for pid in processes_about(bench.path) if pid != writer.pid])
    assert bench.image.read_bytes() == new_content(frozen, too_much)
    assert path.exists() == (store == "kept")
