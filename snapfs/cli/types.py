"""Parameter types that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from snapfs.options import parse_size


class Size(click.ParamType[int]):
    """A size with K, M, G or T (powers of 1024); a wrong one is a UsageError with the way out."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


SIZE = Size()
# Whether the path can be used is the command's to say: it knows the reason and the way out.
PATH: click.Path = click.Path(readable=False, path_type=Path)
