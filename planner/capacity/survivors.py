"""What the GPUs that are left still hold, and what must be brought to them for a plan on them.

A GPU that holds a part of an expert, or of a layer's other weights, also holds every finer part of that part: with
twice as many GPUs sharing an expert, each needs a half of what it held. A coarser part counts as lacking.

Nobody serves meanwhile, so everything travels at once. An expert of which no copy is left is read from storage once;
all else comes from the nearest GPU that holds it, of equally near ones from that which has least to send.

Legend: L MoE layers, E experts, G GPUs left, R EP ranks, Y copies of the expert grid, V link levels, M messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance
from planner.cost.lines import MemoryLine
from planner.cost.ports import Ports
from planner.cost.step import Cuts, SplitCost, StageCost
from planner.cost.weights import StageWeights
from planner.plan.decision import cuts_of, placement_of, split_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.plan.split import Split

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Load:
    """A part of an expert that is brought to a GPU; GPUs by their ids in the plan that lost some."""

    layer: int
    """Hidden-layer index."""
    expert: int
    target: int
    source: int | None
    """None: from storage."""


@dataclass(frozen=True)
class Loads:
    """All weights that are brought."""

    experts: tuple[Load, ...]
    copied_bytes: dict[str, int]
    """Weights of experts from GPU to GPU, by the outermost link level that they pass."""
    storage_bytes: int
    """Weights of experts from storage."""
    other_copied_bytes: dict[str, int]
    """All weights but the experts', likewise."""
    other_storage_bytes: int
    link_s: float
    """Time over the links; how fast storage is, is not known."""

    @property
    def total_bytes(self) -> int:
        """Everything."""
        copied = sum(self.copied_bytes.values()) + sum(self.other_copied_bytes.values())
        return copied + self.storage_bytes + self.other_storage_bytes


def covers(held: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether one part of so many holds another part of so many."""
    (part, parts), (fine, count) = held, wanted
    return count % parts == 0 and fine // (count // parts) == part


@dataclass(frozen=True)
class Survivors:
    """GPUs left by position, which is their id in the plan that follows."""

    plan: Plan
    """Before GPUs were lost."""
    ids_G: Ints
    """In that plan."""

    @cached_property
    def split(self) -> Split:
        """Of that plan."""
        return split_of(self.plan)

    @cached_property
    def stage_G(self) -> Ints:
        """Stage of each GPU."""
        return self._places[0]

    @cached_property
    def index_G(self) -> Ints:
        """Its position in the stage."""
        return self._places[1]

    @cached_property
    def _places(self) -> tuple[Ints, Ints]:
        place = {
            gpu: (number, index)
            for number, stage in enumerate(self.plan.stages)
            for index, gpu in enumerate(stage.gpus)
        }
        found = np.array([place[gpu] for gpu in self.ids_G.tolist()], dtype=np.int64)
        return found[:, 0], found[:, 1]

    def in_stage_of(self, layer: int) -> Bools:
        """GPUs that ran a hidden layer [G]."""
        stage = next(k for k, layers in enumerate(cuts_of(self.plan)) if layer in layers)
        return np.asarray(self.stage_G == stage)

    @cached_property
    def held_LEG(self) -> Bools:
        """Whether a GPU holds a part of an expert."""
        placement, experts = placement_of(self.plan), self.plan.inputs.model.moe.num_experts
        rank_G = self.index_G // self.split.etp % self.split.ep
        found = np.zeros((len(placement.layer_ids), experts, len(self.ids_G)), dtype=bool)
        for row, layer in enumerate(placement.layer_ids):
            by_rank = placement.expert_LP[row].reshape(placement.num_ranks, -1)
            for gpu in np.flatnonzero(self.in_stage_of(layer)).tolist():
                held = by_rank[rank_G[gpu]]
                found[row, held[held >= 0], gpu] = True
        return found

    def expert_part(self, gpu: int) -> tuple[int, int]:
        """The part of its experts that a GPU holds."""
        return int(self.index_G[gpu]) % self.split.etp, self.split.etp

    def dense_part(self, gpu: int) -> tuple[int, int]:
        """The part of its layers' other weights."""
        return int(self.index_G[gpu]) % self.split.tp, self.split.tp

    def lacking_ER(self, row: int, split: Split, stage: StageCost) -> Ints:
        """For each expert of a MoE layer and EP rank of a stage that follows, how many of its GPUs lack their part."""
        gpus = np.array(stage.grid.gpus)
        fits_I = [
            covers(self.expert_part(gpu), (index % split.etp, split.etp)) for index, gpu in enumerate(gpus.tolist())
        ]
        lacks_EI = ~(self.held_LEG[row][:, gpus] & np.array(fits_I))
        return np.asarray(lacks_EI.reshape(len(lacks_EI), split.edp, split.ep, split.etp).sum(axis=(1, 3)))


@dataclass
class Bringing:
    """What is brought to the GPUs of a plan that follows."""

    left: Survivors
    cost: SplitCost
    cuts: Cuts

    def __post_init__(self) -> None:
        instance = self.cost.instance
        reach = instance.constants.collectives.collective_reach
        self.ports = Ports(instance.topology, reach, tuple(range(instance.topology.num_gpus)))
        unit_VG = self.ports.unit_VG
        self.level_GG = (unit_VG[:, :, None] == unit_VG[:, None, :]).argmax(axis=0)
        self.sends: Counter[int] = Counter()

    def far_ER(self, row: int, stage: StageCost) -> Ints:
        """For each expert and rank the link levels that its parts pass from the nearest that holds the expert."""
        split, gpus = self.cost.split, np.array(stage.grid.gpus)
        levels = len(self.ports.topology.links)
        held_EG = self.left.held_LEG[row]
        level_EI = np.where(held_EG[:, None, :], self.level_GG[gpus][None], levels - 1).min(axis=2)
        level_EI[held_EG[:, gpus]] = 0
        return np.asarray(level_EI.reshape(len(held_EG), split.edp, split.ep, split.etp).sum(axis=(1, 3)))

    def loads(self, placement: Placement) -> Loads:
        """Everything that a placement needs."""
        experts = list(self._experts(placement))
        names = [link.level for link in self.ports.topology.links]
        slot_bytes = self._weights(0).slot_bytes
        others = list(self._others())
        messages = [(slot_bytes, source, target) for _, _, target, source in experts] + others
        ids_G = self.left.ids_G.tolist()
        return Loads(
            experts=tuple(
                Load(layer, expert, ids_G[target], None if source is None else ids_G[source])
                for layer, expert, target, source in experts
            ),
            copied_bytes=self._copied(names, messages[: len(experts)]),
            storage_bytes=slot_bytes * sum(source is None for _, _, _, source in experts),
            other_copied_bytes=self._copied(names, others),
            other_storage_bytes=sum(size for size, source, _ in others if source is None),
            link_s=self._link_s(messages),
        )

    def _weights(self, stage: int) -> StageWeights:
        last = len(self.cost.stages) - 1
        return StageWeights(self.cost.instance, self.cost.split, first=stage == 0, last=stage == last)

    def _experts(self, placement: Placement) -> Iterator[tuple[int, int, int, int | None]]:
        """Layer, expert, target and source of each part that is brought."""
        row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
        split = self.cost.split
        for stage, layers in zip(self.cost.stages, self.cuts, strict=True):
            for layer in (one for one in layers if one in row_of):
                by_rank = placement.expert_LP[row_of[layer]].reshape(split.ep, -1)
                held_EG, read = self.left.held_LEG[row_of[layer]], dict[tuple[int, tuple[int, int]], list[int]]()
                for index, gpu in enumerate(stage.grid.gpus):
                    wanted = (index % split.etp, split.etp)
                    has = covers(self.left.expert_part(gpu), wanted)
                    for expert in by_rank[index // split.etp % split.ep].tolist():
                        if expert < 0 or (has and held_EG[expert, gpu]):
                            continue
                        holders = [
                            one
                            for one in np.flatnonzero(held_EG[expert]).tolist()
                            if covers(self.left.expert_part(one), wanted)
                        ] or read.get((expert, wanted), [])
                        source = self._nearest(holders, gpu)
                        if source is None:
                            read[expert, wanted] = [gpu]
                        yield layer, expert, gpu, source

    def _others(self) -> Iterator[tuple[int, int | None, int]]:
        """Bytes, source and target of weights that are no experts'."""
        split, left = self.cost.split, self.left
        part_G = [left.dense_part(gpu) for gpu in range(len(left.ids_G))]
        for number, stage in enumerate(self.cost.stages):
            for size, had_G in self._shared(number):
                read: dict[tuple[int, int], list[int]] = {}
                for index, gpu in enumerate(stage.grid.gpus):
                    wanted = (index % split.tp, split.tp)
                    holders = [one for one in np.flatnonzero(had_G).tolist() if covers(part_G[one], wanted)]
                    if not size or gpu in holders:
                        continue
                    source = self._nearest(holders or read.get(wanted, []), gpu)
                    if source is None:
                        read[wanted] = [gpu]
                    yield size, source, gpu

    def _shared(self, number: int) -> Iterator[tuple[int, Bools]]:
        """What each GPU of a stage needs besides experts: bytes, and the GPUs that had it before."""
        left, weights = self.left, self._weights(number)
        for layer in self.cuts[number]:
            yield _bytes(weights.run_lines[self.cost.instance.model.layer_list[layer]]), left.in_stage_of(layer)
        first = _bytes(replace(weights, last=False).end_lines)
        yield first, left.stage_G == 0
        yield _bytes(weights.end_lines) - first, left.stage_G == len(left.plan.stages) - 1

    def _nearest(self, holders: list[int], target: int) -> int | None:
        if not holders:
            return None
        source = min(holders, key=lambda one: (self.level_GG[one, target], self.sends[one], one))
        self.sends[source] += 1
        return source

    def _copied(self, names: list[str], messages: list[tuple[int, int | None, int]]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for size, source, target in messages:
            if source is not None:
                found[names[self.level_GG[source, target]]] += size
        return dict(found)

    def _link_s(self, messages: list[tuple[int, int | None, int]]) -> float:
        """Time of all that travels over links, messages of one size at once."""
        collective = self.cost.instance.constants.collectives.collective
        assert collective is not None, "engines name kernels that have collectives"
        by_size: dict[int, list[tuple[int, int]]] = {}
        for size, source, target in messages:
            if source is not None:
                by_size.setdefault(size, []).append((source, target))
        seconds = 0.0
        for size, pairs in by_size.items():
            sender_M, receiver_M = np.array(pairs).T
            passage = self.ports.slowest(sender_M, receiver_M)
            seconds += float(collective.value.launch) + passage.latency_s + size / passage.rate
        return seconds


def _bytes(lines: Iterable[MemoryLine]) -> int:
    return sum(line.num_bytes for line in lines)


def same_weights(before: Plan, instance: Instance) -> bool:
    """Whether what a plan's GPUs hold is of any use to an instance: the same model in the same number formats."""
    one, other = before.inputs.cost.precision, instance.constants.precision
    formats = ("experts", "dense", "embedding")
    return before.inputs.model == instance.model and all(getattr(one, f) == getattr(other, f) for f in formats)
