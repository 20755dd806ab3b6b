"""Tiny random models of every family that can be permuted, built and run by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import transformers

from planner.cost.prepare import from_deployment
from planner.inputs.deployment import load_deployment
from planner.plan.plan import Plan
from planner.plan.plan_file import plan_text
from planner.record import Recorder
from planner.solve.request import plan_inputs, search_space
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": 24,
    "tie_word_embeddings": False,
}
_GROUPED: Final[dict[str, Any]] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
_LATENT: Final[dict[str, Any]] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
RANKS: Final = {"glm4_moe": 2, "deepseek_v2": 8, "deepseek_v3": 8}
"""EP ranks where not 4: with 4 groups, ranks of two groups and two ranks of a group."""
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    "olmoe": {"num_experts": 16, "num_experts_per_tok": 4},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 8},
    "deepseek_v2": _GROUPED | _LATENT | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": _GROUPED | _LATENT,
    "glm4_moe": _GROUPED | {"head_dim": 8},
}


def build(family: str, folder: Path) -> None:
    """Save a random model in several files; correction biases are random, too: they decide about experts."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(family, **{**_SMALL, **FAMILIES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(0, 1)
    model.save_pretrained(folder, max_shard_size="40KB")


def load(folder: Path) -> Any:
    """The model of a folder, as transformers reads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def inputs() -> Any:
    """Random tokens, 4 sequences of 48."""
    return torch.randint(3, 97, (4, 48), generator=torch.Generator().manual_seed(3))


def run(model: Any, trace: Path) -> Any:
    """Logits on the inputs; routing goes to a trace."""
    ids = inputs()
    with Recorder(model) as recorder, torch.no_grad():
        logits = model(input_ids=ids).logits
        recorder.add(torch.ones_like(ids))
    recorder.save(trace)
    return logits


DEPLOYMENT: Final = """\
schema: ep-plan/deployment/1
model: {model}
topology: topology.yaml
traces: [trace.npz]
precision: {{weights: fp32}}
workload: {{phase: prefill, tokens_per_gpu: 16, context_length: 48}}
solve: {{target: checkpoint, split: {{tp: 1, pp: 1, ep: {ep}, etp: 1}}, gap: 0%}}
"""
TOPOLOGY: Final = """\
schema: ep-plan/topology/1
gpu: {{memory: 8 GiB, hbm_bandwidth: 100 GB/s, compute: {{fp32: 0.001 TFLOP/s, bf16: 0.001 TFLOP/s}}}}
nodes: 1
gpus_per_node: {ep}
links: [{{level: node, bandwidth: 1 GB/s, latency: 3 us}}]
"""


def planned(folder: Path, weights: Path, ep: int) -> tuple[Plan, Path]:
    """A plan for a permuted checkpoint from the trace in a folder, and its file."""
    (folder / "topology.yaml").write_text(TOPOLOGY.format(ep=ep))
    deployment = folder / "deployment.yaml"
    deployment.write_text(DEPLOYMENT.format(model=weights / "config.json", ep=ep))
    loaded = load_deployment(deployment)
    with Workers(cores=1) as workers:
        prepared = from_deployment(loaded)
        about = plan_inputs(loaded, prepared, folder / "plan.json")
        options = Options(gap=0.0, effort=0.5)
        plan = solve(prepared.instance, search_space(loaded), options, about, workers, NoWatch()).plan
    assert plan is not None
    (folder / "plan.json").write_text(plan_text(plan))
    return plan, folder / "plan.json"
