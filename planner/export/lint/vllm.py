"""vLLM 0.33.0: `vllm/config/parallel.py`, `vllm/model_executor/layers/fused_moe/config.py`."""

from __future__ import annotations

from typing import Any, Final

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
from planner.export.lint.command import Command, Flags, Parsed, json_object, parsed

FLAGS: Final = Flags(
    values={
        "--tensor-parallel-size": "--tensor-parallel-size",
        "-tp": "--tensor-parallel-size",
        "--pipeline-parallel-size": "--pipeline-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "--data-parallel-size": "--data-parallel-size",
        "-dp": "--data-parallel-size",
        "--prefill-context-parallel-size": "--prefill-context-parallel-size",
        "-pcp": "--prefill-context-parallel-size",
        "--all2all-backend": "--all2all-backend",
        "--expert-placement-strategy": "--expert-placement-strategy",
        "--eplb-config": "--eplb-config",
        "--expert-placement-file": "--expert-placement-file",
        "--expert-parallel-size": "--expert-parallel-size",
        "--nnodes": "--nnodes",
        "--data-parallel-size-local": "--data-parallel-size-local",
        "--data-parallel-start-rank": "--data-parallel-start-rank",
        "--data-parallel-address": "--data-parallel-address",
        "--model": "--model",
    },
    switches={
        "--enable-expert-parallel": "--enable-expert-parallel",
        "-ep": "--enable-expert-parallel",
        "--enable-eplb": "--enable-eplb",
        "--headless": "--headless",
    },
    unread=frozenset(
        {"--data-parallel-rpc-port", "--master-addr", "--master-port", "--node-rank", "--distributed-executor-backend"}
    ),
)
_EPLB: Final = frozenset(
    {
        "window_size",
        "step_interval",
        "num_redundant_experts",
        "log_balancedness",
        "log_balancedness_interval",
        "use_async",
        "policy",
        "communicator",
        "enable_migration_batching",
    }
)
_OPEN: Final = {
    "initial_mapping_path": "41141",
    "disable_online_rebalancing": "41141",
    "expert_load_stats_path": "41141",
    "expert_load_stats_interval": "41141",
    "initial_expert_map_path": "49572",
    "expert_map_path": "53022",
}
_COMMUNICATORS: Final = frozenset({"torch_nccl", "torch_gloo", "torch_xccl", "nixl", "pynccl"})
_KERNELS: Final = {"deepep_high_throughput": "deepep-normal", "deepep_low_latency": "deepep-low-latency"}
_ROUND_ROBIN: Final = frozenset({"deepep_low_latency", "nixl_ep"})
_CONFIG: Final = "vllm/config/parallel.py at 0.33.0"


def lint(command: Command, about: About) -> tuple[Parsed, Grid]:
    """Everything that 0.33.0 would refuse, ignore or change."""
    found = parsed(command, FLAGS)
    grid = _grid(found)
    _unknown_here(found)
    check_gpus(found, grid, about, "--tensor-parallel-size")
    check_attention(found, grid, about, "--tensor-parallel-size")
    check_widths(found, grid, about, "--enable-expert-parallel" if grid.etp > 1 else "--tensor-parallel-size")
    redundant = _eplb(found, grid, about)
    _placement(found, grid, about, redundant)
    _all2all(found, grid, about)
    _data_parallel(found, grid)
    return found, grid


def _grid(found: Parsed) -> Grid:
    tp, pp = found.number("--tensor-parallel-size", 1), found.number("--pipeline-parallel-size", 1)
    dp, pcp = found.number("--data-parallel-size", 1), found.number("--prefill-context-parallel-size", 1)
    wide = tp * dp * pcp
    spread = bool(found.given.get("--enable-expert-parallel"))
    if spread and wide == 1:
        found.add("ignored", "--enable-expert-parallel", "one GPU per stage: there is nothing to spread experts over")
    return Grid(tp, pp, dp * pcp, wide if spread else 1, 1 if spread else wide)


def _unknown_here(found: Parsed) -> None:
    for flag, message, source in (
        ("--expert-parallel-size", "no such flag: the EP size is tp x dp, or 1", "vllm-project/vllm#28889, #52099"),
        ("--expert-placement-file", "no such flag in a release", "vllm-project/vllm#34811"),
    ):
        if flag in found.given:
            found.add("fatal", flag, message, source)


def _eplb(found: Parsed, grid: Grid, about: About) -> int:
    """The balancer; returns the redundant experts in force."""
    config = json_object(found, "--eplb-config")
    if config is None:
        return 0
    _known_keys(found, config, about)
    redundant = config.get("num_redundant_experts", 0)
    if type(redundant) is not int or redundant < 0:
        found.add("fatal", "--eplb-config", f"num_redundant_experts {redundant!r} is not a whole number from 0")
        return 0
    if not found.given.get("--enable-eplb"):
        if redundant:
            found.add("fatal", "--eplb-config", "num_redundant_experts without --enable-eplb is an error", _CONFIG)
        elif config:
            found.add("ignored", "--eplb-config", "without --enable-eplb nothing balances", _CONFIG)
        return 0
    if not found.given.get("--enable-expert-parallel"):
        found.add("fatal", "--enable-eplb", "needs --enable-expert-parallel", _CONFIG)
    elif grid.ep == 1:
        found.add("fatal", "--enable-eplb", "needs more than one GPU per stage", _CONFIG)
    check_slots(found, grid.ep, redundant, about, "--eplb-config", "vllm-project/vllm#52435, #30075")
    _policy(found, config)
    if about.topology is not None and grid.ep > 1 and not config.keys() & _OPEN.keys():
        _nodes(found, grid, about)
    return redundant


def _known_keys(found: Parsed, config: dict[str, Any], about: About) -> None:
    for key in config:
        request = _OPEN.get(key)
        if request is not None and request not in about.pull_requests:
            message = f"{key} is in no release: pull request {request}"
            found.add("fatal", "--eplb-config", message, f"vllm-project/vllm#{request}")
        elif request is None and key not in _EPLB:
            found.add("fatal", "--eplb-config", f"{key} is not known", _CONFIG)


def _policy(found: Parsed, config: dict[str, Any]) -> None:
    communicator = config.get("communicator")
    if communicator is not None and communicator not in _COMMUNICATORS:
        found.add("fatal", "--eplb-config", f"communicator {communicator!r} is not known", _CONFIG)
    if config.get("use_async", True) and communicator in ("torch_nccl", "pynccl"):
        message = f"use_async (the default) does not go with the communicator {communicator}"
        found.add("fatal", "--eplb-config", message, _CONFIG)
    if config.get("policy", "default") != "default":
        found.add("fatal", "--eplb-config", f"policy {config['policy']!r}: default is the only one", _CONFIG)


def _nodes(found: Parsed, grid: Grid, about: About) -> None:
    assert about.topology is not None
    nodes = min(about.topology.num_nodes, grid.ep)
    if grid.ep % nodes:
        message = f"{grid.ep} GPUs on {nodes} nodes do not divide: taken as one node, with a warning"
        found.add("coerced", "--enable-eplb", message, "vllm/distributed/eplb at 0.33.0")
        return
    hierarchical(found, "--enable-eplb", nodes, about)


def _placement(found: Parsed, grid: Grid, about: About, redundant: int) -> None:
    strategy = found.given.get("--expert-placement-strategy")
    flag = "--expert-placement-strategy"
    if strategy not in (None, "linear", "round_robin"):
        found.add("fatal", flag, f"{strategy!r}: linear or round_robin", _CONFIG)
    if strategy != "round_robin":
        return
    backend = found.given.get("--all2all-backend")
    reasons = []
    if grid.ep == 1:
        reasons.append("expert parallelism is off")
    if about.model is not None and about.model.moe.num_groups == 1:
        reasons.append("the model has one routing group")
    if redundant:
        reasons.append("there are redundant experts")
    if found.given.get("--enable-eplb"):
        reasons.append("EPLB is on")
    if grid.dp > 1 and backend not in _ROUND_ROBIN:
        reasons.append(f"the all-to-all backend is {backend or 'the default'}, not deepep_low_latency or nixl_ep")
    if reasons:
        message = f"falls back to linear with only a line in the log, because {'; '.join(reasons)}"
        found.add("coerced", flag, message, "vllm-project/vllm#41046; expert_map_manager.py at 0.33.0")


def _all2all(found: Parsed, grid: Grid, about: About) -> None:
    backend = found.given.get("--all2all-backend")
    if backend is None:
        return
    if grid.ep == 1 or grid.dp == 1:
        why = (
            "without expert parallelism"
            if grid.ep == 1
            else "without data parallelism: experts are joined by all-reduce"
        )
        found.add("ignored", "--all2all-backend", f"not used {why}", "fused_moe/config.py at 0.33.0")
    elif backend in _KERNELS:
        check_kernel(found, _KERNELS[backend], grid.ep, about, "--all2all-backend")


def _data_parallel(found: Parsed, grid: Grid) -> None:
    if found.given.get("--data-parallel-size-local") is None:
        if found.given.get("--headless") and grid.dp > 1:
            found.add("risk", "--headless", "without --data-parallel-size-local the node takes all replicas")
        return
    local = (
        int(found.given["--data-parallel-size-local"]) if found.given["--data-parallel-size-local"].isdecimal() else 0
    )
    start = found.number("--data-parallel-start-rank", 0) if found.given.get("--data-parallel-start-rank") != "0" else 0
    if start + local > grid.dp:
        message = f"replicas {start}..{start + local - 1}, but --data-parallel-size is {grid.dp}"
        found.add("fatal", "--data-parallel-start-rank", message)
    if local < grid.dp and found.given.get("--data-parallel-address") is None:
        found.add("fatal", "--data-parallel-address", "is missing: other nodes hold replicas, too")
