"""What dispatch and combine put on the links, per window, for one placement of one layer.

Tokens start evenly spread over the GPUs of an expert grid (homes are uniform). A message between two
ranks passes the innermost level that joins them. Levels that share a port (see `Link.same_port`) add
up on it. The slowest unit counts, sending or receiving. How many copies of a token travel:

- expert: one per chosen expert, to the rank that serves it;
- gpu: one per rank visited;
- node: between scale-up domains one per domain visited, spread over its GPUs and forwarded inside,
  where every rank visited gets one.

What a rank receives in dispatch it sends back in combine, so one volume serves both.

Legend: S windows, R EP ranks, D scale-up domains, E experts, N sampled tokens, K choices, V levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import EpGroup
from planner.cost.instance import LayerLoad
from planner.inputs.workload import Dedup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """The all-to-all of one EP group: seconds per byte at each level, and which ranks it joins."""

    group: EpGroup
    dedup: Dedup
    seconds_per_byte_V: tuple[float, ...]
    latency_s_V: tuple[float, ...]
    ports: tuple[int, ...]

    @cached_property
    def num_ranks(self) -> int:
        """R."""
        return int(self.group.unit_VR.shape[1])

    @cached_property
    def scale_up_level(self) -> int:
        """Outermost level that shares the innermost port: the domain in which nodes forward."""
        return max(level for level, port in enumerate(self.ports) if port == 0)

    @cached_property
    def domain_R(self) -> Ints:
        """Scale-up domain of each rank."""
        domain: Ints = self.group.unit_VR[self.scale_up_level]
        return domain

    @cached_property
    def in_domain_RD(self) -> Floats:
        """1 where a rank belongs to a domain."""
        return np.asarray(np.arange(self.domain_R.max() + 1) == self.domain_R[:, None], dtype=float)

    @cached_property
    def num_domains(self) -> int:
        """D."""
        return int(self.in_domain_RD.shape[1])

    def reach_RR(self, level: int) -> Floats:
        """1 where a message between two ranks loads the port at `level`."""
        outermost = max(v for v, port in enumerate(self.ports) if port == self.ports[level])
        unit_VR = self.group.unit_VR
        joined = unit_VR[outermost][:, None] == unit_VR[outermost]
        if level:
            return np.asarray(joined & (unit_VR[level - 1][:, None] != unit_VR[level - 1]), dtype=float)
        return np.asarray(joined & ~np.eye(self.num_ranks, dtype=bool), dtype=float)

    @cached_property
    def latency_s(self) -> float:
        """Latency of the slowest level that any message passes."""
        return max((self.latency_s_V[level] for level in self.group.levels_used), default=0.0)

    @cached_property
    def ranks_share_volume(self) -> bool:
        """Whether volumes follow from the ranks' rows alone (no de-duplication)."""
        return self.dedup == "expert"

    def unit_seconds_SU(self, rank_SR: Floats, domain_SD: Floats | None) -> Floats:
        """Seconds that each unit needs per byte of a copy, sending and receiving, every level.

        Args:
            rank_SR: copies that each rank receives (rows, or visits), from all homes.
            domain_SD: copies that each scale-up domain receives; None unless dedup is node.

        Returns:
            [S, U] over all units (ranks or domains, in and out) of all levels used.
        """
        columns = []
        for level in self.group.levels_used:
            seconds = self.seconds_per_byte_V[level]
            if domain_SD is not None and level > self.scale_up_level:
                received, sent = self._domain_volumes(domain_SD, level)
            elif domain_SD is not None:
                received, sent = self._rank_volumes(rank_SR, level, self._peers_RR)
            else:
                received, sent = self._rank_volumes(rank_SR, level, None)
            columns += [received * seconds, sent * seconds]
        if not columns:
            return np.zeros((len(rank_SR), 1))
        return np.concatenate(columns, axis=1)

    @cached_property
    def _peers_RR(self) -> Floats:
        """Part of a rank's visits that come from each other rank when its domain forwards."""
        inside = self.in_domain_RD @ self.in_domain_RD.T
        peers: Floats = inside / inside.sum(axis=1, keepdims=True)
        return peers

    def _rank_volumes(self, rank_SR: Floats, level: int, peers_RR: Floats | None) -> tuple[Floats, Floats]:
        homes = peers_RR if peers_RR is not None else np.full((self.num_ranks,) * 2, 1.0 / self.num_ranks)
        from_home_RR = self.reach_RR(level) * homes  # [to, from]
        received = rank_SR * from_home_RR.sum(axis=1)
        sent = np.einsum("st,th->sh", rank_SR, from_home_RR)
        return received, sent

    def _domain_volumes(self, domain_SD: Floats, level: int) -> tuple[Floats, Floats]:
        ranks_D = self.in_domain_RD.sum(axis=0)
        first_R = np.argmax(self.in_domain_RD, axis=0)  # one rank stands for its domain
        reach_DD = self.reach_RR(level)[np.ix_(first_R, first_R)]
        from_home_DD = reach_DD * ranks_D / self.num_ranks  # [to, from]
        received = domain_SD * from_home_DD.sum(axis=1) / ranks_D
        sent = np.einsum("st,th->sh", domain_SD, from_home_DD) / ranks_D
        return received, sent


def visits(load: LayerLoad, part_ER: Floats) -> Floats:
    """Tokens, as a part of all tokens, that visit each rank (or domain) in each window [S, R].

    A token that chose the set h of experts visits r with probability 1 - prod over e in h of
    (1 - part[e, r]), part being the share of e's copies on r; see docs/model.md, (C5). Without
    recorded sets each expert is taken to be chosen independently, with its share of the window.
    """
    if load.sets is None:
        chosen_SE = np.minimum(load.share_SE * load.choices_S[:, None], 1.0)
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
