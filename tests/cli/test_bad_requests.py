"""Sizes and options that cannot be, FUSE that may not be used, and commands about what is not mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import FUSE_FOR_ALL, NOBODY, Bench, Room, mounted, own_room, reachable_script, snapfs


@pytest.mark.parametrize("size", ["0", "511", "3K", "2M", "-4K", "four", "4KB", "", "1.0001K", "9999999999T"])
def test_impossible_block_sizes(bench: Bench, size: str) -> None:
    with bench.untouched():
        bench.mount(f"--block-size={size}").refuses(2, size if size not in ("2M", "3K") else "bytes")


@pytest.mark.parametrize("size", ["0", "1", "4095", "-1", "lots", "9G9", "9999999999T"])
def test_impossible_limits(bench: Bench, size: str) -> None:
    with bench.untouched():
        bench.mount(f"--buffer-limit={size}").refuses(2, size)


def test_impossible_new_limits(bench: Bench) -> None:
    with bench.mounted():
        for size in ("-1", "lots", "1GB", "4095", "9999999999T"):
            snapfs("limit", "--", bench.live, size).refuses(2, size)
        assert bench.status()["buffer"]["limit_bytes"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--on-overflow=panic"],
        ["--durability=eternal"],
        ["--cache=none"],
        ["--protect=nothing"],
        ["-o", "ro"],
        ["-o", "fsname=x"],
        ["--no-such-option"],
        ["one", "too", "many"],
    ],
)
def test_impossible_options(bench: Bench, words: list[str]) -> None:
    with bench.untouched():
        bench.mount(*words).refuses(2)


def test_an_option_that_fuse_does_not_know(bench: Bench) -> None:
    with bench.untouched():
        bench.mount("-o", "nonsense").refuses(1, "nonsense")


@pytest.mark.parametrize("command", ["mount", "umount", "limit", "check"])
def test_a_command_without_its_arguments(command: str) -> None:
    snapfs(command).refuses(2, "Missing argument", f"see snapfs {command} --help")


def test_no_command() -> None:
    snapfs().refuses(2, "Missing command")


# --- FUSE ----------------------------------------------------------------------------------------------------

ONLY_NULL = """
mount -t tmpfs none /mnt
mknod -m 666 /mnt/null c 1 3
mount -t tmpfs none /dev
cp -a /mnt/null /dev/null
"""


def test_fuse_is_missing(bench: Bench) -> None:
    with own_room(ONLY_NULL) as room, bench.untouched():
        bench.mount(before=room.before()).refuses(1, "/dev/fuse is missing", "modprobe fuse")


def test_fuse_may_not_be_used(user_bench: Bench) -> None:
    script = FUSE_FOR_ALL + reachable_script() + "\nchmod 600 /dev/fuse"
    with own_room(script) as room, user_bench.untouched():
        user_bench.mount(before=room.before(NOBODY)).refuses(1, "this user may not open /dev/fuse")


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_a_user_may_not_let_others_in(user_bench: Bench, room: Room, option: str) -> None:
    with user_bench.untouched():
        done = user_bench.mount("-o", option, before=room.before(NOBODY))
        done.refuses(1, f"The option {option} is not allowed to this user", "user_allow_other")


# --- not mounted ---------------------------------------------------------------------------------------------

COMMANDS = [["umount"], ["status"], ["limit"]]


def ask(command: str, path: Path, **keywords: object) -> None:
    words = [command, path, *(["1G"] if command == "limit" else [])]
    snapfs(*words, **keywords).refuses(1, f"{path} is not mounted with snapfs")


@pytest.mark.parametrize("command", ["umount", "status", "limit"])
@pytest.mark.parametrize("name", ["live", "disk.img", "missing", "missing/below"])
def test_what_is_not_mounted(bench: Bench, command: str, name: str) -> None:
    with bench.untouched():
        ask(command, bench.path / name)


@pytest.mark.parametrize("command", ["umount", "status", "limit"])
def test_a_mount_of_something_else(bench: Bench, command: str) -> None:
    with mounted("none", bench.live, "-t", "tmpfs"), bench.untouched():
        ask(command, bench.live)


@pytest.mark.parametrize("command", ["umount", "status", "limit"])
def test_a_directory_of_another_user(user_bench: Bench, room: Room, command: str) -> None:
    secret = user_bench.path / "secret"
    secret.mkdir(0o700)
    with user_bench.untouched():
        ask(command, secret / "live", before=room.before(NOBODY))


def test_status_of_nothing(bench: Bench) -> None:
    done = snapfs("status", "--json").ok()
    assert str(bench.path) not in done.out


@pytest.mark.parametrize("command", ["status", "limit"])
def test_an_instance_that_was_killed(bench: Bench, command: str) -> None:
    bench.mount().ok()
    pid = bench.status()["pid"]
    servers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for victim in (pid, *map(int, servers)):
        os.kill(victim, 9)
    done = snapfs(command, bench.live, *(["1G"] if command == "limit" else []))
    done.refuses(1, f"The snapfs of {bench.live} was killed", "mount the image again")


@pytest.mark.parametrize("command", ["umount", "status", "limit"])
def test_the_instance_of_another_user(user_bench: Bench, room: Room, command: str) -> None:
    before = room.before()
    with user_bench.mounted("-o", "allow_other", before=before):
        words = [command, user_bench.live, *(["1G"] if command == "limit" else [])]
        snapfs(*words, before=room.before(NOBODY)).refuses(1, "another user", "as that user")
