"""What the documents name exists: symbols, files, commands and their options. Their lines are not too long."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable

import click
import pytest
from documents import ROOT, examples, in_backticks, prose
from symbols import Symbols, ours

from snapfs.cli import cli

NAMING = ("README.md", "HACKING.md", "SECURITY.md", "cow/DESIGN.md", "cow/FORMAT.md", "snapfs/DESIGN.md")
# As people read them side by side, in a terminal or a review.
MAX_COLUMNS = 100
# In backticks for what they are elsewhere: programs, system calls, options of mounts, of libraries and of tests.
NOT_OURS = {
    *("alone", "chkdsk", "flock", "fsck.exfat", "ls", "preadv", "rsync"),
    *("libfuse3-dev", "pkg-config", "noload", "norecovery", "nouuid"),
    # Built in the code from parts.
    *("SNAPFS_IMAGE", "SNAPFS_LIVE", "SNAPFS_MOUNT_POINTS", "header.new", "reverting.new"),
}
NAME = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_]\w*)*(\(.*\))?")
# DEST.json, IMAGE.snapfs, STORE/log, segments/NNNNNNNN: capitals that stand for a name or a number.
PLACEHOLDER = re.compile(r"[A-Z]+[./].*|.*([A-Z])\1{3}.*")
OPTION = re.compile(r"--?[a-z][a-z-]*")


@functools.cache
def symbols() -> Symbols:
    return ours()


@functools.cache
def files() -> tuple[str, ...]:
    """Of the project, and their directories: each path from the root on, with a slash before it."""
    found: list[str] = []
    for directory, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") or name == ".github"]
        here = "/" + os.path.relpath(directory, ROOT)
        found += [f"{here}/{name}".replace("/./", "/") for name in (*names, *below)]
    return tuple(found)


@functools.cache
def commands() -> dict[str, dict[str, click.Parameter]]:
    """The options of each command, by their names."""
    found: dict[str, dict[str, click.Parameter]] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        found[name] = {word: option for option in command.params for word in option.opts}
    return found


def is_file(word: str) -> bool:
    return any(path.endswith("/" + word.rstrip("/")) for path in files())


def are_options(words: list[str], of: Iterable[str]) -> bool:
    """Whether one of the commands has all the options among the words, and takes the values given for them."""
    return any(_are_options(words, commands()[name]) for name in of)


def _are_options(words: list[str], known: dict[str, click.Parameter]) -> bool:
    option = None
    for word in (word.strip("[]") for word in words):
        if OPTION.fullmatch(word.partition("=")[0]):
            option = known.get(word.partition("=")[0])
            if option is None:
                return False
        elif option is not None and isinstance(option.type, click.Choice) and word.islower():
            if not set(word.replace("\\", "").split("|")) <= set(option.type.choices):
                return False
            option = None
    return True


def exists(word: str) -> bool:
    """True also for what is no name of anything, but an example or a formula, by how it is written."""
    first, *others = word.split()
    if first == "snapfs" and others:
        return others[0] in commands() and are_options(others[1:], [others[0]])
    if first in commands() and any(map(OPTION.fullmatch, others)):
        return are_options(others, [first])
    if OPTION.fullmatch(first):
        return are_options([first, *others], commands())
    if others or "…" in word or PLACEHOLDER.fullmatch(word) or word.startswith(("/", ".")):
        return True
    if "/" in word or word.endswith((".py", ".md", ".toml")):
        return is_file(word)
    if not NAME.fullmatch(word):
        return True
    name = word.partition("(")[0]
    return name in NOT_OURS or symbols().has(name)


@pytest.mark.parametrize("name", NAMING)
def test_what_a_document_names_exists(name: str) -> None:
    words = dict.fromkeys(in_backticks((ROOT / name).read_text()))
    assert [word for word in words if not exists(word)] == []


def test_nothing_is_excused_that_no_document_names() -> None:
    named = {word for name in NAMING for word in in_backticks((ROOT / name).read_text())}
    assert named >= NOT_OURS


NO_SUCH_THINGS = (
    *("NoSuchClass", "LiveEngine.no_such_method", "layout.no_such_constant", "no_such_module", "_no_such_function()"),
    *("snapfs/no_such_file.py", "no_such_file.py", "snapfs no-such-command", "snapfs mount --no-such-option"),
    *("--no-such-option", "--cache no-such-value", "status --no-such-option", "snapfs status --store DIR"),
)


@pytest.mark.parametrize("word", NO_SUCH_THINGS)
def test_what_does_not_exist_is_found_out(word: str) -> None:
    assert not exists(word)


THINGS = ("LiveEngine.rest", "Counter.UNSEEN", "cow.live.engine", "servers.instance.Bell", "layout.HEADER", "room")


@pytest.mark.parametrize("word", THINGS)
def test_what_exists_is_found(word: str) -> None:
    assert exists(word)


DOCUMENTS = sorted(path[1:] for path in files() if path.endswith(".md"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_prose_is_wrapped(name: str) -> None:
    """Tables and examples keep their lines."""
    lines = [line for line in prose((ROOT / name).read_text()) if not line.startswith("|")]
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_of_an_example_begins_a_line(name: str) -> None:
    """Nobody has wrapped an example like prose."""
    assert [line for line in examples((ROOT / name).read_text()) if "$ " in line.removeprefix("$ ")] == []
