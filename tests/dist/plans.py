"""Small plans with routing, solved for these tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.cli.running import solved

CONFIG = """{"model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": 96, "num_attention_heads": 4,
 "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
 "vocab_size": 128, "dtype": "float32", "max_position_embeddings": 256, "tie_word_embeddings": false}"""
GPU = "{memory: 8 GiB, hbm_bandwidth: 100 GB/s, compute: {bf16: 10 TFLOP/s, fp32: 5 TFLOP/s}}"
SLOWER = "{memory: 6 GiB, hbm_bandwidth: 40 GB/s, compute: {bf16: 4 TFLOP/s, fp32: 2 TFLOP/s}}"
WINDOWS = 4
LINKS = """links:
  - {level: node, bandwidth: 10 GB/s, latency: 3 us}
  - {level: cluster, bandwidth: 1 GB/s, latency: 10 us}
"""


def small_plan(
    folder: Path,
    *,
    topology: str,
    solve: str,
    dedup: str = "expert",
    copies: str = "even",
    layers: int = 2,
    experts: int = 8,
    tokens: int = 200,
    hidden: int = 64,
    seed: int = 0,
    gap: str = "90%",
    hot_last: bool = False,
) -> Path:
    """Solve a small deployment with skewed random routing; the path of its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.replace("LAYERS", str(layers)).replace("EXPERTS", str(experts)).replace("HIDDEN", str(hidden))
    (folder / "config.json").write_text(config)
    (folder / "topology.yaml").write_text(f"schema: ep-plan/topology/1\n{topology}")
    (folder / "deployment.yaml").write_text(
        "schema: ep-plan/deployment/1\nmodel: config.json\ntopology: topology.yaml\ntraces: [trace.npz]\n"
        f"communication: {{kernel: all-to-all, dedup: {dedup}, copies: {copies}}}\n"
        "workload: {phase: decode, tokens_per_gpu: 16, context_length: 64}\n"
        f"solve: {solve}\n"
    )
    rng = np.random.default_rng(seed)
    popularity = rng.gumbel(size=(layers, experts))
    if hot_last:  # the linear layout puts the popular experts on the last rank
        popularity = np.sort(popularity, axis=1)
    scores = popularity + rng.gumbel(size=(tokens, layers, experts))
    ids = np.argpartition(-scores, 2, axis=2)[..., :2]
    step_id = np.arange(tokens) * WINDOWS // tokens
    np.savez(folder / "trace.npz", expert_ids=ids.astype(np.int16), num_experts=experts, step_id=step_id)
    return solved(folder / "deployment.yaml", "--gap", gap)


def two_nodes(per_node: int) -> str:
    """Two equal nodes."""
    return f"gpu: {GPU}\nnodes: 2\ngpus_per_node: {per_node}\n{LINKS}"


def unequal_nodes() -> str:
    """A node of two fast GPUs, and one of two slow ones."""
    groups = (
        f"groups:\n  - {{gpu: {GPU}, nodes: 1, gpus_per_node: 2}}\n  - {{gpu: {SLOWER}, nodes: 1, gpus_per_node: 2}}\n"
    )
    return groups + LINKS


def on_rails() -> str:
    """Two nodes of three GPUs; GPUs of the same place are on one rail."""
    return (
        f"gpu: {GPU}\nnodes: 2\ngpus_per_node: 3\nlinks:\n"
        "  - {level: node, bandwidth: 10 GB/s, latency: 3 us}\n"
        "  - {level: rail, bandwidth: 2 GB/s, latency: 5 us, nodes: 2, rails: true}\n"
        "  - {level: cluster, bandwidth: 1 GB/s, latency: 10 us}\n"
    )
