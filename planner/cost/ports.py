"""The ports and uplinks of some GPUs, and what messages between them cost.

A message between two GPUs passes the innermost level that joins them. It leaves and enters by the
port of that level, and by those of the levels inside it that are the same port (`Link.same_port`).
Three things may be slowest, each sending and receiving apart:

- a port, which several GPUs may share: their messages add up;
- the uplinks of a unit into an oversubscribed level: what its GPUs send by their ports together
  finds only 1/oversubscription of the ports' bandwidth;
- a pair of GPUs with a slow link of its own.

GPUs that do other work at the same time (another pipeline stage) use a shared port, too: it is
divided in proportion to its users.

Legend: V link levels, G GPUs looked at, U ports or uplinks of a level, M messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.inputs.kernels import Reach
from planner.inputs.topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Bottleneck:
    """Ports (or uplinks) of one level: which each GPU uses, and bytes per second of each."""

    level: int
    unit_G: Ints
    rate_U: Floats
    light_U: Floats
    """At the speed of light: the bandwidth alone."""

    @property
    def is_own(self) -> bool:
        """Whether every GPU has one of its own."""
        return len(self.rate_U) == len(self.unit_G)


@dataclass(frozen=True)
class SlowPair:
    """Two of the GPUs, by position, whose link is slower than its level."""

    ends: tuple[int, int]
    level: int
    rate: float
    light: float
    latency_s: float


@dataclass(frozen=True)
class Ports:
    """The links of some GPUs as one kernel reaches them."""

    topology: Topology
    reach: Reach
    gpus: tuple[int, ...]

    @cached_property
    def unit_VG(self) -> Ints:
        """Unit of each GPU at each level."""
        units: Ints = self.topology.unit_VG[:, list(self.gpus)]
        return units

    @cached_property
    def latency_VG(self) -> Floats:
        """Seconds of a message by each GPU's port at each level."""
        latency: Floats = self.topology.latency_VG[:, list(self.gpus)]
        return latency

    def outermost(self, level: int) -> int:
        """Outermost level whose messages pass the port of this one."""
        ports = self.topology.ports
        return max(v for v, port in enumerate(ports) if port == ports[level])

    def _reached(self, level: int) -> Floats:
        """Part of the bandwidth that large messages reach [G].

        As measured for the kernel at this level, else as the topology says, else as the kernel does elsewhere.
        """
        measured = self.reach.levels.get(self.topology.links[level].level)
        if measured is not None:
            return np.full(len(self.gpus), measured)
        inside = level <= self.topology.scale_up_level
        assumed = self.reach.scale_up if inside else self.reach.scale_out
        said_G = self.topology.efficiency_VG[level, list(self.gpus)]
        return np.where(np.isnan(said_G), assumed, said_G)

    @cached_property
    def bottlenecks(self) -> tuple[Bottleneck, ...]:
        """Ports of all levels, innermost first, then the uplinks that are oversubscribed."""
        ports = [self._ports(level) for level in range(len(self.topology.links))]
        uplinks = [
            self._uplinks(ports[level], link.oversubscription)
            for level, link in enumerate(self.topology.links)
            if link.oversubscription > 1
        ]
        return (*ports, *uplinks)

    def _ports(self, level: int) -> Bottleneck:
        gpus = list(self.gpus)
        _, unit_G, here_U = np.unique(self.topology.port_VG[level, gpus], return_inverse=True, return_counts=True)
        share_G = here_U[unit_G] / self.topology.port_users_VG[level, gpus]
        light_G = self.topology.bandwidth_VG[level, gpus] * share_G
        rate_G = self.topology.bandwidth_VG[level, gpus] * self._reached(level) * share_G
        rate_U, light_U = np.full(len(here_U), np.inf), np.full(len(here_U), np.inf)
        np.minimum.at(rate_U, unit_G, rate_G)
        np.minimum.at(light_U, unit_G, light_G)
        return Bottleneck(level, unit_G, rate_U, light_U)

    def _uplinks(self, ports: Bottleneck, oversubscription: float) -> Bottleneck:
        level = ports.level
        inner_G = self.unit_VG[level - 1] if level else np.arange(len(self.gpus))
        _, unit_G = np.unique(inner_G, return_inverse=True)
        users_G = np.bincount(ports.unit_G)[ports.unit_G]  # a port counts once; GPUs of several units may share it
        rate_U, light_U = np.zeros(int(unit_G.max()) + 1), np.zeros(int(unit_G.max()) + 1)
        np.add.at(rate_U, unit_G, ports.rate_U[ports.unit_G] / users_G)
        np.add.at(light_U, unit_G, ports.light_U[ports.unit_G] / users_G)
        return Bottleneck(level, unit_G, rate_U / oversubscription, light_U / oversubscription)

    @cached_property
    def slow_pairs(self) -> tuple[SlowPair, ...]:
        """Pairs with a link of their own among the GPUs."""
        position = {gpu: index for index, gpu in enumerate(self.gpus)}
        found = []
        for pair in self.topology.pairs:
            if position.keys() >= set(pair.gpus):
                ends = (position[pair.gpus[0]], position[pair.gpus[1]])
                level = int((self.unit_VG[:, ends[0]] == self.unit_VG[:, ends[1]]).argmax())
                reached = float(self._reached(level)[list(ends)].min())
                found.append(SlowPair(ends, level, pair.bandwidth * reached, pair.bandwidth, pair.latency_s))
        return tuple(found)

    def passes(self, level_M: Ints, level: int) -> NDArray[np.bool_]:
        """Whether messages that are joined at some level pass the ports of another [M]."""
        return np.asarray((level_M >= level) & (level_M <= self.outermost(level)))

    def slowest(self, sender_M: Ints, receiver_M: Ints) -> Passage:
        """What messages of equal size that are sent at once find.

        Args:
            sender_M: position of each message's sender among the GPUs.
            receiver_M: and of its receiver.
        """
        level_M = (self.unit_VG[:, sender_M] == self.unit_VG[:, receiver_M]).argmax(axis=0)
        found = Passage(np.inf, np.inf, 0.0, int(level_M.max()))
        for neck in self.bottlenecks:
            passing_M = self.passes(level_M, neck.level)
            for end_M in (sender_M[passing_M], receiver_M[passing_M]):
                load_U = np.bincount(neck.unit_G[end_M], minlength=len(neck.rate_U))
                used_U = load_U > 0
                if used_U.any():
                    rate, light = ((table[used_U] / load_U[used_U]).min() for table in (neck.rate_U, neck.light_U))
                    found = found.slower(float(rate), float(light), 0.0)
        latency_M = np.maximum(self.latency_VG[level_M, sender_M], self.latency_VG[level_M, receiver_M])
        found = found.slower(np.inf, np.inf, float(latency_M.max()))
        sent = set(zip(sender_M.tolist(), receiver_M.tolist(), strict=True))
        for pair in self.slow_pairs:
            if pair.ends in sent or pair.ends[::-1] in sent:
                found = found.slower(pair.rate, pair.light, pair.latency_s)
        return found


@dataclass(frozen=True)
class Passage:
    """Bytes per second of each message, the same at the speed of light, latency, and outermost level."""

    rate: float
    light: float
    latency_s: float
    level: int

    def slower(self, rate: float, light: float, latency_s: float) -> Passage:
        """The slower of two in each respect."""
        return Passage(min(self.rate, rate), min(self.light, light), max(self.latency_s, latency_s), self.level)


def ring(size: int, blocks: int) -> tuple[Ints, Ints]:
    """Senders and receivers of a ring in rank order through each of some blocks of GPUs."""
    sender_M = np.arange(size * blocks, dtype=np.int64)
    return sender_M, sender_M // size * size + (sender_M + 1) % size
