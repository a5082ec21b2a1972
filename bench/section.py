"""What the sections of the table have in common but for the first: rows that are wanted, peers that are asked for,
and what becomes of a figure that could not be taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from bench.peers.base import PeerError
from bench.results import Results
from bench.rows import Row
from bench.work import Sizes


class Section(ABC):
    """The rows `wanted` for the peers `names` (all when empty), all files in `folder`."""

    rows: ClassVar[tuple[Row, ...]]

    def __init__(
        self, folder: Path, sizes: Sizes, wanted: Container[str], names: Container[str], results: Results,
        console: Console,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.sizes = sizes
        self.wanted = {row.name for row in self.rows if row.name in wanted}
        self.names = names
        self.results = results
        self.console = console
        folder.mkdir()

    @abstractmethod
    def run(self) -> None: ...

    def is_asked(self, name: str) -> bool:
        return not self.names or name in self.names

    def attempt(self, round_no: int, name: str, what: str, work: Callable[[], None]) -> None:
        """One figure, or why there is none."""
        where = f"round {round_no + 1}, {name}: {what}"
        self.console.print(f"[dim]{where}[/dim]", highlight=False)
        try:
            work()
        except (OSError, RuntimeError, ValueError, PeerError) as error:
            self.results.voided.append(f"{where}: {error}")

    def keep(self, row: str, name: str, value: float) -> None:
        if row in self.wanted:
            self.results.values[row][name].append(value)
