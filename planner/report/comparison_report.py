"""The report of `ep-plan compare`: every placement on the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from planner.inputs.units import format_seconds
from planner.report.style import plain_table, shortened
from planner.review.compare import Comparison

_WINDOWS_SHOWN = 12


def render_comparison(comparisons: Sequence[Comparison], console: Console, *, verbose: bool = False) -> None:
    """Print one table per plan, and one with the windows."""
    for comparison in comparisons:
        console.print(Text(f"{comparison.path}: {comparison.split}", "bold"))
        console.print(f"[dim]{comparison.how}; load-driven baselines made from {comparison.baselines_from}[/dim]")
        table = plain_table(
            "placement",
            "step",
            "max/mean",
            "balancedness",
            "utilisation",
            "imbalance-ratio",
            "twice",
            right=range(1, 7),
        )
        for score in comparison.scores:
            table.add_row(
                Text(score.name, no_wrap=True),
                format_seconds(score.step_s),
                f"{score.par:.4f}",
                f"{score.balancedness:.4f}",
                f"{score.utilisation:.4f}",
                f"{score.imbalance_ratio:.4f}",
                str(score.duplicates),
                style="green" if score.name == "plan" else None,
            )
        console.print(table)
        _windows(comparison, console, verbose)
        console.print()
    console.print(
        "[dim]max/mean: PAR of vllm-ascend; balancedness: vLLM, sum of means / sum of maxima; utilisation: SGLang, "
        "mean of mean/max;\nimbalance-ratio: TensorRT-LLM, mean of max/mean - 1; "
        "twice: rank-layer pairs that hold an expert twice[/dim]"
    )


def _windows(comparison: Comparison, console: Console, verbose: bool) -> None:
    names = [score.name for score in comparison.scores]
    table = plain_table("max/mean by window", *names, right=range(1, len(names) + 1))
    count = len(comparison.windows)
    shown = range(count) if verbose or count <= _WINDOWS_SHOWN else range(0, count, -(-count // _WINDOWS_SHOWN))
    for window in shown:
        values = [score.imbalance_S[window] for score in comparison.scores]
        table.add_row(shortened(comparison.windows[window], 40), *(f"{value:.3f}" for value in values))
    console.print(table)
    if len(shown) < count:
        console.print(f"[dim]{len(shown)} of {count} windows shown (-v)[/dim]")


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The same as plain data."""
    return {"schema": "ep-plan/comparison/1", "plans": [asdict(comparison) for comparison in comparisons]}
