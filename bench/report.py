"""The tables: medians and ratios of every row, and what the servers spent."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.results import Results
from bench.rows import COLUMNS, Goal, Row


def print_report(results: Results, console: Console) -> None:
    measured = results.measured_rows()
    peers = [peer for peer in COLUMNS if any(results.values[row.name].get(peer) for row in measured)]
    console.print(value_table(results, measured, peers))
    console.print(goal_table(results, measured))
    if any(results.median_cpu(row.name, peer) is not None for row in measured for peer in peers):
        console.print(cpu_table(results, measured, peers))
    for line in results.voided:
        console.print(f"[red]{line}[/red]", highlight=False)


def value_table(results: Results, rows: list[Row], peers: list[str]) -> Table:
    table = new_table(f"Medians of {results.rounds} round{'s' if results.rounds > 1 else ''}")
    table.add_column("row", no_wrap=True)
    table.add_column("unit")
    for peer in peers:
        table.add_column(peer, justify="right", no_wrap=True)
    for row in rows:
        cells = [shown(results.median(row.name, peer)) for peer in peers]
        table.add_row(row.name, row.unit, *cells)
    return table


def goal_table(results: Results, rows: list[Row]) -> Table:
    table = new_table("snapfs against its goals")
    for column in ("row", "reached", "asked", "met"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        for goal, reached, met in results.judged(row):
            verdict = "[green]yes[/green]" if met else "[red]no[/red]"
            table.add_row(row.name, *goal_shown(row, goal, reached), verdict)
    return table


def goal_shown(row: Row, goal: Goal, reached: float) -> tuple[str, str]:
    """What was reached, and what is asked."""
    bound = "≤" if row.less_is_better else "≥"
    if goal.at_most is not None:
        return f"{shown(reached * goal.at_most)} {row.unit}", f"≤ {goal.at_most:g} {row.unit}"
    if goal.above:
        return f"{goal.peer} {reached:+.0f} {row.unit}", f"≤ {goal.above:+g} {row.unit}"
    return f"{reached:.2f} × {goal.peer}", f"{bound} {goal.factor:g} ×"


def new_table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", box=None, header_style="bold")


def cpu_table(results: Results, rows: list[Row], peers: list[str]) -> Table:
    """Only what has server processes; the kernel's own work is not to be told apart."""
    spending = [peer for peer in peers if any(results.median_cpu(row.name, peer) is not None for row in rows)]
    table = new_table("CPU seconds of the servers per GiB")
    table.add_column("row", no_wrap=True)
    for peer in spending:
        table.add_column(peer, justify="right")
    for row in rows:
        cells = [results.median_cpu(row.name, peer) for peer in spending]
        if any(cell is not None for cell in cells):
            table.add_row(row.name, *(shown(cell) for cell in cells))
    return table


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
