"""What `ep-plan export` is asked for, and which part of the room answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import Problem, UsageError
from planner.export.checkpoint.rewrite import Work, prepare, rewrite
from planner.export.fits import served_linearly
from planner.export.launch.options import LaunchOptions
from planner.export.launch.write import write_launch
from planner.export.layout import Layout, layout_of
from planner.export.table import FORMATS, LAUNCHES, MAPS
from planner.export.write import Written, write_map
from planner.plan.plan import Plan


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    name: str
    output: Path | None
    version: str | None = None
    weights: Path | None = None
    router_only: bool = False
    dry_run: bool = False
    launch: LaunchOptions = field(default_factory=LaunchOptions)


def export(plan: Plan, plan_file: Path, request: Request) -> Written:
    """Write what is asked for.

    Raises:
        UsageError: an unknown format or version, or options that do not go together.
        InputError: the format cannot say what the plan needs, or the weights do not fit the plan.
        MissingEnvironmentError: it cannot be written.
    """
    _check_options(request)
    layout = layout_of(plan, plan_file)
    if request.name == "checkpoint":
        return _checkpoint(layout, plan_file, request)
    assert request.output is not None, "checked above"
    if request.name in MAPS:
        return write_map(layout, request.name, plan_file, request.output, request.version)
    version = write_launch(layout, request.name, request.launch, request.output, request.version)
    notes = tuple(_unused(layout, request.name, request.launch))
    return Written(request.output, request.name, version, _start(request.name, request.output), notes)


def _launch_options(launch: LaunchOptions) -> Iterator[tuple[str, bool, frozenset[str]]]:
    """Options of launches: whether each is given, and which launches read it."""
    scripts = frozenset(LAUNCHES) - {"slurm", "kubernetes"}
    engines = scripts - {"torchrun", "launch-megatron"}
    yield "--model", launch.model is not None, engines
    yield "--host", bool(launch.hosts), scripts
    yield "--map", launch.map_path is not None, engines
    yield "--image", launch.image is not None, frozenset({"kubernetes"})
    yield "--program", bool(launch.program), frozenset({"kubernetes"})
    yield "--port", launch.port != LaunchOptions.port, frozenset(LAUNCHES) - {"launch-tensorrt-llm"}


def _check_options(request: Request) -> None:
    """Options that would be ignored are refused."""
    if request.name not in FORMATS:
        raise UsageError(f"--to {request.name}: unknown format", hint=f"known: {', '.join(FORMATS)}")
    checkpoint = request.name == "checkpoint"
    if request.output is None and not request.dry_run:
        raise UsageError("-o PATH is needed")
    given = {
        "--weights": (request.weights is not None, checkpoint),
        "--router-only": (request.router_only, checkpoint),
        "--dry-run": (request.dry_run, checkpoint),
        "--engine-version": (request.version is not None, not checkpoint),
    }
    given |= {option: (one, request.name in readers) for option, one, readers in _launch_options(request.launch)}
    problems = [
        Problem(f"{option}: without meaning for --to {request.name}", None, "leave it out")
        for option, (is_given, has_meaning) in given.items()
        if is_given and not has_meaning
    ]
    if problems:
        raise UsageError.of(problems)
    if checkpoint and request.weights is None:
        raise UsageError("--weights DIR is needed: the folder of the original checkpoint")


def _unused(layout: Layout, name: str, launch: LaunchOptions) -> Iterator[str]:
    """Options that are given and that the launch of this plan has no use for."""
    if launch.map_path is not None and served_linearly(layout):
        yield "--map is not used: the placement is linear, as the engine makes it by itself"
    if len({layout.topology.node_G[gpu] for stage in layout.gpus for gpu in stage}) > 1 or name == "slurm":
        return
    if launch.hosts or launch.port != LaunchOptions.port:
        yield "--host and --port are not used: the plan runs on one node"


def _checkpoint(layout: Layout, plan_file: Path, request: Request) -> Written:
    assert request.weights is not None, "checked above"
    work = prepare(layout, plan_file, request.weights, router_only=request.router_only)
    notes = tuple(f"left out: {name} (other weights, or no file of the checkpoint)" for name in work.source.left_out)
    notes += (
        "equal router scores are told apart by position: where two experts tie in low precision, another may be chosen",
    )
    if request.dry_run:
        return Written(None, "checkpoint", "", "nothing was written", notes, _facts(work))
    assert request.output is not None, "checked above"
    done = rewrite(work, request.output)
    facts = {**_facts(work), "files": dict(done.sha256)}
    load = f"{request.output} as the model, with linear placement and no redundant experts"
    if request.router_only:
        load = f"the routers of {request.output}, by a loader that permutes the experts itself"
    return Written(request.output, "checkpoint", "", load, notes, facts)


def _facts(work: Work) -> dict[str, Any]:
    return {
        "renamed": work.renamed,
        "reordered": work.reordered,
        "tensors": len(work.written),
        "experts": {layer: list(row) for layer, row in work.progress.experts.items()},
    }


def _start(name: str, output: Path) -> str:
    if name == "kubernetes":
        return f"kubectl apply -f {output}"
    if name == "slurm":
        return f"sbatch {output} PROGRAM ARGUMENTS"
    once = " once, on the first host" if name == "launch-tensorrt-llm" else ""
    return f"bash {output}{once or ', on every node with its number'}"
