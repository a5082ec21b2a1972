"""What others named reaches a terminal or a log as one harmless line; the snapshot is no more open than the image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.log import configure_log
from snapfs.servers.pipe import failure_line, sentence_of
from snapfs.serving.permissions import Permission, narrowed
from snapfs.shown import shown


@pytest.mark.parametrize("odd", ["\x1b[31m", "a\nb", "a\rb", "\u202e", "\u2066", "\x85", "\u2028", "\udcff", "\x9b"])
def test_nothing_steers_the_terminal(odd: str) -> None:
    assert shown(odd).isprintable()


def test_plain_names_stay_as_they_are() -> None:
    assert shown("/srv/Größe 100 % [red].img") == "/srv/Größe 100 % [red].img"


@contextmanager
def log_of(path: Path) -> Iterator[None]:
    root = logging.getLogger()
    old, level = root.handlers[:], root.level
    try:
        configure_log(path, "snapfs")
        yield
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.stream.close()
    finally:
        root.handlers[:] = old
        root.setLevel(level)
        for ours in ("snapfs", "cow"):
            logging.getLogger(ours).setLevel(logging.NOTSET)


def test_a_name_writes_no_line_of_its_own_into_the_log(tmp_path: Path) -> None:
    with log_of(tmp_path / "log"):
        logging.getLogger("x").info("end of %s", "a\n2026 forged")
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_a_traceback_in_the_log_stays_readable_and_forges_nothing(tmp_path: Path) -> None:
    with log_of(tmp_path / "log"):
        try:
            raise RuntimeError("a\n2026 forged \x1b[31m")
        except RuntimeError:
            logging.getLogger("x").exception("it failed")
    first, *others = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("it failed")
    assert len(others) > 3
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_a_sentence_goes_through_a_pipe_as_one_line_and_comes_out_as_it_was() -> None:
    sentence = "a\nb\r\udcff \u2028"
    line = failure_line(sentence)
    assert line.splitlines(keepends=True) == [line]
    assert sentence_of(line) == sentence
    assert sentence_of(line[:-3]) == ""


@pytest.mark.parametrize(
    ("cut", "now", "mode"),
    [
        ((0o644, 1, 1), (0o600, 1, 1), 0o400),
        ((0o600, 1, 1), (0o666, 1, 1), 0o400),
        ((0o600, 1, 1), (0o644, 2, 1), 0o000),
        ((0o444, 1, 1), (0o440, 2, 2), 0o440),
        ((0o640, 1, 1), (0o640, 1, 2), 0o400),
    ],
)
def test_the_snapshot_is_no_more_open_than_then_or_now(
    cut: tuple[int, int, int], now: tuple[int, int, int], mode: int
) -> None:
    assert narrowed(Permission(*now), Permission(*cut)).mode == mode
