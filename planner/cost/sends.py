"""What the ranks of an all-to-all group send each other, and which ports, uplinks and pairs that passes.

Legend: R EP ranks, D scale-up domains, X ranks or domains, U ports, uplinks or pairs, G GPUs of the stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import RANKS, Block, PairBlock, Passing, SlowPairs
from planner.cost.grid import EpGroup, Grid
from planner.cost.ports import Bottleneck, Ports, SlowPair
from planner.inputs.workload import Dedup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Sends:
    """What the ranks of one all-to-all group send each other, as parts of the volumes."""

    group: EpGroup
    scale_up_level: int
    rank_RR: Floats
    """[to, from] part of the copies that arrive at a rank."""
    domain_RR: Floats | None
    """[to, from] part of the copies that arrive at the receiver's domain; None unless dedup is node."""
    partition: int
    domain_R: Ints

    @staticmethod
    def of(group: EpGroup, dedup: Dedup, grid: Grid, partitions: dict[bytes, Ints]) -> Sends:
        """Those of one group; its partition into scale-up domains is added to the others if it is new."""
        topology, ranks = grid.topology, grid.split.ep
        domain_R = group.unit_VR[topology.scale_up_level]
        even_RR = np.full((ranks, ranks), 1.0 / ranks)
        if dedup != "node" or domain_R.max() == 0:
            return Sends(group, topology.scale_up_level, even_RR, None, RANKS, domain_R)
        inside_RR = np.asarray(domain_R[:, None] == domain_R, dtype=float)
        size_R = inside_RR.sum(axis=1)
        arriving_RR = (1.0 - inside_RR) / ranks / size_R[:, None]
        for level, link in enumerate(topology.links):
            if link.rails:
                arriving_RR = _by_rail(arriving_RR, group.level_RR == level, inside_RR, ranks)
        partitions.setdefault(domain_R.tobytes(), domain_R)
        number = list(partitions).index(domain_R.tobytes())
        return Sends(group, topology.scale_up_level, inside_RR / size_R[:, None], arriving_RR, number, domain_R)

    def passing(self, ports: Ports, level: int) -> tuple[int, Floats]:
        """Key of the volume and parts [to, from] of it that pass a level's ports."""
        ranks = len(self.domain_R)
        passes_RR = ports.passes(self.group.level_RR, level) & ~np.eye(ranks, dtype=bool)
        if self.domain_RR is not None and level > self.scale_up_level:
            return self.partition, np.asarray(self.domain_RR * passes_RR)
        return RANKS, np.asarray(self.rank_RR * passes_RR)

    def pairs(self, ports: Ports, level: int) -> Bools:
        """Messages [to, from] that pass a level's ports."""
        passes_RR = ports.passes(self.group.level_RR, level) & ~np.eye(len(self.domain_R), dtype=bool)
        if self.domain_RR is None:
            return np.asarray(passes_RR)
        inside_RR = self.domain_R[:, None] == self.domain_R
        return np.asarray(passes_RR & (~inside_RR if level > self.scale_up_level else inside_RR))

    def between(self, arriving: Mapping[int, Floats]) -> Floats:
        """Copies that the ranks send each other [S, to, from].

        Args:
            arriving: copies that arrive at ranks [S, R, home] and, where they are forwarded inside domains, at
                domains [S, D, home], by key.
        """
        copies_SRR = arriving[RANKS]
        if self.domain_RR is not None:
            inside_RR = np.asarray(self.domain_R[:, None] == self.domain_R, dtype=float)
            from_outside_SR = (copies_SRR * (1.0 - inside_RR)).sum(axis=2)
            forwarded_RR = inside_RR / inside_RR.sum(axis=1, keepdims=True)  # by all GPUs of the domain alike
            entering_SRR = arriving[self.partition][:, self.domain_R] * (self.domain_RR * len(self.domain_R))
            copies_SRR = copies_SRR * inside_RR + from_outside_SR[:, :, None] * forwarded_RR + entering_SRR
        return np.asarray(copies_SRR * (1.0 - np.eye(len(self.domain_R))))

    def by_domain(self, key: int, received_R: Floats) -> Floats:
        """What rank r receives of its volume, as coefficients [X, R]."""
        if key == RANKS:
            return np.diag(received_R)
        return np.asarray((np.arange(self.domain_R.max() + 1)[:, None] == self.domain_R) * received_R)

    def summed(self, key: int, sent_RR: Floats) -> Floats:
        """What rank h sends of each volume, as coefficients [X, R]."""
        if key == RANKS:
            return sent_RR
        in_domain_DR = np.asarray(np.arange(self.domain_R.max() + 1)[:, None] == self.domain_R, dtype=float)
        return np.asarray(in_domain_DR @ sent_RR)

    def at_own_ports(self, ports: Ports, neck: Bottleneck) -> Iterator[Block]:
        """Ports that every GPU has for itself."""
        unit_R = neck.unit_G[self.group.index_R]
        seconds_R, light_R = 1.0 / neck.rate_U[unit_R], 1.0 / neck.light_U[unit_R]
        key, part_RR = self.passing(ports, neck.level)
        received_R = part_RR.sum(axis=1)
        coefficient = received_R if key == RANKS else self.by_domain(key, received_R)
        yield Block({key: coefficient}, seconds_R, light_R, receives=True)
        yield Block({key: self.summed(key, part_RR)}, seconds_R, light_R, receives=False)

    def at_slow_pairs(self, ports: Ports) -> Iterator[Block]:
        """For each rank the slowest of the slow pairs by which it receives."""
        rank = {index: position for position, index in enumerate(self.group.index_R.tolist())}
        slowest: dict[tuple[int, int], tuple[float, float, float]] = {}
        for pair in self._slow(ports):
            key, part_RR = self.passing(ports, pair.level)
            for sender, receiver in (pair.ends, pair.ends[::-1]):
                part = float(part_RR[rank[receiver], rank[sender]])
                found = (part / pair.rate, part / pair.light, part)
                slowest[key, rank[receiver]] = max(slowest.get((key, rank[receiver]), (0.0, 0.0, 0.0)), found)
        for key in dict.fromkeys(key for key, _ in slowest):
            seconds_R, light_R = np.zeros(len(rank)), np.zeros(len(rank))
            for (_, receiver), found in slowest.items():
                seconds_R[receiver], light_R[receiver] = found[:2]
            one_R = np.asarray(seconds_R > 0, dtype=float)
            yield Block({key: one_R if key == RANKS else self.by_domain(key, one_R)}, seconds_R, light_R, receives=True)

    def _slow(self, ports: Ports) -> Iterator[SlowPair]:
        """Slow pairs with both ends in the group."""
        members = set(self.group.index_R.tolist())
        return (pair for pair in ports.slow_pairs if members >= set(pair.ends))

    def own_pair_blocks(self, number: int, ports: Ports, neck: Bottleneck) -> Iterator[PairBlock]:
        """As `at_own_ports`, by pairs of ranks; with the number of these senders."""
        unit_R = neck.unit_G[self.group.index_R]
        seconds_R, light_R = 1.0 / neck.rate_U[unit_R], 1.0 / neck.light_U[unit_R]
        passing = (Passing(number, self.pairs(ports, neck.level), np.arange(len(unit_R))),)
        for receives in (True, False):
            yield PairBlock(passing, seconds_R, light_R, receives)

    def slow_pair_block(self, number: int, ports: Ports) -> Iterator[SlowPairs]:
        """As `at_slow_pairs`, by pairs of ranks."""
        rank = {index: position for position, index in enumerate(self.group.index_R.tolist())}
        seconds_RR, light_RR = np.zeros((2, len(rank), len(rank)))
        for pair in self._slow(ports):
            passes_RR = self.pairs(ports, pair.level)
            for sender, receiver in (pair.ends, pair.ends[::-1]):
                at = rank[receiver], rank[sender]
                seconds_RR[at], light_RR[at] = passes_RR[at] / pair.rate, passes_RR[at] / pair.light
        if seconds_RR.any():
            yield SlowPairs(number, seconds_RR, light_RR)


def _by_rail(arriving_RR: Floats, same_rail_RR: Ints, inside_RR: Floats, ranks: int) -> Floats:
    """Copies enter a domain by the GPUs on the sender's rail, where it has one."""
    rail_RR = np.asarray(same_rail_RR, dtype=float)
    entries_RR = inside_RR @ rail_RR  # [domain of to, from] GPUs of the domain on the sender's rail
    with np.errstate(invalid="ignore", divide="ignore"):
        by_rail_RR = np.where(entries_RR > 0, rail_RR / entries_RR / ranks, arriving_RR)
    return np.asarray(by_rail_RR * (1.0 - inside_RR))


def at_shared(every: Sequence[Sends], ports: Ports, neck: Bottleneck) -> Iterator[Block]:
    """Ports and uplinks that several GPUs share: what all groups of the stage send there adds up."""
    seconds_U, light_U = 1.0 / neck.rate_U, 1.0 / neck.light_U
    received: dict[int, Floats] = {}
    sent: dict[int, Floats] = {}
    for sends in every:
        key, part_RR = sends.passing(ports, neck.level)
        unit_R = neck.unit_G[sends.group.index_R]
        for total, coefficient_XR in (
            (received, sends.by_domain(key, part_RR.sum(axis=1))),
            (sent, sends.summed(key, part_RR)),
        ):
            total.setdefault(key, np.zeros((len(coefficient_XR), len(seconds_U))))
            np.add.at(total[key].T, unit_R, coefficient_XR.T)
    if any(coefficient.any() for coefficient in received.values()):
        yield Block(received, seconds_U, light_U, receives=True)
        yield Block(sent, seconds_U, light_U, receives=False)


def shared_pair_blocks(every: Sequence[Sends], ports: Ports, neck: Bottleneck) -> Iterator[PairBlock]:
    """As `at_shared`, by pairs of ranks; senders are numbered in order."""
    passing = tuple(
        Passing(number, sends.pairs(ports, neck.level), neck.unit_G[sends.group.index_R])
        for number, sends in enumerate(every)
    )
    if any(one.passes_RR.any() for one in passing):
        for receives in (True, False):
            yield PairBlock(passing, 1.0 / neck.rate_U, 1.0 / neck.light_U, receives)
