"""What `ep-plan check` looks at: plans are re-derived, deployments held against their checks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from planner.errors import PlannerError, UsageError
from planner.inputs.model_files import model_named
from planner.plan.plan_file import read_plan
from planner.review.check_deployment import check_deployment
from planner.review.check_plan import check_plan
from planner.review.checked import Checked
from planner.review.golden import NAME, golden_beside
from planner.review.map_doctor import About, examine
from planner.solve.watch import NoWatch, Watch


def files_to_check(paths: Sequence[Path], *, update: bool = False) -> Iterator[Path]:
    """Plans and deployments among files and folders, folders searched for both; empty folders as they are.

    Golden plans are made of deployments: to `update` them, folders are searched for these alone.

    Hidden folders are left out, and golden plans beside a deployment, with which they are compared.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted([*path.rglob("deployment.yaml"), *path.rglob("plan*.json"), *path.rglob(f"*.{NAME}")])
        seen = [one for one in found if not any(part.startswith(".") for part in one.relative_to(path).parts)]
        owned = {golden_beside(one) for one in seen if one.suffix == ".yaml"}
        others = [one for one in seen if one not in owned and not (update and one.suffix == ".json")]
        yield from others or [path]


def check_map(path: Path, name: str, about: About) -> Checked:
    """Examine anybody's map of experts; problems are returned, not raised."""
    try:
        found = examine(path, name, about)
    except PlannerError as error:
        return Checked(path, "map", error=error)
    told = "nothing is wrong with the map"
    return Checked(path, "map", found.findings, notes=found.notes, balance=found.balance, summary=told)


def about_of(model: str | None, ep: int | None, plan: Path | None, traces: Sequence[Path]) -> About:
    """What is known beside a map; raises `PlannerError` for a plan or a model that cannot be read."""
    if plan is None:
        return About(None if model is None else model_named(model), ep, None, tuple(traces))
    if model is not None or ep is not None:
        raise UsageError("--plan says which model and how many ranks: leave out --model and --ep")
    read = read_plan(plan)
    return About(read.inputs.model, None, read, tuple(traces))


def check_file(
    path: Path, traces: Sequence[Path] | None = None, watch: Watch | None = None, *, update: bool = False
) -> Checked:
    """Check one plan or deployment; problems are returned, not raised.

    Args:
        path: the file.
        traces: recorded routing that counts instead of the one it names.
        watch: who looks on while a deployment is solved.
        update: renew the golden plan of a deployment.
    """
    started = time.monotonic()
    kind = "plan" if path.suffix == ".json" else "deployment"
    try:
        if path.is_dir():
            raise UsageError(f"{path}: holds neither a deployment.yaml nor a plan*.json")
        if kind == "plan":
            if update:
                hint = "name the deployment beside it, or the folder"
                raise UsageError(f"{path}: --update makes golden plans of deployments", hint=hint)
            found = check_plan(path, traces)
        else:
            named = tuple(map(str, traces or ()))
            found = check_deployment(path, named, watch or NoWatch(), update=update)
    except PlannerError as error:
        found = Checked(path, kind, error=error)
    return replace(found, seconds=time.monotonic() - started)
