"""Deployments and recorded traces that the benchmarks use, and parts of traces written as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

_FOURS_OF_H100 = """\
schema: ep-plan/topology/1
gpu: h100-sxm
nodes: %d
gpus_per_node: 4
links:
  - {level: node, bandwidth: 450 GB/s, latency: 3 us}
  - {level: cluster, bandwidth: %s, latency: 10 us}
"""

_DEPLOYMENT = """\
schema: ep-plan/deployment/1
model: %(model)s
topology: %(topology)s
traces: [%(trace)s]
workload: {phase: prefill, tokens_per_gpu: 4096, context_length: 4096}
solve: {redundant_experts: %(redundant)d, split: {ep: %(ep)d%(pins)s}}
%(more)s"""


@dataclass(frozen=True)
class Case:
    """A model on a machine with a recorded trace."""

    name: str
    model: str
    trace: str
    """File name in the data folder."""
    topology: str
    redundant: int
    ep: int
    pins: str = ""
    """Further degrees, such as `, pp: 1`."""
    more: str = ""
    """Further lines of the deployment."""

    def write(self, folder: Path, trace: Path) -> Path:
        """A deployment file for a trace; its path."""
        topology = self.topology
        if "\n" in topology:
            (folder / "topology.yaml").write_text(topology, encoding="utf-8")
            topology = "topology.yaml"
        values = {**asdict(self), "topology": topology, "trace": trace}
        path = folder / "deployment.yaml"
        path.write_text(_DEPLOYMENT % values, encoding="utf-8")
        return path


def fours_of_h100(nodes: int, fabric: str) -> str:
    """A topology file: nodes of 4 H100, joined at so much per GPU."""
    return _FOURS_OF_H100 % (nodes, fabric)


DEEPSEEK = Case("DeepSeek-V3", "deepseek-v3", "deepseek_v3_sglang_loads_6.npz", "4 x hgx-h100", 32, 32)
DEEPSEEK_NO_COPIES = replace(DEEPSEEK, redundant=0)
GPT_OSS = Case("gpt-oss-20b", "gpt-oss-20b", "gpt_oss_20b_decode_even_layers.npz", fours_of_h100(2, "50 GB/s"), 8, 8)


def trace_in(data: Path, name: str) -> Path:
    """A recording in the folder of data, or in its `traces/`."""
    folder = data / "traces"
    return (folder if folder.is_dir() else data) / name


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a trace file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def write_windows(trace: dict[str, NDArray[Any]], windows: Sequence[int], path: Path) -> Path:
    """A counts trace of some windows only."""
    part = dict(trace)
    part["counts"] = trace["counts"][list(windows)]
    part["scenario_names"] = trace["scenario_names"][list(windows)]
    np.savez_compressed(path, allow_pickle=False, **part)
    return path


def write_sequences(trace: dict[str, NDArray[Any]], keep_T: NDArray[np.bool_], path: Path) -> Path:
    """A token trace of some tokens only."""
    tokens = len(trace["expert_ids"])
    part = {name: array[keep_T] if array.ndim and len(array) == tokens else array for name, array in trace.items()}
    np.savez_compressed(path, allow_pickle=False, **part)
    return path
