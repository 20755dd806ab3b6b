"""vllm-ascend's `moe_load`: counts of physical slots, [MoE layers, ranks, slots], as .npy, .pt or JSON.

Source: vllm-project/vllm-ascend 182b75ea84ff, vllm_ascend/eplb. The slots held what the expert map of
that run says: give the file that --eplb-config.expert_map_record_path wrote (or expert_map_path) with
--physical-map. A fourth axis in front, or several files, are windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from planner.errors import UsageError
from planner.trace.importers.found import CountBlock, Found, Given, bad, needs_experts
from planner.trace.importers.matrices import arrays
from planner.trace.importers.tensorrt_llm import counts_of_slots


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of loads."""
    if given.physical_map is None:
        hint = "give --physical-map with the expert map of that run"
        raise UsageError(f"{sources[0]}: vllm-ascend counts slots, not experts", hint=hint)
    held = max(int(row.max()) for row in given.physical_map.layers.values()) + 1
    experts = needs_experts(sources[0], held, given)
    return Found(sources[0], "moe", _blocks(sources, experts, given), per_token=False, num_experts=experts)


def _blocks(sources: Sequence[Path], experts: int, given: Given) -> Iterator[CountBlock]:
    for path in sources:
        for name, load in arrays(path, deepest=4):
            if load.ndim not in (3, 4):
                raise bad(path, f"{list(load.shape)} found", "expected [layers, ranks, slots]")
            steps = load if load.ndim == 4 else load[None]
            for index, load_LRS in enumerate(steps):
                flat_LP = load_LRS.reshape(len(load_LRS), -1)
                counts_LE = counts_of_slots(flat_LP, range(len(flat_LP)), experts, given)
                yield CountBlock(counts_LE, f"{name} {index}".strip() if len(steps) > 1 else name)
