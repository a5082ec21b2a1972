"""Parameter types that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import click

from snapfs.errors import UsageError
from snapfs.options import Compress, parse_size

# What timers are asked for in milliseconds has to fit into 32 bits, and nobody waits longer than a day.
MIN_S: Final = 0.001
MAX_S: Final = 86400


class NamedPath(click.Path):
    """A path that names something: an empty one, such as a variable that is not set, is not the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


class Size(click.ParamType[int]):
    """A size with K, M, G or T (powers of 1024); a wrong one is a UsageError with the way out."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


class Rate(Size):
    """A size a second, at least one byte."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        rate = super().convert(value, param, ctx)
        if rate < 1:
            raise UsageError(f"A rate of {value} would never come to an end; give a size a second, such as 50M.")
        return rate


class Seconds(click.ParamType[float]):
    """A time from a millisecond to a day."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not MIN_S <= seconds <= MAX_S:
            raise UsageError(f"A time of {value} is not possible; give seconds, from {MIN_S} to {MAX_S}.")
        return seconds


class Mode(click.ParamType[int]):
    """Permissions in octal, as chmod takes them."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            raise UsageError(f"{value!r} is no mode; give three octal digits, such as 640.")
        return mode


def one_of(choices: Any) -> click.Choice[str]:
    """The words of a Literal of `options`."""
    return click.Choice(get_args(choices))


def snapshot_option(command: Any) -> Any:
    """--snapshot, for a command that reads a snapshot."""
    text = "Which one, by its name or id (snapfs list); the newest by default."
    return click.option("--snapshot", default=None, metavar="NAME", help=text)(command)


def compress_option(command: Any) -> Any:
    """--compress, for a `CommandWithCompress`."""
    text = "Compress a qcow2, which takes about ten times as long; zstd: the stream, if DEST is -."
    return click.option("--compress", type=one_of(Compress), default=None, metavar="[zstd]", help=text)(command)


class CommandWithCompress(click.Command):
    """One whose --compress need have no value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        kinds = get_args(Compress)
        return super().parse_args(ctx, list(with_value(args, "--compress", kinds[0], kinds.__contains__)))


def with_value(args: list[str], option: str, value: str, is_value: Callable[[str], bool]) -> Iterator[str]:
    """The command line with `value` for each `option` that has none: click would take whatever comes behind it."""
    end = args.index("--") if "--" in args else len(args)
    for place, word in enumerate(args):
        has_none = word == option and place < end and not any(map(is_value, args[place + 1 : place + 2]))
        yield f"{word}={value}" if has_none else word


def at_option(command: Any) -> Any:
    """--at, for a command that reads a directory of backups."""
    text = "Of DIR: the newest backup that is not after this time, or the one of this name."
    return click.option("--at", default=None, metavar="TIME|NAME", help=text)(command)


def mode_option(command: Any) -> Any:
    """--mode, for a command that writes files."""
    text = "Permissions of what is written; as private as what is read by default."
    return click.option("--mode", type=Mode(), default=None, metavar="MODE", help=text)(command)


SIZE = Size()
RATE = Rate()
SECONDS = Seconds()
# Whether the path can be used is the command's to say: it knows the reason and the way out.
PATH: click.Path = NamedPath(readable=False, path_type=Path)
READABLE_PATH: click.Path = NamedPath(path_type=Path)
# A path or an address.
ADDRESS: click.Path = NamedPath()
