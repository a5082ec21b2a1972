"""A store that somebody else has prepared, or has his hands in: nothing outside it is ever written or removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import NOBODY, Bench, snapfs

# With the first two a mount is refused, and so meets none of the others.
NAMES = (("header",), ("lock",), ("header.new", "control", "staging", "log", "socket", "cut-00000001"))


@pytest.fixture
def secret(bench: Bench) -> Path:
    path = bench.path / "secret"
    path.write_text("precious")
    return path


def test_another_users_default_store_is_refused(bench: Bench) -> None:
    bench.default_store.mkdir()
    os.chown(bench.default_store, NOBODY, NOBODY)
    with bench.untouched():
        bench.mount().refuses(1, "belongs to another user")


@pytest.mark.parametrize("kind", ["directory", "missing"])
def test_a_default_store_that_is_a_link_is_not_followed(bench: Bench, kind: str) -> None:
    target = bench.path / "target"
    if kind == "directory":
        target.mkdir()
    bench.default_store.symlink_to(target)
    with bench.untouched():
        bench.mount().refuses(1, "is a symbolic link")


@pytest.mark.parametrize("names", NAMES)
def test_a_link_inside_a_store_is_not_followed(bench: Bench, secret: Path, names: tuple[str, ...]) -> None:
    bench.store.mkdir()
    for name in names:
        (bench.store / name).symlink_to(secret)
    done = bench.mount("--store", bench.store)
    assert (done.code == 0) == (len(names) > 1), done.err
    if done.code == 0:
        bench.umount().ok()
    assert secret.read_text() == "precious"


@pytest.mark.parametrize("names", [("lock",), ("control", "log")])
def test_a_second_name_of_another_file_is_not_written(bench: Bench, secret: Path, names: tuple[str, ...]) -> None:
    bench.store.mkdir()
    for name in names:
        os.link(secret, bench.store / name)
    if bench.mount("--store", bench.store).code == 0:
        bench.umount().ok()
    assert secret.read_text() == "precious"


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(bench: Bench) -> None:
    bench.store.mkdir()
    os.mkfifo(bench.store / "lock")
    bench.mount("--store", bench.store).refuses(1, "cannot be written")
    assert snapfs("check", bench.store).code != 0


def test_links_in_a_carried_store_are_not_followed(bench: Bench, secret: Path) -> None:
    with bench.mounted("--store", bench.store):
        pass
    for name in ("index", "settled", "seal"):
        (bench.store / "cut-00000001" / name).unlink(missing_ok=True)
        (bench.store / "cut-00000001" / name).symlink_to(secret)
    if bench.mount("--store", bench.store).code == 0:
        bench.umount().ok()
    assert secret.read_text() == "precious"


def test_a_store_is_private_whatever_it_was(bench: Bench) -> None:
    bench.store.mkdir()
    bench.store.chmod(0o777)
    with bench.mounted("--store", bench.store):
        open_to_others = [path for path in [bench.store, *bench.store.rglob("*")] if path.lstat().st_mode & 0o077]
        assert open_to_others == []


def test_a_store_that_was_renamed_and_replaced_takes_nothing_else_with_it(bench: Bench) -> None:
    bench.mount().ok()
    moved = bench.path / "moved"
    bench.default_store.rename(moved)
    bench.default_store.mkdir()
    (bench.default_store / "header").write_text("not ours")
    bench.umount().ok()
    assert (bench.default_store / "header").read_text() == "not ours"
    assert not moved.exists()
