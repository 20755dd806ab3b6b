"""TensorRT-LLM 1.3: `trtllm-serve` with a config; tensor-parallel ranks fastest, then stages.

Several nodes need MPI: the script is started once, on the first host, and mpirun numbers ranks host by host.
"""

from __future__ import annotations

import json

from planner.errors import InputError, Place, Problem
from planner.export.fits import grid_problems, served_linearly
from planner.export.launch.nodes import check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions, joined
from planner.export.launch.shell import NodeCommand, Raw, script
from planner.export.layout import Layout
from planner.rules.cuts import even_layers

_END = "EP_PLAN_CONFIG"


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The script, with its config inside."""
    problems = list(grid_problems(layout, "tensorrt-llm", "plan"))
    problems += _stage_problems(layout)
    if problems:
        raise InputError(problems)
    shares = node_shares(layout, layout.ranks, "TensorRT-LLM")
    check_equal(shares, "TensorRT-LLM")
    if len({share.devices for share in shares}) > 1:
        message = "the nodes use different GPUs, and one config holds for all"
        raise InputError(Problem(message, Place("plan", key="stages"), "solve with the same GPUs on every node"))
    hosts = options.need_hosts(len(shares))
    split, local = layout.split, len(shares[0].ranks)
    argv = ["trtllm-serve", options.given_model, "--tp_size", f"{split.stage_gpus}", "--pp_size", f"{split.pp}"]
    argv += ["--ep_size", f"{split.ep}", "--gpus_per_node", f"{local}", "--config", Raw('"$config"')]
    if len(shares) > 1:
        slots = ",".join(f"{host}:{local}" for host in hosts)
        run = ["mpirun", "-np", f"{layout.num_gpus}", "--host", slots, "--map-by", "slot"]
        argv = [*run, "-x", "CUDA_VISIBLE_DEVICES", "trtllm-llmapi-launch", *argv]
    env = {"CUDA_VISIBLE_DEVICES": joined(shares[0].devices)}
    return script(
        [
            f"TensorRT-LLM {version}: {summary(layout, shares)}",
            "Run it once, on the first host; with several hosts the working folder must be shared.",
        ],
        [NodeCommand(env, tuple(argv), tuple(_config(layout, options)))],
    )


def _config(layout: Layout, options: LaunchOptions) -> list[str]:
    """Lines that write the config; JSON strings are YAML, so every name is quoted."""
    split = layout.split
    values = {
        "enable_attention_dp": split.dp > 1,
        "moe_tensor_parallel_size": split.etp,
        "moe_expert_parallel_size": split.ep,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    if not served_linearly(layout):
        if split.dp == 1:
            message = "the placement is not linear, and without data-parallel attention the balancer is ignored"
            hint = "pin dp, or solve with target: checkpoint (NVIDIA/TensorRT-LLM#18626)"
            raise InputError(Problem(message, Place("plan", key="split.dp"), hint))
        lines += ["moe_config:", f"  load_balancer: {json.dumps(options.map_path)}"]
    return ['config="$PWD/ep-plan.trtllm.yaml"', f"cat > \"$config\" <<'{_END}'", *lines, _END]


def _stage_problems(layout: Layout) -> list[Problem]:
    """Layers are cut evenly, longer stages first; nothing else can be said."""
    even = list(even_layers(layout.model.num_layers, layout.split.pp))
    own = [len(cut) for cut in layout.cuts]
    if own == even:
        return []
    message = f"stages of {own} layers, but TensorRT-LLM cuts {even}"
    return [Problem(message, Place("plan", key="stages"), "its config has no key for other cuts")]
