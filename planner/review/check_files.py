"""What `ep-plan check` looks at: plans are re-derived, deployments held against their checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.check import check
from planner.cost.prepare import from_plan
from planner.errors import PlannerError, UsageError
from planner.inputs.model_files import model_named
from planner.plan.plan import read_plan
from planner.review.check_deployment import check_deployment
from planner.review.map_doctor import About, Balance, examine


@dataclass(frozen=True)
class Checked:
    """One file and what was found in it."""

    path: Path
    kind: str
    findings: tuple[str, ...]
    error: PlannerError | None = None
    notes: tuple[str, ...] = ()
    """What else there is to say of a map."""
    balance: Balance | None = None
    """How a map balances on a trace."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings and self.error is None


def files_to_check(paths: Sequence[Path]) -> Iterator[Path]:
    """Plans and deployments among files and folders, folders searched for both; empty folders as they are."""
    for path in paths:
        if path.is_dir():
            found = sorted([*path.rglob("deployment.yaml"), *path.rglob("plan*.json")])
            yield from found or [path]
        else:
            yield path


def check_map(path: Path, name: str, about: About) -> Checked:
    """Examine anybody's map of experts; problems are returned, not raised."""
    try:
        found = examine(path, name, about)
    except PlannerError as error:
        return Checked(path, "map", (), error)
    return Checked(path, "map", found.findings, None, found.notes, found.balance)


def about_of(model: str | None, ep: int | None, plan: Path | None, traces: Sequence[Path]) -> About:
    """What is known beside a map; raises `PlannerError` for a plan or a model that cannot be read."""
    if plan is None:
        return About(None if model is None else model_named(model), ep, None, tuple(traces))
    if model is not None or ep is not None:
        raise UsageError("--plan says which model and how many ranks: leave out --model and --ep")
    read = read_plan(plan)
    return About(read.inputs.model, None, read, tuple(traces))


def check_file(path: Path, traces: Sequence[Path] | None = None) -> Checked:
    """Check one plan or deployment; problems are returned, not raised."""
    kind = "plan" if path.suffix == ".json" else "deployment"
    try:
        if path.is_dir():
            raise UsageError(f"{path}: holds neither a deployment.yaml nor a plan*.json")
        if kind == "plan":
            plan = read_plan(path)
            findings = check(plan, from_plan(plan, path, traces).instance)
            return Checked(path, kind, tuple(str(finding) for finding in findings))
        return Checked(path, kind, check_deployment(path))
    except PlannerError as error:
        return Checked(path, kind, (), error)
