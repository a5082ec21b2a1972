"""What a command prints: its result on stdout, for people or as JSON; what else it has to say on stderr.

Rules:
- One JSON object a command, with the version of its shape; `snapfs/output.schema.json` describes all of them, and
  what they have in common has the same names in each.
- `--quiet` is about what people read: an object that was asked for is printed all the same.
- What people read is escaped (`snapfs.shown`): a name can neither steer the terminal nor write a line of its own.
- Nobody who reads the output is no error (exit code 141); an output that cannot be written is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from snapfs.errors import SnapfsError
from snapfs.shown import shown

if TYPE_CHECKING:
    from snapfs.imager.manifest import Manifest

OUTPUT_VERSION: Final = 1


def json_option(command: Any) -> Any:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="For programs; the keys are stable.")(command)


def quiet_option(command: Any) -> Any:
    """-q, as `quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")(command)


def output_options(command: Any) -> Any:
    """--json and -q, for a command that calls `show`."""
    return json_option(quiet_option(command))


def show(result: Mapping[str, Any], *lines: str, as_json: bool, quiet: bool) -> None:
    """Print the result of a command, as it was asked for: an object, or lines of text."""
    if as_json:
        put(json.dumps({"version": OUTPUT_VERSION, **result}))
    elif not quiet:
        put_lines(lines)


def sizes(manifest: Manifest) -> dict[str, Any]:
    """What is told of every backup that was made, verified or restored; in bytes."""
    return {
        "format": manifest.format,
        "image_bytes": manifest.image_bytes,
        "data_bytes": manifest.data_bytes,
        "unread_bytes": manifest.unread.total_bytes,
    }


def put_lines(lines: Iterable[str]) -> None:
    """Print lines for people on stdout, each as one line whatever is in it."""
    put("\n".join(map(shown, lines)))


def put(text: str) -> None:
    """Print `text`, for programs, and a line's end on stdout; SnapfsError when it cannot be written."""
    with writing():
        click.echo(text)


@contextmanager
def writing() -> Iterator[None]:
    """Around whatever writes to stdout: SnapfsError when it cannot be written."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SnapfsError(
            f"The standard output cannot be written: {error.strerror}; have it lead somewhere with room."
        ) from error


def note(sentence: str) -> None:
    """Something that people should know, on stderr."""
    with suppress(OSError):  # who cannot be told of it is not kept from what works
        click.echo(f"snapfs: {shown(sentence)}", err=True)
