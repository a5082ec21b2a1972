"""What commands take for a path."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from snapfs.cli import cli, exit_code_of
from snapfs.errors import ExitCode

CONTEXT = click.Context(cli)
PATHS = [
    pytest.param(command, parameter, id=f"{command.name}-{parameter.name}")
    for command in (cli.get_command(CONTEXT, name) for name in cli.list_commands(CONTEXT))
    if command is not None
    for parameter in command.params
    if isinstance(parameter.type, click.Path)
]


@pytest.mark.parametrize(("command", "parameter"), PATHS)
def test_an_empty_path_names_nothing(command: click.Command, parameter: click.Parameter) -> None:
    with pytest.raises(click.BadParameter, match="it is empty"):
        parameter.type.convert("", parameter, click.Context(command))


@pytest.mark.parametrize(
    "words",
    [("backup", "image", ""), ("browse", "image", ""), ("browse", "image", "name", "")],
    ids=["backup", "browse", "browse-name"],
)
def test_a_variable_that_is_not_set_is_not_the_working_directory(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = exit_code_of(lambda: cli.main([*words], standalone_mode=False))
    assert code == ExitCode.USAGE
    assert "it is empty; see" in capsys.readouterr().err
