"""A deployment that is solved to proof in half a second, with a golden plan beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.building import EXAMPLES

TOPOLOGY = """\
schema: ep-plan/topology/1
gpu: {gpu}
nodes: 2
gpus_per_node: 2
links:
  - {{level: node, bandwidth: 300 GB/s, latency: 3 us}}
  - {{level: cluster, bandwidth: {between}, latency: 10 us}}
"""
DEPLOYMENT = """\
schema: ep-plan/deployment/1
model: config.json
topology: topology.yaml
traces: [trace.npz]
workload: {{phase: prefill, tokens_per_gpu: {tokens}, context_length: 1024}}
solve: {solve}
checks: {checks}
"""


def write_box(folder: Path, name: str = "box") -> Path:
    """Two layers of Mixtral on 2 x 2 A100 with skewed counts; the path of the deployment."""
    box = folder / name
    box.mkdir()
    config = json.loads((EXAMPLES / "mixtral-4gpu" / "config.json").read_text())
    (box / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    rng = np.random.default_rng(3)
    share_SLE = rng.dirichlet(np.full(8, 2.0), size=(4, 2))
    counts_SLE = rng.multinomial(512 * 2, share_SLE).astype(np.int32)
    np.savez(box / "trace.npz", counts=counts_SLE, num_experts=8, topk=2)
    set_topology(box)
    return set_deployment(box)


def set_topology(box: Path, *, gpu: str = "a100-sxm-80", between: str = "25 GB/s") -> None:
    """Write the topology."""
    (box / "topology.yaml").write_text(TOPOLOGY.format(gpu=gpu, between=between))


def set_deployment(
    box: Path, *, tokens: int = 4096, solve: str = "{split: {ep: 4}, gap: 0%}", checks: str = "{}"
) -> Path:
    """Write the deployment."""
    path = box / "deployment.yaml"
    path.write_text(DEPLOYMENT.format(tokens=tokens, solve=solve, checks=checks))
    return path
