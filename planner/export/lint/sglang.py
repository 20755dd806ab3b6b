"""SGLang 0.5.23: `python/sglang/srt/arg_groups`, `eplb/expert_location.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from planner.errors import PlannerError
from planner.export.lint.arithmetic import (
    About,
    Grid,
    check_attention,
    check_gpus,
    check_kernel,
    check_slots,
    check_widths,
    hierarchical,
)
from planner.export.lint.command import Command, Flags, Parsed, parsed
from planner.export.write import read_map_file

FLAGS: Final = Flags(
    values={
        "--tp-size": "--tp-size",
        "--tp": "--tp-size",
        "--tensor-parallel-size": "--tp-size",
        "--pp-size": "--pp-size",
        "--pp": "--pp-size",
        "--pipeline-parallel-size": "--pp-size",
        "--dp-size": "--dp-size",
        "--dp": "--dp-size",
        "--data-parallel-size": "--dp-size",
        "--ep-size": "--ep-size",
        "--ep": "--ep-size",
        "--expert-parallel-size": "--ep-size",
        "--moe-dp-size": "--moe-dp-size",
        "--moe-a2a-backend": "--moe-a2a-backend",
        "--deepep-mode": "--deepep-mode",
        "--init-expert-location": "--init-expert-location",
        "--ep-num-redundant-experts": "--ep-num-redundant-experts",
        "--ep-dispatch-algorithm": "--ep-dispatch-algorithm",
        "--eplb-algorithm": "--eplb-algorithm",
        "--nnodes": "--nnodes",
        "--node-rank": "--node-rank",
        "--dist-init-addr": "--dist-init-addr",
        "--expert-distribution-recorder-mode": "--expert-distribution-recorder-mode",
    },
    switches={
        "--enable-dp-attention": "--enable-dp-attention",
        "--enable-eplb": "--enable-eplb",
    },
    unread=frozenset({"--model-path", "--model", "--host", "--port", "--trust-remote-code"}),
)
_LIKE_DEEPEP: Final = frozenset({"deepep", "mooncake"})
_DISPATCH: Final = frozenset({"static", "dynamic", "fake", "lp"})
_ARGUMENTS: Final = "python/sglang/srt/arg_groups/parallel_hook.py at 0.5.23"
_WIDEST_TOP_K: Final = 8


def lint(command: Command, about: About) -> tuple[Parsed, Grid]:
    """Everything that 0.5.23 would refuse, ignore or change."""
    found = parsed(command, FLAGS)
    grid = _grid(found)
    check_gpus(found, grid, about, "--tp-size")
    check_attention(found, grid, about, "--dp-size" if grid.dp > 1 else "--tp-size")
    check_widths(found, grid, about, "--ep-size" if grid.etp > 1 else "--tp-size")
    redundant = _copies(found, grid, about)
    _location(found, redundant, about)
    _balancer(found, grid, about)
    backend = found.given.get("--moe-a2a-backend")
    if backend == "deepep" and grid.ep > 1:
        modes = {"normal": ["deepep-normal"], "low_latency": ["deepep-low-latency"]}
        for kernel in modes.get(found.given.get("--deepep-mode", ""), ["deepep-normal", "deepep-low-latency"]):
            check_kernel(found, kernel, grid.ep, about, "--moe-a2a-backend")
    mode = found.given.get("--expert-distribution-recorder-mode")
    if mode == "per_token" and about.model is not None and about.model.moe.top_k > _WIDEST_TOP_K:
        message = f"records {_WIDEST_TOP_K} experts per token, the model chooses {about.model.moe.top_k}"
        found.add("fatal", "--expert-distribution-recorder-mode", message, "eplb/expert_distribution.py at 0.5.23")
    return found, grid


def _grid(found: Parsed) -> Grid:
    world, pp = found.number("--tp-size", 1), found.number("--pp-size", 1)
    dp, ep, edp = found.number("--dp-size", 1), found.number("--ep-size", 1), found.number("--moe-dp-size", 1)
    if found.given.get("--moe-a2a-backend") in _LIKE_DEEPEP and ep != world:
        if found.given.get("--ep-size") is not None:
            message = f"{ep} becomes {world}: an all-to-all backend spreads experts over all GPUs of a stage"
            found.add("coerced", "--ep-size", message, "sgl-project/sglang#26692")
        ep = world
    if ep * edp > world or (ep > 1 and edp > 1 and ep * edp != world):
        message = f"ep {ep} x moe_dp {edp} must be {'all' if edp > 1 else 'at most'} {world} GPUs of a stage"
        found.add("fatal", "--ep-size", message, _ARGUMENTS)
        ep, edp = 1, 1
    elif world % (ep * edp):
        found.add("fatal", "--ep-size", f"tp {world} mod ep {ep} x moe_dp {edp} = {world % (ep * edp)}", _ARGUMENTS)
        ep, edp = 1, 1
    etp = world // (ep * edp)
    if not found.given.get("--enable-dp-attention"):
        if dp > 1:
            message = f"without --enable-dp-attention these are {dp} servers of {world} GPUs each, not one grid"
            found.add("coerced", "--dp-size", message, "docs of data parallelism at 0.5.23")
        return Grid(world, pp, dp, ep, etp, edp)
    if world % dp:
        found.add("fatal", "--dp-size", f"tp {world} mod dp {dp} = {world % dp}", _ARGUMENTS)
        return Grid(world, pp, 1, ep, etp, edp)
    if dp == 1:
        found.add("ignored", "--enable-dp-attention", "dp is 1: attention is tensor parallel", _ARGUMENTS)
    return Grid(world // dp, pp, dp, ep, etp, edp)


def _copies(found: Parsed, grid: Grid, about: About) -> int:
    text = found.given.get("--ep-num-redundant-experts")
    redundant = 0 if text in (None, "0") else found.number("--ep-num-redundant-experts", 0)
    algorithm, backend = found.given.get("--ep-dispatch-algorithm"), found.given.get("--moe-a2a-backend", "none")
    if redundant and grid.ep == 1:
        found.add("ignored", "--ep-num-redundant-experts", "ep is 1: there are no copies")
        return 0
    if algorithm is not None and algorithm not in _DISPATCH:
        found.add("fatal", "--ep-dispatch-algorithm", f"{algorithm!r}: {', '.join(sorted(_DISPATCH))}", _ARGUMENTS)
    if algorithm in ("static", "lp") and backend == "none":
        found.add("fatal", "--ep-dispatch-algorithm", f"{algorithm} needs an all-to-all backend", _ARGUMENTS)
    if redundant and backend == "none":
        message = "copies without an all-to-all backend gave wrong answers, and no error, before this was mended"
        found.add("risk", "--ep-num-redundant-experts", message, "sgl-project/sglang#32962")
    if redundant or found.given.get("--init-expert-location") or found.given.get("--enable-eplb"):
        check_slots(found, grid.ep, redundant, about, "--ep-num-redundant-experts", "eplb/expert_location.py at 0.5.23")
    return redundant


def _location(found: Parsed, redundant: int, about: About) -> None:
    """The map that is loaded at the start, where it can be read here."""
    path = found.given.get("--init-expert-location")
    if path in (None, "trivial") or not str(path).endswith(".json"):
        return
    flag = "--init-expert-location"
    if not Path(path).is_file():
        found.add("note", flag, f"{path} is not here, and was not examined")
        return
    try:
        rows = read_map_file(Path(path), "sglang").rows
    except PlannerError as error:
        found.add("fatal", flag, error.problems[0].message, "eplb/expert_location.py at 0.5.23")
        return
    if about.model is None:
        return
    slots, expected = {len(row.expert_P) for row in rows.values()}, about.model.moe.num_experts + redundant
    if slots != {expected}:
        message = f"rows of {sorted(slots)} slots, but experts and redundant experts are {expected}"
        found.add("fatal", flag, message, "eplb/expert_location.py at 0.5.23")
    if len(rows) != about.model.num_layers:
        message = f"{len(rows)} rows, but the model has {about.model.num_layers} layers, dense ones counted"
        found.add("fatal", flag, message, "eplb/expert_location.py at 0.5.23")


def _balancer(found: Parsed, grid: Grid, about: About) -> None:
    if not found.given.get("--enable-eplb"):
        return
    nodes = found.number("--nnodes", 1)
    if grid.ep % nodes:
        found.add(
            "fatal", "--enable-eplb", f"EP size {grid.ep} mod {nodes} nodes: a bare assert", "sgl-project/sglang#8253"
        )
    elif found.given.get("--eplb-algorithm") in (None, "auto"):
        hierarchical(found, "--enable-eplb", nodes, about)
