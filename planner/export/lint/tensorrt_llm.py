"""TensorRT-LLM 1.3: `tensorrt_llm/mapping.py`, `tensorrt_llm/llmapi/llm_args.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from planner.errors import PlannerError
from planner.export.lint.arithmetic import About, Grid, check_attention, check_gpus, check_slots, check_widths
from planner.export.lint.command import Command, Flags, Parsed, parsed
from planner.export.write import read_map_file
from planner.inputs.strict_yaml import read_yaml

FLAGS: Final = Flags(
    values={
        "--tp-size": "--tp_size",
        "--pp-size": "--pp_size",
        "--ep-size": "--ep_size",
        "--config": "--config",
        "--extra-llm-api-options": "--config",
        "--gpus-per-node": "--gpus_per_node",
    },
    switches={},
    unread=frozenset({"--backend", "--host", "--port"}),
)
_MAPPING: Final = "tensorrt_llm/mapping.py at 1.3"
_IGNORED: Final = "NVIDIA/TensorRT-LLM#18626"
_BALANCED: Final = frozenset({"deepseek_v3", "mixtral", "llama4", "llama4_text", "qwen2_moe", "qwen3_moe"})


def lint(command: Command, about: About) -> tuple[Parsed, Grid]:
    """Everything that 1.3 would refuse, ignore or change."""
    found = parsed(command, FLAGS)
    read = _config(found)
    config = read or {}
    world = _degree(found, config, "--tp_size", "tensor_parallel_size", 1)
    pp = _degree(found, config, "--pp_size", "pipeline_parallel_size", 1)
    ep = _degree(found, config, "--ep_size", "moe_expert_parallel_size", 0)
    etp = _degree(found, config, "", "moe_tensor_parallel_size", 0)
    ep, etp = _experts(found, world, ep, etp)
    spread = config.get("enable_attention_dp") is True
    grid = Grid(1 if spread else world, pp, world if spread else 1, ep, etp)
    check_gpus(found, grid, about, "--tp_size")
    if read is not None:  # else attention may be data parallel
        check_attention(found, grid, about, "--tp_size")
        check_widths(found, grid, about, "--ep_size" if etp > 1 else "--tp_size")
    _balancer(found, config, grid, about)
    return found, grid


def _config(found: Parsed) -> dict[str, Any] | None:
    """The config; empty if none is given, None if it cannot be read here."""
    path = found.given.get("--config")
    if path is None:
        return {}
    if not Path(path).is_file():
        found.add("note", "--config", f"{path} is not here, and was not examined")
        return None
    try:
        data = read_yaml(Path(path)).data
    except PlannerError as error:
        found.add("fatal", "--config", error.problems[0].message)
        return None
    return data if isinstance(data, dict) else {}


def _degree(found: Parsed, config: dict[str, Any], flag: str, key: str, default: int) -> int:
    """A degree; the config counts more than the flag."""
    given = found.number(flag, default) if flag else default
    value = config.get(key)
    if value is None:
        return given
    if type(value) is not int or not 0 < value < 1 << 20:
        found.add("fatal", "--config", f"{key}: {value!r} is not a positive whole number")
        return given
    if flag and found.given.get(flag) is not None and value != given:
        found.add("ignored", flag, f"{given}, because the config says {key}: {value}")
    return value


def _experts(found: Parsed, world: int, ep: int, etp: int) -> tuple[int, int]:
    """moe_tp x moe_ep = tp; one of them follows from the other, and without both nothing is spread."""
    if not ep and not etp:
        return 1, world
    ep, etp = ep or world // etp, etp or world // ep
    if ep * etp != world:
        message = f"moe_tp {etp} x moe_ep {ep} = {ep * etp}, but tp is {world}"
        found.add("fatal", "--ep_size", message, _MAPPING)
        return 1, world
    return ep, etp


def _balancer(found: Parsed, config: dict[str, Any], grid: Grid, about: About) -> None:
    section = config.get("moe_config")
    balancer = section.get("load_balancer") if isinstance(section, dict) else None
    if balancer is None:
        check_slots(found, grid.ep, 0, about, "--ep_size", "up to 1.2; NVIDIA/TensorRT-LLM#13888 adds uneven ranks")
        return
    flag = "moe_config.load_balancer"
    reasons = []
    if grid.ep == 1:
        reasons.append("EP is 1")
    if config.get("enable_attention_dp") is not True:
        reasons.append("enable_attention_dp is not true")
    if about.model is not None and about.model.family not in _BALANCED:
        reasons.append(f"some versions know it only for other architectures than {about.model.family}")
    if reasons:
        found.add("ignored", flag, f"without a word, because {'; '.join(reasons)}", _IGNORED)
    _slots(found, balancer, grid, flag)


def _slots(found: Parsed, balancer: Any, grid: Grid, flag: str) -> None:
    slots = balancer.get("num_slots") if isinstance(balancer, dict) else None
    if isinstance(balancer, str):
        if not Path(balancer).is_file():
            found.add("note", flag, f"{balancer} is not here, and was not examined")
            return
        try:
            rows = read_map_file(Path(balancer), "tensorrt-llm").rows
        except PlannerError as error:
            found.add("fatal", flag, error.problems[0].message, "MoeLoadBalancerConfig at 1.3")
            return
        slots = len(next(iter(rows.values())).expert_P)
    if isinstance(slots, int) and slots % grid.ep:
        found.add(
            "fatal", flag, f"num_slots {slots} mod EP size {grid.ep} = {slots % grid.ep}", "MoeLoadBalancerConfig"
        )
