"""Man pages and completions, made from the very commands: `python -m snapfs.cli.manual DIR`.

Source: man(7) of groff and mandoc; the shell completion of click.

Rules:
- A page has what `--help` says, in the same words; there is no other text of an option or an exit code.
- The same bytes each time: the date is that of SOURCE_DATE_EPOCH, where it is set.
- Completion asks the command itself, as click does it for bash, zsh and fish: what it offers is then what the
  installed version takes, also the values of an option, and none of the three has a list of its own.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from snapfs import __version__
from snapfs.cli import cli
from snapfs.cli.mount_helper import mount_helper_command, umount_helper_command

SECTION: Final = 8
# With what marks a word, a line of the source has less than 80.
_MAX_COLUMNS: Final = 60
_COMPLETE_VARIABLE: Final = "_SNAPFS_COMPLETE"
# Where each shell looks, below share/.
_COMPLETIONS: Final[dict[str, type[ShellComplete]]] = {
    "bash-completion/completions/snapfs": BashComplete,
    "zsh/vendor-completions/_snapfs": ZshComplete,
    "fish/vendor_completions.d/snapfs.fish": FishComplete,
}
_EXIT: Final = re.compile(r"(?:^|(?<=\. ))Exit codes?[ :]")
# An option, or a word that stands for something: DIR, LIVE|SNAP, STORE/log.
_OPTION: Final = re.compile(r"--?[a-zA-Z][\w-]*")
_METAVAR: Final = re.compile(r"[A-Z][A-Z|:/@.,-]*[A-Z|/.]|[A-Z]")


def pages() -> dict[str, str]:
    """The text of every page by the name of its file."""
    context = _context_of(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    found = {"snapfs": _page("snapfs", "snapfs", cli, context, _commands(context))}
    general = _exit_codes(cli)
    for name, command in commands.items():
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        found[f"snapfs-{name}"] = _page(f"snapfs-{name}", f"snapfs {name}", command, below, general=general)
    for helper in (mount_helper_command, umount_helper_command):
        assert helper.name is not None
        found[helper.name] = _page(helper.name, helper.name, helper, _context_of(helper))
    return {f"{name}.{SECTION}": text for name, text in found.items()}


def _context_of(command: click.Command) -> click.Context:
    return click.Context(command, info_name=command.name, **command.context_settings)


def completions() -> dict[str, str]:
    """The text of every completion by its path below share/."""
    # The class of bash would look which bash this is; the completion is for another machine's.
    return {
        path: ShellComplete.source(shell(cli, {}, "snapfs", _COMPLETE_VARIABLE)).strip() + "\n"
        for path, shell in _COMPLETIONS.items()
    }


def write_all(share: Path) -> None:
    """All of them, where they belong below share/."""
    texts = {f"man/man{SECTION}/{name}": text for name, text in pages().items()} | completions()
    for name, text in texts.items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(text)


# --- a page ---------------------------------------------------------------------------------------------------


def _page(
    title: str,
    program: str,
    command: click.Command,
    context: click.Context,
    more: Iterable[str] = (),
    general: Iterable[str] = (),
) -> str:
    short = command.get_short_help_str(1000).rstrip(".")
    lines = [
        f'.TH "{title.upper()}" {SECTION} "{_date()}" "snapfs {__version__}" "System Administration"',
        *(".SH NAME", f"{_escaped(title)} \\- {_escaped(short)}"),
        *(".SH SYNOPSIS", f".B {_escaped(program)}", _marked(" ".join(command.collect_usage_pieces(context)))),
        *(".SH DESCRIPTION", *_paragraphs(_described(command))),
        *more,
        *(".SH OPTIONS", *_options(command, context)),
        *(".SH EXIT STATUS", *_paragraphs([*_exit_codes(command), *general])),
        *(".SH SEE ALSO", *_see_also(title)),
    ]
    return "\n".join(lines) + "\n"


def _date() -> str:
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _texts(command: click.Command) -> list[str]:
    """The paragraphs of its help, each in one line."""
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def _described(command: click.Command) -> list[str]:
    return [text for text in (_EXIT.split(text)[0].strip() for text in _texts(command)) if text]


def _exit_codes(command: click.Command) -> list[str]:
    found = [(text, _EXIT.search(text)) for text in _texts(command)]
    return [text[match.start() :] for text, match in found if match]


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield ".PP"
        yield _marked(text)


def _commands(context: click.Context) -> Iterator[str]:
    yield ".SH COMMANDS"
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield ".TP"
        yield f"\\fBsnapfs\\-{_escaped(name)}\\fR({SECTION})"
        yield _marked(command.get_short_help_str(1000))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield ".TP"
            yield _marked(record[0])
            yield _marked(" ".join(record[1].split()))


def _see_also(title: str) -> Iterator[str]:
    others = ["snapfs", "snapfs-mount", "mount.fuse.snapfs", "umount.fuse.snapfs", "snapfs-umount"]
    yield ",\n".join(f"\\fB{_escaped(name)}\\fR({SECTION})" for name in others if name != title)


def _marked(text: str) -> str:
    """A text of a page: options bold, words that stand for something in italics."""
    lines = textwrap.wrap(text, _MAX_COLUMNS, break_long_words=False, break_on_hyphens=False)
    return "\n".join(_line(" ".join(map(_marked_word, line.split(" ")))) for line in lines)


def _marked_word(word: str) -> str:
    core = word.strip("[](),.;:") if word not in ("...", "[]") else word
    for pattern, font in ((_OPTION, "B"), (_METAVAR, "I")):
        # As a whole word only: I is somebody, and A. the end of a sentence.
        if core and pattern.fullmatch(core) and (len(core) > 1 or core == word):
            before, _, after = word.partition(core)
            return f"{_escaped(before)}\\f{font}{_escaped(core)}\\fR{_escaped(after)}"
    return _escaped(word)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")


def _line(text: str) -> str:
    """It does not begin as a request does."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
