"""Placement-independent work of a whole stage whose GPUs may differ, and its send to the next.

Legend: L hidden layers, M messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.dense import BF16_BYTES, SHARED_EXPERTS, DenseCost, joined_source
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.ports import Ports
from planner.cost.term import Term
from planner.inputs.model import LayerRun, MoeFfn
from planner.inputs.workload import Overlap


@dataclass(frozen=True)
class StageDense:
    """Placement-independent work of one stage: as slow as its slowest data-parallel rank.

    The GPUs of a tensor-parallel group wait for each other at every collective, so each term of a
    rank takes what its slowest GPU needs; ranks wait for each other at every exchange of tokens, so
    each layer takes what its slowest rank needs.
    """

    instance: Instance
    grid: Grid

    @cached_property
    def _ranks(self) -> tuple[tuple[DenseCost, ...], ...]:
        """For each different data-parallel rank, its kinds of GPUs."""
        kinds = self.grid.kind_G.reshape(-1, self.grid.split.tp).tolist()
        known = {kind: DenseCost(self.instance, self.grid, kind) for kind in set(self.grid.kind_G.tolist())}
        different = dict.fromkeys(tuple(sorted(set(rank))) for rank in kinds)
        return tuple(tuple(known[kind] for kind in rank) for rank in different)

    @cached_property
    def run_terms(self) -> dict[LayerRun, tuple[Term, ...]]:
        """Terms of one layer of each kind."""
        return {
            run: _slowest([[cost.run_terms[run] for cost in rank] for rank in self._ranks])
            for run in self.instance.model.layer_kinds
        }

    @cached_property
    def fixed_L(self) -> NDArray[np.float64]:
        """Seconds of each hidden layer."""
        seconds = np.array([sum(term.seconds for term in terms) for terms in self.run_terms.values()])
        fixed_L: NDArray[np.float64] = seconds[list(self.instance.model.kind_of_layer)]
        return fixed_L

    def beside_experts_s(self, overlap: Overlap) -> float:
        """Least work of a MoE layer, experts left out, that traffic can hide behind."""
        if overlap == "none":
            return 0.0
        layers = [terms for run, terms in self.run_terms.items() if isinstance(run.ffn, MoeFfn)]
        return min(
            sum(term.seconds for term in terms if overlap == "two_batch" or term.name == SHARED_EXPERTS)
            for terms in layers
        )

    @cached_property
    def head(self) -> tuple[Term, ...]:
        """LM head, on the last stage."""
        return _slowest([[cost.head for cost in rank] for rank in self._ranks])


def _slowest(terms_of_ranks: Sequence[Sequence[Sequence[Term]]]) -> tuple[Term, ...]:
    """Terms of the slowest rank, each as its slowest GPU needs it."""
    ranks = [
        tuple(max(alike, key=lambda term: term.seconds) for alike in zip(*gpus, strict=True)) for gpus in terms_of_ranks
    ]
    return max(ranks, key=lambda terms: sum(term.seconds for term in terms))


def send_terms(instance: Instance, grid: Grid, following: Grid) -> tuple[Term, ...]:
    """Activations of one micro-batch to the next stage, rank i to rank i, each GPU its part."""
    split = grid.split
    collectives = instance.constants.collectives
    assert collectives.collective is not None, "engines name kernels that have collectives"
    ports = Ports(instance.topology, collectives.collective_reach, (*grid.gpus, *following.gpus))
    sender_M = np.arange(len(grid.gpus), dtype=np.int64)
    passage = ports.slowest(sender_M, sender_M + len(grid.gpus))
    tokens = instance.step_tokens / (split.micro_batches * split.dp)
    num_bytes = tokens / split.tp * instance.model.hidden_size * BF16_BYTES
    figures = collectives.collective
    launch = float(figures.value.launch + passage.latency_s)
    source = joined_source(instance.topology.links[passage.level].bandwidth, figures)
    seconds = launch + num_bytes * (1.0 / passage.rate)
    light = num_bytes / passage.light
    return (Term("pipeline send", seconds, light, figures.basis, source),)
