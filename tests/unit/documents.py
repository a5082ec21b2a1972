"""The documents as tests read them: their tables, and the words in `backticks` outside of examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Table:
    """`lead` is the last line of text before it; `rows` are what is below the names of its columns."""

    section: str
    lead: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def prose(text: str) -> Iterator[str]:
    """Its lines, without those of fenced blocks."""
    return (line for is_fenced, line in _lines(text) if not is_fenced)


def examples(text: str) -> Iterator[str]:
    """The lines of its fenced blocks."""
    return (line for is_fenced, line in _lines(text) if is_fenced)


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    is_fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        else:
            yield is_fenced, line


def tables(text: str) -> list[Table]:
    """In order."""
    found: list[Table] = []
    section = lead = ""
    block: list[tuple[str, ...]] = []
    for line in (*prose(text), ""):
        if line.startswith("|"):
            block.append(_cells(line))
            continue
        if block:
            found.append(Table(section, lead, block[0], tuple(block[2:])))
            block = []
        if line.startswith("#"):
            section = line.lstrip("#").strip()
        lead = line.strip() or lead
    return found


def _cells(line: str) -> tuple[str, ...]:
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return tuple(cell.strip().replace("\\|", "|") for cell in cells)


def in_backticks(text: str) -> list[str]:
    """What stands in backticks, also across the end of a line."""
    return [" ".join(word.split()) for word in re.findall(r"`([^`]+)`", "\n".join(prose(text)))]
