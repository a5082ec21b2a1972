"""The man pages say what `--help` says, and are such; the completions offer what the commands take."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from snapfs.cli import cli
from snapfs.cli.manual import completions, pages
from snapfs.cli.mount_helper import mount_helper_command, umount_helper_command
from tests.machine import SNAPFS

PAGES = pages()
# From "  -o, --option VALUE" to the next one.
OPTION = re.compile(r"^  -.*\n(?:   .*\n)*", re.MULTILINE)


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    for name, text in PAGES.items():
        (directory / name).write_text(text)
    return directory


def plain(text: str) -> str:
    """Words alone: where a line ends is each program's own choice, and so is what is bold."""
    return " ".join(re.sub(r".\x08", "", text).split())


def rendered(page: Path) -> str:
    return plain(subprocess.run(["mandoc", "-T", "ascii", page], capture_output=True, text=True, check=True).stdout)


def help_of(page: str) -> str:
    name = page.rpartition(".")[0]
    for helper in (mount_helper_command, umount_helper_command):
        if helper.name == name:
            return helper.get_help(click.Context(helper, info_name=name, **helper.context_settings))
    root = click.Context(cli, info_name="snapfs", **cli.context_settings)
    if name == "snapfs":
        return cli.get_help(root)
    command = cli.get_command(root, name.removeprefix("snapfs-"))
    assert command is not None
    return command.get_help(click.Context(command, info_name=command.name, parent=root))


def test_each_command_has_a_page() -> None:
    names = {f"snapfs-{name}.8" for name in cli.list_commands(click.Context(cli))}
    assert set(PAGES) == names | {"snapfs.8", "mount.fuse.snapfs.8", "umount.fuse.snapfs.8"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_and_exit_code_of_the_help_is_in_the_page(man: Path, page: str) -> None:
    text, shown = help_of(page), rendered(man / page)
    options = [plain(option) for option in OPTION.findall(text.partition("\nOptions:\n")[2] + "\n")]
    assert any("--help" in option for option in options)
    codes = [plain(paragraph) for paragraph in re.findall(r"Exit codes?[ :](?:.+\n)+", text)]
    assert codes or "Exit code" not in text
    assert [words for words in (*options, *codes) if words not in shown] == []


def test_no_page_has_anything_that_mandoc_warns_of(man: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", *man.iterdir()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pages_are_the_same_bytes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in pages()["snapfs.8"]
    assert pages() == pages()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("snapfs um", "umount"), ("snapfs mount --prot", "--protect"), ("snapfs mount --protect us", "used")],
)
def test_bash_completes_commands_options_and_values(tmp_path: Path, line: str, expected: str) -> None:
    script = tmp_path / "snapfs"
    script.write_text(completions()["bash-completion/completions/snapfs"])
    ask = 'source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _snapfs_completion snapfs'
    ask += '; echo "${COMPREPLY[*]}"'
    environment = os.environ | {"PATH": f"{SNAPFS.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", ask, "bash", script, line], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [expected]


def test_each_shell_has_a_completion(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "snapfs.cli.manual", tmp_path], check=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"man/man8/{name}" for name in PAGES} | set(completions())
