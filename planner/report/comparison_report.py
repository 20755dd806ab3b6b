"""The report of `ep-plan compare`: every placement on the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from planner.inputs.units import format_number_of, format_seconds
from planner.report.style import plain_table, shortened
from planner.review.compare import Comparison

_WINDOWS_SHOWN = 12
_COLUMNS = ("step", "max/mean", "balancedness", "utilisation", "imbalance-ratio", "twice")
_WIDE = 84
"""Columns of a terminal that hold all of them; narrower ones hold the first three."""
_FIRST = 3


def render_comparison(comparisons: Sequence[Comparison], console: Console, *, verbose: bool = False) -> None:
    """Print one table per plan, and one with the windows."""
    for comparison in comparisons:
        console.print(Text(f"{comparison.path}: {comparison.split}", "bold"))
        console.print(f"[dim]{comparison.how}; load-driven baselines made from {comparison.baselines_from}[/dim]")
        _scores(comparison, console)
        _windows(comparison, console, verbose)
        console.print()
    console.print(
        "[dim]max/mean: PAR of vllm-ascend; balancedness: vLLM, sum of means / sum of maxima; utilisation: SGLang, "
        "mean of mean/max; imbalance-ratio: TensorRT-LLM, mean of max/mean - 1; "
        "twice: rank-layer pairs that hold an expert twice[/dim]"
    )


def _scores(comparison: Comparison, console: Console) -> None:
    columns = _COLUMNS if console.width >= _WIDE else _COLUMNS[:_FIRST]
    table = plain_table("placement", *columns, right=range(1, len(columns) + 1))
    table.columns[0].no_wrap = True
    for score in comparison.scores:
        cells = (
            format_seconds(score.step_s),
            f"{score.par:.4f}",
            f"{score.balancedness:.4f}",
            f"{score.utilisation:.4f}",
            f"{score.imbalance_ratio:.4f}",
            str(score.duplicates),
        )
        style = "green" if score.name == "plan" else None
        table.add_row(score.name, *cells[: len(columns)], style=style)
    console.print(table)
    if len(columns) < len(_COLUMNS):
        console.print(f"[dim]{_WIDE} columns or --json also show: {', '.join(_COLUMNS[_FIRST:])}[/dim]")


def _windows(comparison: Comparison, console: Console, verbose: bool) -> None:
    names = [score.name for score in comparison.scores]
    headings = ["max/mean by window", *names]
    if console.width < _WIDE:
        headings = [heading.replace("_", "_\n").replace(" by", "\nby") for heading in headings]
    table = plain_table(*headings, right=range(1, len(headings)))
    table.columns[0].no_wrap = True
    count = len(comparison.windows)
    shown = range(count) if verbose or count <= _WINDOWS_SHOWN else range(0, count, -(-count // _WINDOWS_SHOWN))
    for window in shown:
        values = [score.imbalance_S[window] for score in comparison.scores]
        table.add_row(shortened(comparison.windows[window], 40), *(f"{value:.3f}" for value in values))
    console.print(table)
    if len(shown) < count:
        console.print(f"[dim]{len(shown)} of {format_number_of(count, 'window')} shown (-v)[/dim]")


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The same as plain data."""
    return {"schema": "ep-plan/comparison/1", "plans": [asdict(comparison) for comparison in comparisons]}
