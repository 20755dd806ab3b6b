"""Everything the cost of a plan depends on, prepared: no file is opened and no default chosen later.

An `Instance` comes from a deployment and its traces, or from the `inputs` of a plan file; solver,
checker and report all price plans through it.

Legend: S windows, L traced MoE layers, E experts, N sampled tokens, K choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.inputs.constants import Constants
from planner.inputs.efficiency import Curve, Efficiency, Work, curves_of
from planner.inputs.model import Model
from planner.inputs.sourced import Sourced
from planner.inputs.topology import Topology
from planner.inputs.workload import CopyRule, Workload
from planner.plan.split import Split
from planner.trace.windows import TokenSets, Windows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerLoad:
    """What one layer routed in each window."""

    share_SE: Floats
    """Part of the window's choices that went to each expert; rows sum to 1."""
    choices_S: Floats
    """Expert choices per token."""
    sets: TokenSets | None
    """Sampled tokens with the experts [N, 1, K] they chose together, if the trace has tokens."""

    @property
    def chosen_SE(self) -> Floats:
        """Probability that a token of a window chose each expert."""
        return np.asarray(np.minimum(self.share_SE * self.choices_S[:, None], 1.0))


def some_windows(load: LayerLoad, some: slice) -> LayerLoad:
    """Consecutive windows of a layer's load."""
    if some.start == 0 and some.stop >= len(load.choices_S):
        return load
    sets = load.sets
    if sets is not None:
        first, end = np.searchsorted(sets.window_N, [some.start, some.stop]).tolist()
        sets = TokenSets(sets.window_N[first:end] - np.int32(some.start), sets.experts_NLK[first:end])
    return LayerLoad(load.share_SE[some], load.choices_S[some], sets)


@dataclass(frozen=True)
class Instance:
    """A model, a machine, the work, constants, and the routing (None: unknown, taken as uniform)."""

    model: Model
    topology: Topology
    workload: Workload
    constants: Constants
    windows: Windows | None

    @cached_property
    def step_tokens(self) -> int:
        """B: tokens that one step of the whole deployment advances."""
        return self.workload.tokens_per_gpu * self.topology.num_gpus

    @cached_property
    def usable_G(self) -> NDArray[np.int64]:
        """Bytes that the engine uses of each GPU's memory."""
        memory, machine = self.constants.engine_memory, self.topology
        usable = [memory.usable_bytes(gpu.memory.value) for gpu in machine.kinds]
        return np.array(usable, dtype=np.int64)[machine.kind_G]

    def exchanges(self, split: Split) -> bool:
        """Whether the communication kernel takes tokens to their experts; else every rank has them all."""
        return split.ep > 1 and (split.dp > 1 or not self.constants.exchange_needs_dp)

    def gathers(self, split: Split) -> bool:
        """Whether all tokens of an expert grid come to all its ranks, whatever the placement."""
        return not self.exchanges(split) or self.constants.kernel.method == "all_gather"

    def copy_rule(self, split: Split) -> CopyRule:
        """How copies of an expert share its tokens: evenly where all tokens come to every rank, as none is nearer."""
        return "even" if split.ep > 1 and self.gathers(split) else self.constants.copy_rule

    def curves(self, kind: int, work: Work, name: str) -> tuple[Curve, ...]:
        """What each kernel reaches on a kind of GPU, for some work in a number format (or kind of attention)."""
        return curves_of(self._efficiencies(kind), work, name, self.constants.own_kernels)

    def overlap(self, kind: int) -> Sourced[float]:
        """Part of what could hide behind other work that does."""
        return next(known.overlap for known in self._efficiencies(kind) if known.overlap is not None)

    def small_kernel(self, kind: int) -> Sourced[float]:
        """Constant seconds of a small kernel."""
        return next(known.small_kernel for known in self._efficiencies(kind) if known.small_kernel is not None)

    def _efficiencies(self, kind: int) -> tuple[Efficiency, ...]:
        own = self.topology.kinds[kind].efficiency
        return (self.constants.efficiency,) if own is None else (own, self.constants.efficiency)

    @cached_property
    def traced_layer_ids(self) -> tuple[int, ...]:
        """Hidden-layer indices with recorded routing; without a trace, all MoE layers."""
        if self.windows is None:
            return self.model.moe_layer_ids
        return tuple(self.windows.layer_ids_L.tolist())

    @cached_property
    def num_windows(self) -> int:
        """S; 1 without a trace."""
        return 1 if self.windows is None else self.windows.num_windows

    @cached_property
    def loads(self) -> tuple[LayerLoad, ...]:
        """The load of each traced layer, in the order of `traced_layer_ids`."""
        moe = self.model.moe
        if self.windows is None:
            share = np.full((1, moe.num_experts), 1.0 / moe.num_experts)
            load = LayerLoad(share, np.array([moe.mean_choices]), None)
            return (load,) * len(self.traced_layer_ids)
        counts_SLE = self.windows.counts_SLE
        share_SLE = counts_SLE / np.maximum(counts_SLE.sum(axis=2, keepdims=True), 1)
        loads = []
        for layer in range(counts_SLE.shape[1]):
            sets = self.windows.sets
            if sets is not None:
                sets = TokenSets(sets.window_N, sets.experts_NLK[:, layer : layer + 1])
            loads.append(LayerLoad(share_SLE[:, layer], self.windows.choices_SL[:, layer], sets))
        return tuple(loads)
