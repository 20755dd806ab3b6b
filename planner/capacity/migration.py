"""What it takes to bring a deployment from one placement to another: transfers, bytes by link level, seconds.

Layers change one after the other, as engines do it: while a layer's experts travel, serving waits. Every rank that
needs an expert gets it from the nearest rank that holds it, of equally near ones from that which has least to send.
Each of the GPUs that share an expert moves its part, in every copy of the expert grid.

Legend: L MoE layers, P slots, R EP ranks, Y copies of the expert grid, G GPUs that share an expert, M messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.ports import Ports
from planner.cost.step import Cuts, SplitCost, StageCost
from planner.cost.weights import expert_bytes
from planner.plan.placement import Placement

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Transfer:
    """One expert of one layer to a rank that did not hold it."""

    expert: int
    source: int
    """EP rank that has it."""
    target: int
    """EP rank that gets it."""
    level: str
    """Link level that its weights pass, the outermost of all its parts."""


@dataclass(frozen=True)
class LayerMove:
    """All transfers of one layer, which happen at once."""

    layer: int
    """Hidden-layer index."""
    transfers: tuple[Transfer, ...]
    bytes_by_level: dict[str, int]
    seconds: float
    received_bytes: int
    """On the GPU that gets most: so much memory must be free, as old experts serve until the new ones are there."""


@dataclass(frozen=True)
class Migration:
    """Everything that moves."""

    layers: tuple[LayerMove, ...]

    @property
    def moves(self) -> int:
        """Experts that come to a rank, over all layers."""
        return sum(len(layer.transfers) for layer in self.layers)

    @property
    def seconds(self) -> float:
        """All layers, one after the other."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def bytes_by_level(self) -> dict[str, int]:
        """Bytes over all layers."""
        total: Counter[str] = Counter()
        for layer in self.layers:
            total.update(layer.bytes_by_level)
        return dict(total)

    @property
    def received_bytes(self) -> int:
        """Most that a GPU must hold besides at any time."""
        return max((layer.received_bytes for layer in self.layers), default=0)


def migration(cost: SplitCost, cuts: Cuts, before: Placement, after: Placement) -> Migration:
    """What moves between two placements of the same split, in the order of layers.

    Args:
        cost: instance and split.
        cuts: hidden layers of each stage.
        before: the placement in force.
        after: the one to reach.
    """
    return Migration(tuple(_layers(cost, cuts, before, after)))


def _layers(cost: SplitCost, cuts: Cuts, before: Placement, after: Placement) -> Iterator[LayerMove]:
    row_of = {layer: row for row, layer in enumerate(before.layer_ids)}
    for stage, layers in zip(cost.stages, cuts, strict=True):
        way = _Way.of(cost, stage)
        for layer in layers:
            if layer not in row_of:
                continue
            held, wanted = (_held(placed, row_of[layer]) for placed in (before, after))
            moved = way.layer(layer, held, wanted)
            if moved is not None:
                yield moved


def _held(placement: Placement, row: int) -> list[set[int]]:
    by_rank = placement.expert_LP[row].reshape(placement.num_ranks, -1)
    return [set(experts[experts >= 0].tolist()) for experts in by_rank]


@dataclass(frozen=True)
class _Way:
    """The links between the ranks of a stage."""

    ports: Ports
    grid_YRG: Ints
    """Position of each GPU in the stage."""
    level_RR: Ints
    """Outermost level between the parts of two ranks."""
    slot_bytes: int
    """Of an expert on one GPU."""
    launch_s: float

    @staticmethod
    def of(cost: SplitCost, stage: StageCost) -> _Way:
        split, instance = cost.split, cost.instance
        collectives = instance.constants.collectives
        assert collectives.collective is not None, "engines name kernels that have collectives"
        ports = Ports(instance.topology, collectives.collective_reach, stage.grid.gpus)
        grid_YRG = np.arange(len(stage.grid.gpus)).reshape(split.edp, split.ep, split.etp)
        unit_VYRG = ports.unit_VG[:, grid_YRG]
        joined = unit_VYRG[:, :, :, None] == unit_VYRG[:, :, None, :]
        level_RR = joined.argmax(axis=0).max(axis=(0, 3))
        model, precision = instance.model, instance.constants.precision
        slot_bytes = expert_bytes(model, precision.experts, split.etp)
        return _Way(ports, grid_YRG, level_RR, slot_bytes, float(collectives.collective.value.launch))

    def layer(self, layer: int, held: list[set[int]], wanted: list[set[int]]) -> LayerMove | None:
        """The transfers of one layer; None if nothing moves."""
        holders: dict[int, list[int]] = {}
        for rank, experts in enumerate(held):
            for expert in experts:
                holders.setdefault(expert, []).append(rank)
        sends: Counter[int] = Counter()
        pairs = []
        for target, experts in enumerate(wanted):
            for expert in sorted(experts - held[target]):
                near = min(holders[expert], key=lambda rank: (self.level_RR[rank, target], sends[rank], rank))
                sends[near] += 1
                pairs.append((expert, near, target))
        if not pairs:
            return None
        names = [link.level for link in self.ports.topology.links]
        source, target_M = (np.array([pair[end] for pair in pairs]) for end in (1, 2))
        sender_M, receiver_M = self.grid_YRG[:, source].ravel(), self.grid_YRG[:, target_M].ravel()
        passage = self.ports.slowest(sender_M, receiver_M)
        unit_VG = self.ports.unit_VG
        level_M = (unit_VG[:, sender_M] == unit_VG[:, receiver_M]).argmax(axis=0)
        count_V = np.bincount(level_M, minlength=len(names)).tolist()
        received_G = np.bincount(receiver_M)
        return LayerMove(
            layer=layer,
            transfers=tuple(Transfer(e, s, t, names[self.level_RR[s, t]]) for e, s, t in pairs),
            bytes_by_level={name: n * self.slot_bytes for name, n in zip(names, count_V, strict=True) if n},
            seconds=self.launch_s + passage.latency_s + self.slot_bytes / passage.rate,
            received_bytes=int(received_G.max()) * self.slot_bytes,
        )
