"""The options that say which of a series stay."""

from __future__ import annotations

from typing import Any

import click

from snapfs.retention import RULES, Keep

_HELP = {
    "last": "Keep the last N.",
    "hourly": "Keep the newest of each of the last N hours that have one.",
    "daily": "The same of days,",
    "weekly": "of weeks, from Monday on,",
    "monthly": "of months,",
    "yearly": "and of years.",
}


def _keep_option(command: Any, rule: str) -> Any:
    return click.option(f"--keep-{rule}", type=int, metavar="N", help=_HELP[rule])(command)


def keep_last_option(command: Any) -> Any:
    """--keep-last, as `keep_last`."""
    return _keep_option(command, "last")


def keep_options(command: Any) -> Any:
    """All of them, each as `keep_RULE`; `keep_of` makes one of what they give."""
    for rule in reversed(RULES):
        command = _keep_option(command, rule)
    return command


def match_option(command: Any) -> Any:
    """--match, as `match`."""
    text = "Only those with such names, such as 'hourly-*': no other is deleted, or counts."
    return click.option("--match", metavar="PATTERN", help=text)(command)


def keep_of(options: dict[str, int | None]) -> Keep | None:
    """By the keep_RULE of `options`; None when none was given."""
    counts = {name.removeprefix("keep_"): count for name, count in options.items()}
    return None if all(count is None for count in counts.values()) else Keep(**counts)
