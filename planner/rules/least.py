"""What all GPUs together hold at least under a split: a sum to compare with all their memory, before anything is laid.

A split fits only if under some cuts every GPU of every stage has room. Then the sum over all GPUs has room in all
memory, too, and parts of that sum are the same for all cuts and layouts: each layer lies on all GPUs of one stage, and
the slots of a layer are its experts and their copies, however the ranks share them. What lies outside of layers is left
out, except embedding and LM head. So a split whose sum is over all memory fits in no layout; one whose sum is not may
still not fit.
"""

from __future__ import annotations

from functools import cached_property

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.memory import StageMemory
from planner.cost.weights import StageWeights, expert_bytes
from planner.plan.split import Split


class LeastMemory:
    """Least memory of the splits of an instance; what several of them share is kept."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._without_experts: dict[tuple[int, int], int] = {}
        self._expert: dict[int, int] = {}

    @cached_property
    def usable(self) -> int:
        """Bytes that the engine uses of all GPUs."""
        return sum(self.instance.usable_G.tolist())

    def excess(self, split: Split, redundant: int) -> int:
        """Bytes by which all GPUs together are over their memory at least; above 0: the split fits in no layout."""
        key, etp = (split.tp, split.pp), split.etp
        if key not in self._without_experts:
            self._without_experts[key] = split.stage_gpus * self._per_gpu(split)
        if etp not in self._expert:
            model, precision = self.instance.model, self.instance.constants.precision
            self._expert[etp] = len(model.moe_layer_ids) * etp * expert_bytes(model, precision.experts, etp)
        slots = self.instance.model.moe.num_experts + redundant
        return self._without_experts[key] + slots * split.edp * self._expert[etp] - self.usable

    def _per_gpu(self, split: Split) -> int:
        """Bytes of one GPU of every stage, added over the stages, without experts; by tp and pp alone."""
        work, last = self.instance.workload, split.pp - 1
        stages = {k: StageWeights(self.instance, split, first=k == 0, last=k == last) for k in (0, last)}
        grid = Grid(split, self.instance.topology, tuple(range(split.stage_gpus)))
        layers = StageMemory(stages[0], grid, 0, self.instance.step_tokens, work.context_length).layer_bytes
        ends = (line.num_bytes for weights in stages.values() for line in weights.end_lines)
        return sum(layers) + sum(ends)
