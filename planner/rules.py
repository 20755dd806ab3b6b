"""Which splits are legal: every rule that a split breaks, not only the first.

Legend: tp, dp, pp, ep, etp, edp as in `planner.plan.split`; E experts, N redundant experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid, stages_of
from planner.cost.instance import Instance
from planner.inputs.engines import EngineRules
from planner.inputs.model import DenseFfn, GroupedAttention, NoAttention
from planner.inputs.precision import WEIGHTS
from planner.plan.placement import slots_of_ranks
from planner.plan.split import Split

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Broken:
    """A rule that a split breaks, with the figures that show it."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" if self.detail else self.rule


@dataclass(frozen=True)
class Shares:
    """How a split is laid on the machine: for each stage GPU ids in rank order and filled slots of each EP rank."""

    gpus: tuple[tuple[int, ...], ...]
    slots_KR: tuple[Ints, ...]


@dataclass(frozen=True)
class Limits:
    """What the user and the engine allow."""

    rules: EngineRules
    engine_name: str
    keep_groups: bool


def broken_rules(
    instance: Instance, split: Split, redundant: int, limits: Limits, shares: Shares | None = None
) -> list[Broken]:
    """All rules, memory left out, that a split breaks.

    Args:
        instance: model, machine and work.
        split: the degrees.
        redundant: redundant experts per layer.
        limits: what user and engine allow.
        shares: GPUs and slots of each stage; default: consecutive GPUs, slots as even as possible.
    """
    return [
        *_attention(instance, split),
        *_widths(instance, split),
        *_experts(instance, split, redundant, limits, shares),
        *_engine(split, redundant, limits),
        *_work(instance, split),
    ]


def _modulo(what: str, value: int, degree: str, modulus: int) -> Iterator[Broken]:
    if value % modulus:
        yield Broken(what, f"{value} mod {degree} {modulus} = {value % modulus}")


def _attention(instance: Instance, split: Split) -> Iterator[Broken]:
    seen = set()
    for run in instance.model.layers:
        attention = run.attention
        if attention in seen or isinstance(attention, NoAttention):
            continue
        seen.add(attention)
        yield from _modulo("attention heads", attention.num_heads, "tp", split.tp)
        if not isinstance(attention, GroupedAttention):
            continue
        kv_heads = attention.num_kv_heads
        if kv_heads % split.tp and split.tp % kv_heads:
            yield Broken("KV heads", f"{kv_heads} neither divides by tp {split.tp} nor divides it")


def _widths(instance: Instance, split: Split) -> Iterator[Broken]:
    precision = instance.constants.precision
    moe = instance.model.moe
    parts = [("expert width", moe.intermediate_size, "etp", split.etp, WEIGHTS[precision.experts].block)]
    dense_block = WEIGHTS[precision.dense].block
    for ffn in dict.fromkeys(run.ffn for run in instance.model.layers):
        if isinstance(ffn, DenseFfn):
            parts.append(("dense width", ffn.intermediate_size, "tp", split.tp, dense_block))
        elif ffn.shared_intermediate_size:
            parts.append(("shared expert width", ffn.shared_intermediate_size, "tp", split.tp, dense_block))
    for what, width, degree, size, block in dict.fromkeys(parts):
        if width % size:
            yield from _modulo(what, width, degree, size)
        elif block and size > 1 and (width // size) % block:
            part = width // size
            detail = f"{width}/{size} = {part} mod quantisation block {block} = {part % block}"
            yield Broken(what, detail)


def _experts(
    instance: Instance, split: Split, redundant: int, limits: Limits, shares: Shares | None
) -> Iterator[Broken]:
    experts = instance.model.moe.num_experts
    slots = experts + redundant
    if split.ep > slots:
        yield Broken("experts", f"{slots} slots leave some of ep {split.ep} ranks empty")
        return
    uneven = limits.rules.uneven_experts
    if slots % split.ep and (uneven == "never" or (redundant and uneven == "without_copies")):
        lowest = -experts % split.ep
        detail = f"{slots} mod ep {split.ep} = {slots % split.ep}"
        yield Broken("experts", f"{detail}; {lowest} redundant experts would fill the ranks")
    even_R = slots_of_ranks(slots, split.ep)
    shares = shares or Shares(tuple(grid.gpus for grid in stages_of(split, instance.topology)), (even_R,) * split.pp)
    most = max(int(slots_R.max()) for slots_R in shares.slots_KR)
    if uneven != "always" and any((slots_R != even_R).any() for slots_R in shares.slots_KR):
        yield Broken(f"{limits.engine_name} slots", "the engine spreads experts evenly over ranks, fast or slow")
    if most > experts:
        yield Broken("slots", f"{most} per rank, but there are only {experts} experts")
    elif limits.keep_groups and split.ep > 1:
        yield from _groups(instance, split, shares)


def _groups(instance: Instance, split: Split, shares: Shares) -> Iterator[Broken]:
    experts, groups = instance.model.moe.num_experts, instance.model.moe.num_groups
    for gpus, slots_R in zip(shares.gpus, shares.slots_KR, strict=True):
        grid = Grid(split, instance.topology, gpus)
        level = instance.topology.file.node_level
        node_R, *others = (group.unit_VR[level] for group in grid.ep_groups)
        if any((other != node_R).any() for other in others):
            yield Broken("keep_groups", "the copies of the expert grid lie differently on the nodes")
            return
        if not groups_fit(experts, groups, slots_R, node_R):
            nodes = int(node_R.max()) + 1
            yield Broken("keep_groups", f"{groups} groups of {experts // groups} cannot be kept on {nodes} nodes")
            return


def _engine(split: Split, redundant: int, limits: Limits) -> Iterator[Broken]:
    engine, name = limits.rules, limits.engine_name
    stage = split.stage_gpus
    if engine.expert_grid == "all_or_none" and (split.ep, split.etp, split.edp) not in (
        (stage, 1, 1),
        (1, stage, 1),
    ):
        yield Broken(f"{name} grid", f"ep = {stage} (all GPUs of a stage) or every expert sharded over all {stage}")
    if engine.expert_grid == "no_copies" and split.edp > 1:
        yield Broken(f"{name} grid", f"edp {split.edp}: the expert grid is not copied inside a stage")
    if engine.attention == "all_or_none" and split.tp != 1 and split.dp != 1:
        yield Broken(f"{name} attention", "tp over all GPUs of a stage, or data parallel over all")
    if redundant and not engine.redundant_experts:
        yield Broken(f"{name} copies", "an expert cannot have several copies")


def _work(instance: Instance, split: Split) -> Iterator[Broken]:
    if split.pp > instance.model.num_layers:
        yield Broken("stages", f"pp {split.pp} is more than the {instance.model.num_layers} layers")
    tokens = instance.step_tokens / (split.micro_batches * split.dp)
    if tokens < 1:
        detail = f"{tokens:.2g} tokens per data-parallel rank and micro-batch"
        yield Broken("batch", detail)
    if split.pp > 1 and split.micro_batches < split.pp:
        yield Broken("micro-batches", f"{split.micro_batches} are fewer than pp {split.pp}")


def group_limits(num_experts: int, num_groups: int, slots_R: Ints, node_R: Ints) -> tuple[Ints, Ints]:
    """Fewest and most whole routing groups that each node can keep.

    A node needs a slot for each of its experts, and enough experts that no rank must hold one twice.
    """
    per_group = num_experts // num_groups
    slots_N = np.bincount(node_R, weights=slots_R).astype(np.int64)
    longest_N = np.zeros_like(slots_N)
    np.maximum.at(longest_N, node_R, slots_R)
    return np.maximum(-(-longest_N // per_group), 1), slots_N // per_group


def groups_fit(num_experts: int, num_groups: int, slots_R: Ints, node_R: Ints) -> bool:
    """Whether every routing group can be kept on a node, and every node can fill its slots."""
    fewest_N, most_N = group_limits(num_experts, num_groups, slots_R, node_R)
    return bool((fewest_N <= most_N).all() and fewest_N.sum() <= num_groups <= most_N.sum())
