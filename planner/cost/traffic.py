"""What dispatch and combine put on the links, per window, for one placement of one layer.

Tokens start evenly spread over the GPUs of an expert grid (homes are uniform). `ports.py` says what
a message between two GPUs passes; the slowest port, uplink or pair counts. How many copies of a token
travel:

- expert: one per chosen expert, to the rank that serves it;
- gpu: one per rank visited;
- node: between scale-up domains one per domain visited, spread over its GPUs (on a fabric of rails to
  those on the sender's rail) and forwarded inside, where every rank visited gets one.

What a rank receives in dispatch it sends back in combine, so one volume serves both.

Everything is linear in the copies that arrive at ranks and at domains, so a placement's volumes are
one product with coefficients that the machine and the split give.

Legend: S windows, R EP ranks, D scale-up domains, E experts, N sampled tokens, K choices, G GPUs of
the stage, X ranks or domains, U ports, uplinks or pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import RANKS, Block, PairBlock, SlowPairs
from planner.cost.grid import Grid
from planner.cost.instance import LayerLoad
from planner.cost.ports import Bottleneck, Ports
from planner.cost.sends import Sends, at_shared, shared_pair_blocks
from planner.inputs.kernels import Reach
from planner.inputs.workload import CopyRule, Dedup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BY_HOME: Final = 3
"""Axes of volumes that tell homes apart."""


@dataclass(frozen=True)
class Exchange:
    """The all-to-alls of a stage."""

    dedup: Dedup
    num_ranks: int
    node_R: Ints
    """Node of each rank of the first all-to-all group."""
    partitions: tuple[Ints, ...]
    """Different ways [R] in which the groups' ranks lie in scale-up domains; only with dedup `node`."""
    blocks: tuple[Block, ...]
    row_s_R: Floats
    """Seconds per byte that one row more on every rank costs the slowest port by which a rank receives:
    what a search may take for the traffic of a rank."""
    latency_s: float
    """Of the slowest message that is sent."""
    alike: bool
    """Whether no GPU has slower links than another, and none shares a port or uplink."""
    interchangeable: bool
    """Whether, besides, any rank can be mapped to any other without a change in the links."""
    sends: tuple[Sends, ...] = ()
    """Of the all-to-all groups, where it matters from which home a copy comes."""
    pair_blocks: tuple[PairBlock | SlowPairs, ...] = ()
    """The blocks by pairs of ranks, there."""

    @cached_property
    def ranks_share_volume(self) -> bool:
        """Whether volumes follow from the ranks' rows alone (no de-duplication)."""
        return self.dedup == "expert"

    def in_domain_RD(self, partition: int) -> Floats:
        """1 where a rank belongs to a domain."""
        domain_R = self.partitions[partition]
        return np.asarray(np.arange(domain_R.max() + 1) == domain_R[:, None], dtype=float)

    def unit_seconds_SU(self, volumes: Mapping[int, Floats], *, light: bool = False) -> Floats:
        """Seconds that each unit needs per byte of a copy.

        Args:
            volumes: copies [S, R] that each rank receives (rows, or visits), from all homes, under
                `RANKS`; copies [S, D] that each scale-up domain receives under the number of their partition.
                Where homes send differently both have a further axis, the home [S, R, R] and [S, D, R].
            light: at datasheet bandwidth.

        Returns:
            [S, U] over all ports, uplinks and slow pairs, in and out, of all levels used.
        """
        if any(volume.ndim == _BY_HOME for volume in volumes.values()):
            copies_SRR = [sends.between(volumes) for sends in self.sends]
            return np.concatenate([block.seconds_SU(copies_SRR, light=light) for block in self.pair_blocks], axis=1)
        columns = [block.seconds_SU(volumes, light=light) for block in self.blocks]
        if not columns:
            return np.zeros((len(volumes[RANKS]), 1))
        return np.concatenate(columns, axis=1)

    def unit_table(self) -> tuple[tuple[int, ...], Floats]:
        """Keys of the volumes, and what one copy that arrives at a rank or domain costs each unit.

        Returns:
            The table [X, U] in seconds per byte, the ranks or domains of one key after those of another;
            units that cost alike stand in it once.
        """
        keys = tuple(dict.fromkeys(key for block in self.blocks for key in block.parts))
        ends = np.cumsum([int(unit_of_rank(self, key).max()) + 1 for key in keys]).tolist()
        every = np.eye(ends[-1])
        ones = {key: every[:, first:end] for key, first, end in zip(keys, [0, *ends], ends, strict=False)}
        return keys, np.unique(self.unit_seconds_SU(ones), axis=1)


def unit_of_rank(exchange: Exchange, key: int) -> Ints:
    """Of each rank [R] the unit whose volume has this key: itself, or its scale-up domain."""
    return np.arange(exchange.num_ranks) if key == RANKS else exchange.partitions[key]


def no_exchange(grid: Grid, dedup: Dedup) -> Exchange:
    """No all-to-all: nothing that depends on the placement travels."""
    return Exchange(
        dedup=dedup,
        num_ranks=grid.split.ep,
        node_R=grid.node_R,
        partitions=(),
        blocks=(),
        row_s_R=np.zeros(grid.split.ep),
        latency_s=0.0,
        alike=True,
        interchangeable=_even(grid),
    )


def exchange_of(grid: Grid, dedup: Dedup, reach: Reach, copy_rule: CopyRule = "even") -> Exchange:
    """The all-to-alls of a stage, bound to its links; with all that is needed where copies serve by nearness."""
    ports = Ports(grid.topology, reach, grid.gpus)
    partitions: dict[bytes, Ints] = {}
    blocks: list[Block] = []
    shared = [neck for neck in ports.bottlenecks if not neck.is_own]
    groups = grid.every_group if shared else grid.ep_groups
    every = [Sends.of(group, dedup, grid, partitions) for group in groups]
    for number, own in _own_ports(every, grid, ports):
        for neck in own:
            blocks += every[number].at_own_ports(ports, neck)
        blocks += every[number].at_slow_pairs(ports)
    for neck in shared:
        blocks += at_shared(every, ports, neck)
    by_pair = copy_rule == "nearest"
    return Exchange(
        dedup=dedup,
        num_ranks=grid.split.ep,
        node_R=grid.node_R,
        partitions=tuple(partitions.values()),
        blocks=tuple(blocks),
        sends=tuple(every) if by_pair else (),
        pair_blocks=tuple(_pair_blocks(every, grid, ports)) if by_pair else (),
        row_s_R=_row_s_R(grid, ports),
        latency_s=_latency_s(grid, ports),
        alike=_alike(grid, ports),
        interchangeable=_alike(grid, ports) and _even(grid),
    )


def _own_ports(every: Sequence[Sends], grid: Grid, ports: Ports) -> Iterator[tuple[int, list[Bottleneck]]]:
    """Numbers of the groups that differ, each with the levels that it uses by ports of its own."""
    different = {id(group) for group in grid.ep_groups}
    for number, sends in enumerate(every):
        if id(sends.group) in different:
            yield number, [n for n in ports.bottlenecks if n.is_own and n.level in sends.group.levels_used]


def _pair_blocks(every: Sequence[Sends], grid: Grid, ports: Ports) -> Iterator[PairBlock | SlowPairs]:
    """The same ports, uplinks and pairs as `exchange_of` finds, in its order."""
    for number, own in _own_ports(every, grid, ports):
        for neck in own:
            yield from every[number].own_pair_blocks(number, ports, neck)
        yield from every[number].slow_pair_block(number, ports)
    for neck in ports.bottlenecks:
        if not neck.is_own:
            yield from shared_pair_blocks(every, ports, neck)


def copies_between(grid: Grid, dedup: Dedup, volumes: Mapping[int, Floats]) -> Floats:
    """Copies that each GPU of a stage gets from each other in dispatch, mean over windows [G to, G from].

    Args:
        grid: the GPUs of the stage.
        dedup: how copies of a token are de-duplicated.
        volumes: as `Exchange.unit_seconds_SU` takes them; the partitions numbered as in `Exchange.partitions`.
    """
    mean_X = {key: volume_SX.mean(axis=0) for key, volume_SX in volumes.items()}
    copies_GG = np.zeros((len(grid.gpus), len(grid.gpus)))
    partitions: dict[bytes, Ints] = {}
    for group in grid.every_group:
        sends = Sends.of(group, dedup, grid, partitions)
        if volumes[RANKS].ndim == _BY_HOME:
            copies_RR = sends.between({key: mean[None] for key, mean in mean_X.items()})[0]
        else:
            copies_RR = sends.rank_RR * mean_X[RANKS][:, None]
            if sends.domain_RR is not None:
                copies_RR = copies_RR + sends.domain_RR * mean_X[sends.partition][sends.domain_R][:, None]
            np.fill_diagonal(copies_RR, 0.0)
        copies_GG[np.ix_(group.index_R, group.index_R)] += copies_RR
    return copies_GG


def _row_s_R(grid: Grid, ports: Ports) -> Floats:
    """See `Exchange.row_s_R`; every row is taken to travel by itself."""
    slowest_R = np.zeros(grid.split.ep)
    others_RR = ~np.eye(grid.split.ep, dtype=bool)
    for group in grid.ep_groups:
        for neck in ports.bottlenecks:
            if neck.is_own:
                rows_R = (ports.passes(group.level_RR, neck.level) & others_RR).mean(axis=1)
                slowest_R = np.maximum(slowest_R, rows_R * (1.0 / neck.rate_U[neck.unit_G[group.index_R]]))
        rank = {index: position for position, index in enumerate(group.index_R.tolist())}
        for pair in ports.slow_pairs:
            if rank.keys() >= set(pair.ends):
                ends = [rank[end] for end in pair.ends]
                slowest_R[ends] = np.maximum(slowest_R[ends], 1.0 / len(rank) / pair.rate)
    for neck in ports.bottlenecks:
        if not neck.is_own:
            rows_U = np.zeros(len(neck.rate_U))
            for group in grid.every_group:
                rows_R = (ports.passes(group.level_RR, neck.level) & others_RR).mean(axis=1)
                np.add.at(rows_U, neck.unit_G[group.index_R], rows_R)
            for group in grid.every_group:
                slowest_R = np.maximum(slowest_R, (rows_U / neck.rate_U)[neck.unit_G[group.index_R]])
    return slowest_R


def _latency_s(grid: Grid, ports: Ports) -> float:
    slowest = 0.0
    for group in grid.ep_groups:
        for level in group.levels_used:
            slowest = max(slowest, float(ports.latency_VG[level, group.index_R].max()))
        inside = set(group.index_R.tolist())
        slow = [pair.latency_s for pair in ports.slow_pairs if inside >= set(pair.ends)]
        slowest = max([slowest, *slow])
    return slowest


def _alike(grid: Grid, ports: Ports) -> bool:
    topology = grid.topology
    own = all(neck.is_own for neck in ports.bottlenecks)
    return topology.links_alike and own and not ports.slow_pairs and not any(link.rails for link in topology.links)


def _even(grid: Grid) -> bool:
    sizes = [np.unique(units, return_counts=True)[1] for units in grid.ep_groups[0].unit_VR]
    return len(grid.ep_groups) == 1 and all(len(np.unique(size)) == 1 for size in sizes)


def visits(load: LayerLoad, part_ER: Floats) -> Floats:
    """Tokens, as a part of all tokens, that visit each rank (or domain) in each window [S, R].

    A token that chose the set h of experts visits r with probability 1 - prod over e in h of
    (1 - part[e, r]), part being the share of e's copies on r; see docs/model.md, (C5). Without
    recorded sets each expert is taken to be chosen independently, with its share of the window.
    """
    if load.sets is None:
        chosen_SE = load.chosen_SE
        missed = 1.0 - chosen_SE[:, :, None] * part_ER
        return np.asarray(1.0 - missed.prod(axis=1))
    window_N, experts_NK = load.sets.window_N, load.sets.experts_NLK[:, 0]
    missed_ER = np.vstack([1.0 - part_ER, np.ones(part_ER.shape[1])])  # the last row: no expert
    missed_NR = missed_ER[experts_NK[:, 0]]
    for choice in range(1, experts_NK.shape[1]):
        missed_NR = missed_NR * missed_ER[experts_NK[:, choice]]
    starts = np.searchsorted(window_N, np.arange(len(load.choices_S)))
    tokens_S = np.diff(np.append(starts, len(window_N)))
    sums = np.add.reduceat(1.0 - missed_NR, starts, axis=0)
    return np.asarray(sums / tokens_S[:, None])


def visits_by_home(load: LayerLoad, expert_P: Ints, unit_P: Ints, units: int, part_PH: Floats) -> Floats:
    """Tokens of each home, as a part of these, that visit each unit in each window [S, X, H], without recorded sets.

    Args:
        load: routing of the layer.
        expert_P: expert in each filled slot.
        unit_P: rank or domain of each slot.
        units: their number.
        part_PH: part of the expert's tokens from each home that the slot serves.
    """
    key_J, entry_P = np.unique(unit_P * load.share_SE.shape[1] + expert_P, return_inverse=True)
    part_JH = np.zeros((len(key_J), part_PH.shape[1]))
    np.add.at(part_JH, entry_P, part_PH)
    unit_J, expert_J = np.divmod(key_J, load.share_SE.shape[1])
    chosen_SJ = load.chosen_SE[:, expert_J]
    with np.errstate(divide="ignore"):  # a token that needs the unit for sure
        missed_SJH = np.log1p(-np.minimum(chosen_SJ[:, :, None] * part_JH, 1.0))
    present_X, first_X = np.unique(unit_J, return_index=True)
    visits_SXH = np.zeros((len(chosen_SJ), units, part_PH.shape[1]))
    visits_SXH[:, present_X] = -np.expm1(np.add.reduceat(missed_SJH, first_X, axis=1))
    return visits_SXH
