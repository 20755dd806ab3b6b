"""Rules of splits as the table that people draw by hand: value, what it must fit, verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from planner.plan.plan import CandidateRecord, RuleRecord
from planner.report.style import plain_table


def render_rejected(rejected: Sequence[tuple[str, CandidateRecord]], console: Console) -> None:
    """Every broken rule of the splits that were rejected, by the name that the report gives them."""
    table = plain_table("rejected", "rule", "value", "must be", "verdict")
    for name, candidate in rejected:
        for number, rule in enumerate(candidate.rules):
            table.add_row("" if number else name, *_row(rule))
    _folded(table.columns)
    console.print(table)


def render_rules(candidate: CandidateRecord, console: Console) -> None:
    """Every rule of a split with its verdict and where it comes from."""
    table = plain_table("rules of this split", "value", "must be", "verdict", "from")
    for rule in candidate.rules:
        table.add_row(*_row(rule), Text(rule.source, overflow="fold"))
    _folded(table.columns)
    console.print(table)
    console.print()


def _row(rule: RuleRecord) -> tuple[str, str, str, Text]:
    mark = Text("✓ ", "green") if rule.holds else Text("✗ ", "red")
    return rule.rule, rule.value, rule.limit, mark + Text(rule.detail, "default", overflow="fold")


def _folded(columns: Sequence[object]) -> None:
    for column in columns:
        column.no_wrap, column.overflow = False, "fold"  # type: ignore[attr-defined]
