"""What it takes to bring a deployment from one placement to another: transfers, bytes by link level, seconds.

Layers change one after the other, as engines do it: while a layer's experts travel, serving waits. Every rank that
needs an expert gets it from the nearest rank that holds it, of equally near ones from that which has least to send.
Each of the GPUs that share an expert moves its part, in every copy of the expert grid. What a rank has no room for at
once, as its memory is taken, comes in further rounds (`rounds.py`).

Legend: L MoE layers, P slots, R EP ranks, Y copies of the expert grid, G GPUs that share an expert, M messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.capacity.rounds import Round, Travel, in_rounds
from planner.cost.booking import memory_G
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
class MoveRound:
    """Transfers that happen at once."""

    gives_way: tuple[tuple[int, int], ...]
    """Experts that a rank drops beforehand: expert and rank; another copy stays."""
    transfers: tuple[Transfer, ...]
    seconds: float


@dataclass(frozen=True)
class LayerMove:
    """All transfers of one layer, in one round if the receivers have room for everything."""

    layer: int
    """Hidden-layer index."""
    rounds: tuple[MoveRound, ...]
    bytes_by_level: dict[str, int]
    extra_bytes_R: tuple[int, ...]
    """Most that each GPU of an EP rank holds beyond its slots, as old experts stay until the new ones are there."""
    lacking_bytes: int
    """Most that a GPU would need beyond its free memory for this order; 0: everything fits."""

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """Of all rounds."""
        return tuple(one for part in self.rounds for one in part.transfers)

    @property
    def seconds(self) -> float:
        """All rounds, one after the other."""
        return sum(one.seconds for one in self.rounds)

    @property
    def received_bytes(self) -> int:
        """Extra bytes on the GPU that needs most."""
        return max(self.extra_bytes_R)


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

    @property
    def lacking_bytes(self) -> int:
        """Most that a GPU would need beyond its free memory; 0: everything fits."""
        return max((layer.lacking_bytes for layer in self.layers), default=0)


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
    changed = [row for row in range(len(before.expert_LP)) if (before.expert_LP[row] != after.expert_LP[row]).any()]
    if not changed:
        return
    free_G = cost.instance.usable_G - memory_G(cost, cuts, before)
    for stage, layers in zip(cost.stages, cuts, strict=True):
        way = _Way.of(cost, stage, free_G)
        for layer in layers:
            if row_of.get(layer) in changed:
                held, wanted = (_held(placed, row_of[layer]) for placed in (before, after))
                moved = way.layer(layer, held, wanted)
                if moved is not None:
                    yield moved


def _held(placement: Placement, row: int) -> list[set[int]]:
    by_rank = placement.expert_LP[row].reshape(placement.num_ranks, -1)
    return [set(experts[experts >= 0].tolist()) for experts in by_rank]


@dataclass(frozen=True)
class _Way:
    """The links between the ranks of a stage, and their free memory."""

    ports: Ports
    grid_YRG: Ints
    """Position of each GPU in the stage."""
    level_RR: Ints
    """Outermost level between the parts of two ranks."""
    free_R: Ints
    """Bytes on the GPU of each rank that has least."""
    slot_bytes: int
    """Of an expert on one GPU."""
    launch_s: float

    @staticmethod
    def of(cost: SplitCost, stage: StageCost, free_G: Ints) -> _Way:
        split, instance = cost.split, cost.instance
        collectives = instance.constants.collectives
        assert collectives.collective is not None, "engines name kernels that have collectives"
        ports = Ports(instance.topology, collectives.collective_reach, stage.grid.gpus)
        grid_YRG = np.arange(len(stage.grid.gpus)).reshape(split.edp, split.ep, split.etp)
        unit_VYRG = ports.unit_VG[:, grid_YRG]
        joined = unit_VYRG[:, :, :, None] == unit_VYRG[:, :, None, :]
        level_RR = joined.argmax(axis=0).max(axis=(0, 3))
        free_R = np.maximum(free_G[list(stage.grid.gpus)][grid_YRG].min(axis=(0, 2)), 0)
        slot_bytes = expert_bytes(instance.model, instance.constants.precision.experts, split.etp)
        return _Way(ports, grid_YRG, level_RR, free_R, slot_bytes, float(collectives.collective.value.launch))

    def layer(self, layer: int, held: list[set[int]], wanted: list[set[int]]) -> LayerMove | None:
        """The transfers of one layer; None if nothing moves."""
        order = in_rounds(held, wanted, (self.free_R // self.slot_bytes).tolist(), self.level_RR)
        if not order.rounds:
            return None
        rounds = tuple(self._round(one) for one in order.rounds)
        extra_R = np.maximum(order.most_R, 0) * self.slot_bytes
        return LayerMove(
            layer=layer,
            rounds=rounds,
            bytes_by_level=self._bytes([one for part in rounds for one in part.transfers]),
            extra_bytes_R=tuple(extra_R.tolist()),
            lacking_bytes=max(0, int((extra_R - self.free_R).max())),
        )

    def _round(self, one: Round) -> MoveRound:
        names = [link.level for link in self.ports.topology.links]
        passage = self.ports.slowest(*self._ends(one.travels))
        return MoveRound(
            gives_way=one.gives_way,
            transfers=tuple(
                Transfer(t.expert, t.source, t.target, names[self.level_RR[t.source, t.target]]) for t in one.travels
            ),
            seconds=self.launch_s + passage.latency_s + self.slot_bytes / passage.rate,
        )

    def _ends(self, moves: Sequence[Travel | Transfer]) -> tuple[Ints, Ints]:
        """Sender and receiver of every part that travels [M], by position in the stage."""
        source_M, target_M = (np.array(ranks) for ranks in zip(*((m.source, m.target) for m in moves), strict=True))
        return self.grid_YRG[:, source_M].ravel(), self.grid_YRG[:, target_M].ravel()

    def _bytes(self, transfers: list[Transfer]) -> dict[str, int]:
        """By the level that the parts of each expert pass."""
        names, unit_VG = [link.level for link in self.ports.topology.links], self.ports.unit_VG
        sender_M, receiver_M = self._ends(transfers)
        level_M = (unit_VG[:, sender_M] == unit_VG[:, receiver_M]).argmax(axis=0)
        count_V = np.bincount(level_M, minlength=len(names)).tolist()
        return {name: n * self.slot_bytes for name, n in zip(names, count_V, strict=True) if n}
