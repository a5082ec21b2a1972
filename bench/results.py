"""The figures of a run: kept per row and peer, one per round, and written as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.image import run
from bench.rows import ROWS, Goal, Row, goal_ratio

Figures = dict[str, dict[str, list[float]]]


def figures() -> Figures:
    return defaultdict(lambda: defaultdict(list))


@dataclass(frozen=True)
class Peak:
    """When a peer's servers had most memory, and how many bytes each of them had."""

    where: str
    parts: dict[str, int]


@dataclass
class Results:
    """`values` and `cpu_seconds_per_gib`: row, peer, then one figure per round. `voided`: why figures are missing."""

    taken_at: str
    rounds: int
    quick: bool
    values: Figures = field(default_factory=figures)
    cpu_seconds_per_gib: Figures = field(default_factory=figures)
    peak_parts: dict[str, Peak] = field(default_factory=dict)
    voided: list[str] = field(default_factory=list)

    def median(self, row: str, peer: str | None) -> float | None:
        return median(self.values, row, peer)

    def median_cpu(self, row: str, peer: str) -> float | None:
        return median(self.cpu_seconds_per_gib, row, peer)

    def judged(self, row: Row) -> list[tuple[Goal, float, bool]]:
        """Each goal of a row that both sides were measured for, what was reached, and whether it is enough."""
        ours = self.median(row.name, "snapfs")
        if ours is None:
            return []
        judged = []
        for goal in row.goals:
            theirs = self.median(row.name, goal.peer)
            if goal.at_most is not None or theirs is not None:
                judged.append((goal, *goal_ratio(row, goal, ours, theirs)))
        return judged

    def measured_rows(self) -> list[Row]:
        return [row for row in ROWS if self.values.get(row.name)]

    def as_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "taken_at": self.taken_at,
            "rounds": self.rounds,
            "quick": self.quick,
            "machine": machine(),
            "rows": {row.name: self.row_as_json(row) for row in self.measured_rows()},
            "memory_peaks": {peer: asdict(peak) for peer, peak in self.peak_parts.items()},
            "voided": self.voided,
        }

    def row_as_json(self, row: Row) -> dict[str, Any]:
        return {
            "unit": row.unit,
            "work": row.work,
            "peers": {
                peer: {
                    "median": self.median(row.name, peer),
                    "values": values,
                    "cpu_seconds_per_gib": self.median_cpu(row.name, peer),
                }
                for peer, values in self.values[row.name].items()
            },
            "goals": [
                {"peer": goal.peer, "factor": goal.factor, "above": goal.above, "at_most": goal.at_most,
                 "reached": reached, "met": met}
                for goal, reached, met in self.judged(row)
            ],
        }  # fmt: skip

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")


def median(kept: Figures, row: str, peer: str | None) -> float | None:
    values = kept.get(row, {}).get(peer or "")
    return statistics.median(values) if values else None


def machine() -> dict[str, Any]:
    """What the figures depend on besides the programs."""
    cpu = next((line.split(":")[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory_kib = next(int(line.split()[1]) for line in lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "libfuse": run("pkg-config", "--modversion", "fuse3").strip(),
        "qemu": run("qemu-img", "--version").splitlines()[0],
        "fio": run("fio", "--version").strip(),
    }


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
