"""SGLang 0.5.23: `--tp-size` is the whole width of a stage; stages follow each other, in each ranks by number."""

from __future__ import annotations

from planner.errors import InputError, Place, Problem
from planner.export.fits import grid_problems, served_linearly
from planner.export.launch.nodes import check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions, address, joined
from planner.export.launch.shell import NodeCommand, script
from planner.export.layout import Layout

_MODES = {"deepep-normal": "normal", "deepep-low-latency": "low_latency"}


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The script; the placement comes with `--init-expert-location`."""
    problems = [*grid_problems(layout, "sglang", "plan"), *_kernel_problems(layout)]
    if problems:
        raise InputError(problems)
    shares = node_shares(layout, layout.ranks, "SGLang")
    check_equal(shares, "SGLang")
    hosts = options.need_hosts(len(shares))
    words = [*_grid(layout), *_balancing(layout, options)]
    env = {}
    if layout.split.pp > 1:
        env["SGLANG_PP_LAYER_PARTITION"] = joined([len(layers) for layers in layout.cuts])
    commands = []
    for number, share in enumerate(shares):
        argv = ["python3", "-m", "sglang.launch_server", "--model-path", options.given_model, *words]
        if len(shares) > 1:
            argv += ["--nnodes", f"{len(shares)}", "--node-rank", f"{number}"]
            argv += ["--dist-init-addr", address(hosts[0], options.port)]
        commands.append(NodeCommand({"CUDA_VISIBLE_DEVICES": joined(share.devices), **env}, tuple(argv)))
    about = [f"SGLang {version}: {summary(layout, shares)}"]
    if layout.split.ep > 1 and layout.kernel not in (*_MODES, "allgather-reducescatter"):
        about.append(f"The plan was priced with {layout.kernel}: no flag here chooses it, see --moe-a2a-backend.")
    return script(about, commands)


def _kernel_problems(layout: Layout) -> list[Problem]:
    split = layout.split
    if split.ep in (1, split.stage_gpus) or layout.kernel not in _MODES:
        return []
    message = f"with {layout.kernel} SGLang spreads experts over all {split.stage_gpus} GPUs of a stage, not {split.ep}"
    hint = "solve with engine: sglang, which knows this, or with another communication kernel"
    return [Problem(message, Place("plan", key="split.ep"), hint)]


def _grid(layout: Layout) -> list[str]:
    split = layout.split
    words = ["--tp-size", f"{split.stage_gpus}", "--pp-size", f"{split.pp}", "--ep-size", f"{split.ep}"]
    if split.edp > 1:
        words += ["--moe-dp-size", f"{split.edp}"]
    if split.dp > 1:
        words += ["--dp-size", f"{split.dp}", "--enable-dp-attention"]
    if split.ep > 1 and layout.kernel in _MODES:
        words += ["--moe-a2a-backend", "deepep", "--deepep-mode", _MODES[layout.kernel]]
    return words


def _balancing(layout: Layout, options: LaunchOptions) -> list[str]:
    if served_linearly(layout) or options.map_path is None:
        return []
    words = ["--init-expert-location", options.map_path]
    if layout.redundant_experts:
        words += ["--ep-num-redundant-experts", f"{layout.redundant_experts}", "--ep-dispatch-algorithm", "dynamic"]
    return words
