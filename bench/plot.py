"""One picture of a run: every row as a line, every peer as a dot relative to snapfs, further right is better."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.results import Results
from bench.rows import COLUMNS, SNAPFS, Row

COLOURS = {
    "snapfs": "#111111", "qemu": "#d1495b", "xfs": "#2a78b5", "btrfs": "#66a182",
    "pyfuse3": "#b18fcf", "libfuse": "#edae49", "raw": "#9a9a9a",
    "dd": "#7f4f24", "partclone": "#3d9a9b", "unreleased": "#c77dba",
    "one": "#6b705c", "newest": "#cb997e", "borg": "#386641", "restic": "#9d4edd",
}  # fmt: skip


def write_plot(results: Results, path: Path) -> None:
    """Nothing is drawn when snapfs itself was not measured: there is nothing to be relative to."""
    rows = [row for row in results.measured_rows() if results.median(row.name, SNAPFS)]
    if not rows:
        return
    figure = Figure(figsize=(10, 1.5 + 0.33 * len(rows)), dpi=130)
    axes = figure.subplots()
    for line, row in enumerate(rows):
        draw_row(axes, results, row, line)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.set_xlabel("against snapfs in the same run: left of the line worse, right of it better (logarithmic)")
    axes.axvline(1, color=COLOURS[SNAPFS], linewidth=1)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    legend(axes, results)
    figure.savefig(path, bbox_inches="tight")


def draw_row(axes: Axes, results: Results, row: Row, line: int) -> None:
    ours = results.median(row.name, SNAPFS)
    for peer in COLUMNS:
        theirs = results.median(row.name, peer)
        if ours and theirs:
            better = ours / theirs if row.less_is_better else theirs / ours
            axes.plot(better, line, "|" if peer == SNAPFS else "o", color=COLOURS[peer], markersize=7, zorder=3)
    axes.text(1.01, line, label(ours, row.unit), transform=axes.get_yaxis_transform(), fontsize=8, va="center")


def label(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.{0 if value >= 10 else 2}f} {unit}"


def legend(axes: Axes, results: Results) -> None:
    shown = [peer for peer in COLUMNS if any(results.median(row.name, peer) for row in results.measured_rows())]
    marks = [Line2D([], [], color=COLOURS[peer], marker="o", linestyle="", label=peer) for peer in shown]
    columns = -(-len(marks) // (1 + (len(marks) > 7)))
    axes.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    axes.text(1.01, 1.01, "snapfs", transform=axes.transAxes, fontsize=8, fontweight="bold")
