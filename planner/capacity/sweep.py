"""Solving over and over with one or two values varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from planner.capacity.case import Case
from planner.capacity.figures import Figures, figures_of
from planner.capacity.jobs import PlanJob, job_of, plan_all
from planner.capacity.redundancy import Copies
from planner.errors import UsageError
from planner.inputs.edits import Setting, edited, parse_path
from planner.inputs.strict_yaml import Key, key_text, parse_yaml
from planner.plan.plan import Plan
from planner.solve.diagnosis import Short
from planner.solve.watch import Watch

MOST_POINTS: Final = 400
REDUNDANT_EXPERTS: Final[Key] = ("solve", "redundant_experts")


@dataclass(frozen=True)
class Axis:
    """A path and the values that it takes."""

    key: Key
    values: tuple[Any, ...]

    @property
    def path(self) -> str:
        """The path as it is written."""
        return key_text(self.key)


@dataclass(frozen=True)
class Point:
    """One combination of values: its figures, or why it has none."""

    values: tuple[Any, ...]
    figures: Figures | None
    why_not: str = ""


@dataclass(frozen=True)
class Sweep:
    """All points, the last axis varying fastest."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]

    @property
    def redundancy(self) -> tuple[Copies, ...]:
        """The curve of redundant experts where they alone are varied, by rising number; else nothing.

        A curve is of one split with as many copies as were asked for: others differ in more than that.
        """
        if [axis.key for axis in self.axes] != [REDUNDANT_EXPERTS]:
            return ()
        planned = [point.figures for point in self.points if point.figures is not None]
        asked = [point.values[0] for point in self.points if point.figures is not None]
        if len({one.split for one in planned}) > 1 or [one.redundant_experts for one in planned] != asked:
            return ()
        found = [Copies(one.redundant_experts, one.step_s, one.max_over_mean, one.spare_kv_tokens) for one in planned]
        return tuple(sorted(dict.fromkeys(found), key=lambda one: one.redundant_experts))


def parse_axis(text: str) -> Axis:
    """Read `path=v1,v2,...`; raises `UsageError`."""
    path, equals, values = text.partition("=")
    data = parse_yaml(f"[{values}]", f"--sweep {text}").data if equals else []
    if not data or None in data:
        raise UsageError(f"--sweep {text}: expected path=v1,v2,...", hint="such as solve.redundant_experts=0,8,16")
    return Axis(parse_path(path), tuple(data))


def sweep(
    case: Case,
    settings: Sequence[Setting],
    axes: Sequence[Axis],
    output: Path,
    watch: Watch,
    *,
    lost_nodes: tuple[int, ...] = (),
    dask: str | None = None,
) -> Sweep:
    """Plan every combination of values, each as a full solve.

    Args:
        case: where to start.
        settings: what is set at every point.
        axes: one or two.
        output: where a plan would lie.
        watch: told of every point that is done.
        lost_nodes: nodes taken out of service at every point.
        dask: address of a Dask scheduler; default: the cores of this machine.

    Raises:
        UsageError: a path or a value is wrong, at whatever point.
    """
    combinations = list(product(*(axis.values for axis in axes)))
    if len(axes) > 2 or len(combinations) > MOST_POINTS:
        raise UsageError(f"{len(axes)} values over {len(combinations):,} points", hint=f"at most 2 and {MOST_POINTS}")
    jobs = [_job(case, settings, axes, values, output, lost_nodes) for values in combinations]
    answers = zip(combinations, plan_all(jobs, watch, dask), strict=True)
    return Sweep(tuple(axes), tuple(_point(values, answer) for values, answer in answers))


def _point(values: tuple[Any, ...], answer: Plan | Short) -> Point:
    return Point(values, None, answer.message) if isinstance(answer, Short) else Point(values, figures_of(answer))


def _job(
    case: Case,
    settings: Sequence[Setting],
    axes: Sequence[Axis],
    values: Sequence[Any],
    output: Path,
    lost_nodes: tuple[int, ...],
) -> PlanJob:
    varied = [Setting(f"{axis.path}={value}", axis.key, value) for axis, value in zip(axes, values, strict=True)]
    return job_of(edited(case.deployment, [*settings, *varied], lost_nodes), output)
