"""The command line: one module a command for parsing and printing; what is done is in `snapfs.commands`.

Rule: what only some commands need is imported by these alone, where they need it. A command that only asks the server
would else spend most of its time on loading what mounts and draws.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

import click

from snapfs import __version__
from snapfs.cli.output import note
from snapfs.errors import ExitCode, SnapfsError, shortage

_DEBUG_VARIABLE = "SNAPFS_DEBUG"
# Each is NAME_command in a module of its name.
_COMMANDS = (
    "backup",
    "backups",
    "browse",
    "changes",
    "check",
    "delete",
    "diff",
    "export",
    "join",
    "limit",
    "list",
    "map",
    "metrics",
    "mount",
    "prune",
    "release",
    "restore",
    "revert",
    "snapshot",
    "status",
    "umount",
    "verify",
)


class _Commands(click.Group):
    """Loads a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        # The module of that name, once it is loaded, has the place of the built-in here.
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"snapfs.cli.{cmd_name}"), f"{cmd_name}_command")
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="snapfs")
def cli() -> None:
    """A live and a frozen view of one disk image.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the snapshot, store or backup is overflowed, lost or damaged,
    4 done but for what is named, 130 interrupted, 141 nobody reads the output any more.
    """


def main() -> None:
    """Run a command; errors are one sentence on stderr, and an exit code."""
    sys.exit(exit_code_of(lambda: cli.main(standalone_mode=False)))


def exit_code_of(run: Callable[[], object]) -> int:
    """Of a click command that `run` calls: what it returns, or of its error, which is told in one sentence."""
    try:
        code = run()
    except SnapfsError as error:
        note(error.sentence)
        return error.exit_code
    except click.UsageError as error:
        note(_usage_sentence(error))
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except SystemExit as end:
        # Nobody here ends so, but click does, with 1, when the output is a pipe that nobody reads any more.
        if isinstance(end.code, int) and end.code != 1:
            return end.code
        return ExitCode.BROKEN_PIPE
    except BrokenPipeError:
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        note(shortage(error) or _system_sentence(error))
        return ExitCode.FAILED
    except Exception as error:
        if (sentence := shortage(error)) is not None:
            note(sentence)
            return ExitCode.FAILED
        if os.environ.get(_DEBUG_VARIABLE):
            raise
        what = f"{type(error).__name__}: {error}"
        note(f"internal error ({what}); please report it, with what {_DEBUG_VARIABLE}=1 shows.")
        return ExitCode.FAILED
    return code if isinstance(code, int) else ExitCode.DONE


def _system_sentence(error: OSError) -> str:
    """Of what no command has given an account of its own."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except OSError:
            return "The working directory does not exist any more; change to another one, or name absolute paths."
    name = error.filename
    named = os.fsdecode(name) if name and isinstance(name, (str, bytes)) else "the system"
    return f"{named}: {error.strerror}."


def _usage_sentence(error: click.UsageError) -> str:
    """What is wrong with the command line and where to read how it is meant."""
    reason = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if error.ctx else "snapfs"
    return f"{reason}; see {command} --help."
