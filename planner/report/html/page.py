"""`ep-plan show PLAN --html`: the report as one file that opens anywhere and asks for nothing.

The page holds no script, and its policy forbids scripts, frames and every request. All text is escaped by
the template engine; only charts, which `drawing.py` writes, go in as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from planner.inputs.units import format_count, format_percent, format_seconds
from planner.plan.plan import Plan
from planner.report import plan_texts as texts
from planner.report.html import grids, sections
from planner.report.html.drawing import drawn
from planner.report.html.sections import Section
from planner.review.unbooked import Unbooked


@dataclass(frozen=True)
class Figure:
    """A figure at the head of the page."""

    value: str
    name: str
    beside: str


def html_report(plan: Plan, found: Unbooked | str) -> str:
    """The whole page.

    Args:
        plan: the plan.
        found: what its file does not book, or why that is not known.
    """
    here = resources.files(__package__)
    # No undefined name prints as nothing, and every text is escaped.
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = engine.from_string((here / "report.html.j2").read_text(encoding="utf-8"))
    title, work = texts.headline(plan)
    parts = list(_sections(plan, found))
    return template.render(
        style=Markup((here / "report.css").read_text(encoding="utf-8")),  # noqa: S704  # a file of this package
        title=title,
        work=work,
        plan=plan,
        figures=list(_figures(plan)),
        verdict=list(texts.verdict(plan)),
        sections=[(part, [_svg(part, number) for number in range(len(part.charts))]) for part in parts],
        percent=lambda part: format_percent(part, 0),
    )


def _svg(part: Section, number: int) -> Markup:
    chart = part.charts[number]
    return Markup(drawn(chart.specification, f"{part.key}{number}", chart.label))  # noqa: S704  # escaped by ElementTree


def _sections(plan: Plan, found: Unbooked | str) -> Iterator[Section]:
    yield from sections.of_plan(plan)
    yield sections.balance(plan)
    others = (grids.load(plan, found), grids.traffic(plan, found), sections.copies(plan))
    yield from (part for part in others if part is not None)
    yield sections.search(plan)


def _figures(plan: Plan) -> Iterator[Figure]:
    """What a reader asks first."""
    predicted, linear_s = plan.predicted, plan.baselines["linear"].step_s
    faster = linear_s / predicted.step_s
    beside = f"linear layout {format_seconds(linear_s)}, {faster:.2f} x" if faster > 1.0005 else "as the linear layout"
    yield Figure(format_seconds(predicted.step_s), "per step", beside)
    per_gpu = format_count(predicted.tokens_per_s / plan.inputs.gpus)
    yield Figure(format_count(predicted.tokens_per_s), "tokens/s", f"{per_gpu} per GPU, predicted")
    gap = "proved optimal" if plan.solver.status == "optimal" else f"bound {format_seconds(plan.solver.bound_s)}"
    yield Figure(format_percent(plan.solver.gap, 2), "from the best possible, at most", gap)
    if plan.held_out is not None:
        held = plan.held_out.imbalance
        yield Figure(f"{held['plan']:.3f}", "max/mean on unseen windows", f"linear layout {held['linear']:.3f}")
