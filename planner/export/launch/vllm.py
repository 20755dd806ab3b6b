"""vLLM 0.33.0, and builds of it with an open pull request that loads maps; vllm-ascend 0.25.

Ranks of the world are numbered data-parallel rank by rank, in each stage by stage, in each tensor-parallel
rank by rank (`vllm/distributed/parallel_state.py`). Experts are spread over all GPUs of a stage or sharded
over them; there is no degree in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.errors import InputError, Place, Problem
from planner.export.fits import grid_problems, served_linearly
from planner.export.launch.nodes import NodeShare, check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions, joined
from planner.export.launch.shell import NodeCommand, script
from planner.export.layout import Layout

STOCK = "0.33.0"
_BACKENDS = {
    "deepep-normal": "deepep_high_throughput",
    "deepep-low-latency": "deepep_low_latency",
    "allgather-reducescatter": "allgather_reducescatter",
}
_MAP_KEYS: dict[str, dict[str, Any]] = {
    "pr-41141": {"disable_online_rebalancing": True},
    "pr-49572": {"step_interval": 10**9},
    "pr-53022": {},
}
_PATH_KEYS = {
    "pr-41141": "initial_mapping_path",
    "pr-49572": "initial_expert_map_path",
    "pr-53022": "expert_map_path",
}


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The script for vLLM."""
    return _script(layout, options, f"vLLM {version}", "CUDA_VISIBLE_DEVICES", _balancing(layout, options, version))


def write_ascend(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The script for vllm-ascend, whose map goes into its own configuration."""
    extra: list[str] = []
    if not served_linearly(layout):
        config = {"eplb_config": {"expert_map_path": options.map_path}}
        extra = ["--additional-config", json.dumps(config)]
    _refuse(layout, "vllm-ascend")
    return _script(layout, options, f"vllm-ascend {version}", "ASCEND_RT_VISIBLE_DEVICES", extra)


def _balancing(layout: Layout, options: LaunchOptions, version: str) -> list[str]:
    """Flags by which the placement becomes the plan's, and stays so."""
    _refuse(layout, "vllm")
    if served_linearly(layout):
        return ["--expert-placement-strategy", "linear"] if layout.split.ep > 1 else []
    if version == STOCK:
        message = "vLLM 0.33.0 loads no static placement, and this plan is not linear"
        hint = (
            "solve with target: checkpoint and serve the permuted weights, or run a build with a pull request "
            "(--engine-version pr-41141, pr-49572 or pr-53022, with --map)"
        )
        raise InputError(Problem(message, Place("plan", key="placement"), hint))
    if layout.split.pp > 1:
        message = f"{version} does not settle how pipeline stages count their layers"
        raise InputError(Problem(message, Place("plan", key="split.pp"), "solve with split: {pp: 1}"))
    loaded = {_PATH_KEYS[version]: options.map_path, **_MAP_KEYS[version]}
    config = {"num_redundant_experts": layout.redundant_experts, **loaded}
    return ["--enable-eplb", "--eplb-config", json.dumps(config)]


def _refuse(layout: Layout, engine: str) -> None:
    problems = list(grid_problems(layout, engine, "plan"))
    if problems:
        raise InputError(problems)


def _script(layout: Layout, options: LaunchOptions, engine: str, visible: str, extra: list[str]) -> str:
    split = layout.split
    order = [
        layout.gpus[stage][replica * split.tp + shard]
        for replica in range(split.dp)
        for stage in range(split.pp)
        for shard in range(split.tp)
    ]
    if split.dp > 1 and split.pp > 1:  # stages lie one after the other, so replicas cross them
        hint = "all stages of a data-parallel replica must lie together: solve with split: {pp: 1} or {dp: 1}"
        shares = node_shares(layout, order, "vLLM", hint)
    else:
        shares = node_shares(layout, order, "vLLM")
    hosts = options.need_hosts(len(shares))
    env = {}
    if split.pp > 1:
        env["VLLM_PP_LAYER_PARTITION"] = joined([len(layers) for layers in layout.cuts])
    common = [*_grid(layout, engine.split(maxsplit=1)[0]), *extra]
    about = [f"{engine}: {summary(layout, shares)}", *_kernel_note(layout, engine)]
    commands = []
    for number, place in enumerate(_places(layout, options, shares, hosts)):
        argv = ("vllm", "serve", options.given_model, *common, *place)
        devices = shares[number].devices
        commands.append(NodeCommand({visible: joined(devices), **env}, argv))
    return script(about, commands)


def _kernel_note(layout: Layout, engine: str) -> list[str]:
    """Where the plan was priced with a library that no flag here chooses, or with none."""
    if layout.split.ep == 1 or "ascend" in engine:
        return []
    if layout.split.dp == 1:
        return ["Without data parallelism an all-reduce joins experts; no library exchanges tokens."]
    if layout.kernel in _BACKENDS:
        return []
    return [f"The plan was priced with {layout.kernel}: no flag here chooses it, see --all2all-backend."]


def _grid(layout: Layout, engine: str) -> list[str]:
    split = layout.split
    words = ["--tensor-parallel-size", f"{split.tp}", "--pipeline-parallel-size", f"{split.pp}"]
    words += ["--data-parallel-size", f"{split.dp}"]
    if split.ep > 1:
        words.append("--enable-expert-parallel")
        if split.dp > 1 and layout.kernel in _BACKENDS and engine == "vLLM":
            words += ["--all2all-backend", _BACKENDS[layout.kernel]]
    return words


def _places(
    layout: Layout, options: LaunchOptions, shares: list[NodeShare], hosts: tuple[str, ...]
) -> Iterator[list[str]]:
    """For each node the words that say which part of the world it runs."""
    if len(shares) == 1:
        yield []
        return
    replica = layout.split.tp * layout.split.pp
    if layout.split.dp == 1:
        check_equal(shares, "vLLM over several nodes")
        for number in range(len(shares)):
            words = ["--distributed-executor-backend", "mp", "--nnodes", f"{len(shares)}", "--node-rank", f"{number}"]
            words += ["--master-addr", hosts[0], "--master-port", f"{options.port}"]
            yield [*words, *(["--headless"] if number else [])]
        return
    if any(len(share.ranks) % replica for share in shares):
        message = f"a data-parallel replica (tp x pp = {replica} GPUs) lies on several nodes"
        hint = "vLLM then needs Ray, which does not keep the plan's order of ranks; pin a smaller tp or pp"
        raise InputError(Problem(message, Place("plan", key="split"), hint))
    for number, share in enumerate(shares):
        words = ["--data-parallel-size-local", f"{len(share.ranks) // replica}"]
        words += ["--data-parallel-address", hosts[0], "--data-parallel-rpc-port", f"{options.port}"]
        if number:
            words += ["--data-parallel-start-rank", f"{share.ranks[0] // replica}", "--headless"]
        yield words
