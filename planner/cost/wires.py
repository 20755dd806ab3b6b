"""Which messages an exchange of tokens sends, and over which link level each one goes.

A token is sent once per expert, per rank, or per scale-up domain and then forwarded inside it
(`dedup`). `Wires` is one all-to-all group; both the ranks, which send, and the prediction, which only
counts, follow it. A message counts at the innermost level that joins its two ends.

Legend: T tokens, K choices, R EP ranks of a group, D scale-up domains, G GPUs of a stage, V link levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import EpGroup, Grid
from planner.cost.instance import LayerLoad
from planner.cost.sends import Sends
from planner.cost.step import Cuts, SplitCost, StageCost
from planner.cost.traffic import visits
from planner.inputs.workload import Dedup
from planner.plan.placement import Placement

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Wires:
    """One all-to-all group: what joins its ranks, and by which rank copies enter a domain."""

    dedup: Dedup
    level_RR: Ints
    domain_R: Ints
    rail_RR: NDArray[np.bool_]
    """Whether two ranks are on one rail."""
    num_levels: int

    @property
    def forwards(self) -> bool:
        """Whether copies enter a domain once and are forwarded inside."""
        return self.dedup == "node" and bool(self.domain_R.any())

    @cached_property
    def num_domains(self) -> int:
        """D."""
        return int(self.domain_R.max()) + 1

    def entries(self, home: int, domain: int) -> Ints:
        """Ranks by which the copies of a home enter a domain, taking turns; in its own: itself."""
        if self.domain_R[home] == domain:
            return np.array([home])
        inside = np.flatnonzero(self.domain_R == domain)
        on_rail = inside[self.rail_RR[home, inside]]
        return on_rail if len(on_rail) else inside

    def turn(self, home: int, domain: int, number_N: Ints) -> Ints:
        """The entry that each of a home's tokens takes, by its number at home."""
        entries = self.entries(home, domain)
        return entries[(home + number_N) % len(entries)]


def wires_of(group: EpGroup, grid: Grid, dedup: Dedup) -> Wires:
    """One group of a stage."""
    topology = grid.topology
    rails = [level for level, link in enumerate(topology.links) if link.rails]
    return Wires(
        dedup=dedup,
        level_RR=group.level_RR,
        domain_R=group.unit_VR[topology.scale_up_level],
        rail_RR=np.isin(group.level_RR, rails),
        num_levels=len(topology.links),
    )


def sent_copies_GV(slot_TK: Ints, slots_per_rank: int, grid: Grid, dedup: Dedup) -> Ints:
    """Copies that each GPU of a stage sends over each level in the dispatch of one window.

    Args:
        slot_TK: the slot that serves each choice, -1 for none; tokens in order of the window.
        slots_per_rank: slots of a rank.
        grid: the stage.
        dedup: which copies travel.
    """
    split = grid.split
    home_T = np.arange(len(slot_TK)) % split.stage_gpus
    group_T = home_T // (split.etp * split.ep) * split.etp + home_T % split.etp
    sent_GV = np.zeros((split.stage_gpus, len(grid.topology.links)), dtype=np.int64)
    for number, group in enumerate(grid.every_group):
        wires = wires_of(group, grid, dedup)
        mine = np.flatnonzero(group_T == number)
        rank_NK = np.where(slot_TK[mine] < 0, -1, slot_TK[mine] // slots_per_rank)
        home_N = home_T[mine] // split.etp % split.ep
        sent_RV = _sent_RV(rank_NK, home_N, mine // split.stage_gpus, wires)
        sent_GV[group.index_R] += sent_RV
    return sent_GV


def _sent_RV(rank_NK: Ints, home_N: Ints, number_N: Ints, wires: Wires) -> Ints:
    ranks = len(wires.domain_R)
    sent_RR = np.zeros((ranks, ranks), dtype=np.int64)  # [from, to]
    if wires.dedup == "expert":
        valid_NK = rank_NK >= 0
        sender_NK = np.broadcast_to(home_N[:, None], rank_NK.shape)
        np.add.at(sent_RR, (sender_NK[valid_NK], rank_NK[valid_NK]), 1)
        return _by_level(sent_RR, wires)
    visited_NR = np.zeros((len(rank_NK), ranks + 1), dtype=bool)
    np.put_along_axis(visited_NR, rank_NK, True, axis=1)  # noqa: FBT003 - the value that is put
    visited_NR = visited_NR[:, :ranks]  # the last column took what is no expert
    if not wires.forwards:
        token, to = np.nonzero(visited_NR)
        np.add.at(sent_RR, (home_N[token], to), 1)
        return _by_level(sent_RR, wires)
    for home in range(ranks):
        at_home = home_N == home
        for domain in range(wires.num_domains):
            visited_NI = visited_NR[at_home] & (wires.domain_R == domain)
            enters_N = visited_NI.any(axis=1)
            entry_N = wires.turn(home, domain, number_N[at_home])
            np.add.at(sent_RR, (home, entry_N[enters_N]), 1)
            token, to = np.nonzero(visited_NI)
            np.add.at(sent_RR, (entry_N[token], to), 1)
    return _by_level(sent_RR, wires)


def _by_level(sent_RR: Ints, wires: Wires) -> Ints:
    sent_RV = np.zeros((len(sent_RR), wires.num_levels), dtype=np.int64)
    others_RR = ~np.eye(len(sent_RR), dtype=bool)
    for level in range(wires.num_levels):
        sent_RV[:, level] = (sent_RR * ((wires.level_RR == level) & others_RR)).sum(axis=1)
    return sent_RV


def expected_copies_V(stage: StageCost, load: LayerLoad, expert_P: Ints, tokens_S: Floats | Ints) -> Floats:
    """Copies that the cost model expects over each level, all GPUs and windows of one layer together [V].

    Args:
        stage: the stage bound to the machine.
        load: routing of the layer.
        expert_P: its placement.
        tokens_S: tokens of each window.
    """
    moe, grid = stage.moe, stage.grid
    dedup = moe.exchange.dedup
    if not moe.sharing.is_even(expert_P):
        return _expected_by_pairs(stage, load, expert_P, tokens_S)
    part_ER = moe.part_on_ranks(load, expert_P)
    own_rows = dedup == "expert"
    arriving_SR = moe.rank_rows(load, expert_P) / moe.tokens if own_rows else visits(load, part_ER)
    total_V = np.zeros(len(grid.topology.links))
    for group in grid.every_group:
        wires = wires_of(group, grid, dedup)
        ranks = len(wires.domain_R)
        from_RR = np.full((ranks, ranks), 1.0 / ranks)  # [to, from]
        if wires.forwards:
            inside_RR = wires.domain_R[:, None] == wires.domain_R
            from_RR = inside_RR / inside_RR.sum(axis=1, keepdims=True)
            part_ED = part_ER @ (wires.domain_R[:, None] == np.arange(wires.num_domains))
            total_V += _between(visits(load, part_ED), wires, tokens_S)
        for level in range(wires.num_levels):
            at_level_RR = (wires.level_RR == level) & ~np.eye(ranks, dtype=bool)
            share_R = (from_RR * at_level_RR).sum(axis=1)
            total_V[level] += float((arriving_SR @ share_R) @ tokens_S)
    return total_V / len(grid.every_group)


def _expected_by_pairs(stage: StageCost, load: LayerLoad, expert_P: Ints, tokens_S: Floats | Ints) -> Floats:
    moe, grid = stage.moe, stage.grid
    volumes = moe.copies(load, expert_P, moe.rank_rows(load, expert_P))
    per_token = np.asarray(tokens_S) / moe.tokens
    total_V = np.zeros(len(grid.topology.links))
    partitions: dict[bytes, Ints] = {}
    for group in grid.every_group:
        sends = Sends.of(group, moe.exchange.dedup, grid, partitions)
        copies_RR = np.einsum("srh,s->rh", sends.between(volumes), per_token)
        np.add.at(total_V, group.level_RR, copies_RR)
    return total_V / len(grid.every_group)


def _between(visit_SD: Floats, wires: Wires, tokens_S: Floats | Ints) -> Floats:
    """Copies that enter domains, by level."""
    ranks = len(wires.domain_R)
    total_V = np.zeros(wires.num_levels)
    for home in range(ranks):
        for domain in range(wires.num_domains):
            if wires.domain_R[home] == domain:
                continue
            entries = wires.entries(home, domain)
            levels = wires.level_RR[home, entries]
            copies = float(visit_SD[:, domain] @ tokens_S) / ranks
            np.add.at(total_V, levels, copies / len(entries))
    return total_V


def step_bytes_V(cost: SplitCost, cuts: Cuts, placement: Placement) -> Floats:
    """Bytes that dispatch and combine of the MoE layers put on each link level in a step, mean over windows [V].

    Layers without recorded routing count as the mean of those with it. Collectives of attention and sends
    between stages are not in it.
    """
    instance = cost.instance
    total_V = np.zeros(len(instance.topology.links))
    if cost.split.ep == 1:
        return total_V
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    tokens_S = np.full(instance.num_windows, instance.step_tokens / instance.num_windows)
    counted = 0
    for stage, layers in zip(cost.stages, cuts, strict=True):
        moe = stage.moe
        copy_bytes = moe.dispatch_bytes + moe.combine_light_bytes
        for layer in layers:
            if layer in row_of and layer in load_of:
                copies_V = expected_copies_V(stage, load_of[layer], placement.expert_LP[row_of[layer]], tokens_S)
                total_V += copies_V * copy_bytes
                counted += 1
    return total_V * (len(row_of) / max(1, counted))
