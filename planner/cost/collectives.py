"""Time of all-reduces, all-gathers and reduce-scatters of consecutive blocks of a stage's GPUs.

time = (a**p + b**p)**(1/p), a = launch + step * phases * (ranks of a domain - 1) + latency beyond
that of the links the launch was measured on, b = bytes that a rank sends over what its ring finds on
the slowest link. The softness p < 1 is what makes middle sizes slower than either limit says. Inside
one scale-up domain a part of a rank's own share is copied, at the same rate, and an all-reduce's two
phases may overlap; but no byte is faster than light. There engines also run an all-reduce of their own
for small tensors (`small_collectives`), which reads whole tensors at once where they are smallest; the
fastest counts.

Legend: G GPUs of the stage, V link levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np

from planner.cost.instance import Instance
from planner.cost.ports import Passage, Ports, ring
from planner.cost.term import NOTHING, Term
from planner.inputs.kernels import Collective, Fitted, KernelFile

Operation = Literal["all_reduce", "all_gather", "reduce_scatter"]
PHASES: Final[dict[Operation, int]] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}


@dataclass(frozen=True)
class Blocks:
    """The collectives of blocks of `size` consecutive GPUs, all blocks at once."""

    instance: Instance
    gpus: tuple[int, ...]
    size: int

    def term(self, operation: Operation, num_bytes: float) -> Term:
        """Price a collective over each block.

        Args:
            operation: which.
            num_bytes: of the whole tensor: what is reduced, gathered, or was there before it is scattered.
        """
        if self.size == 1 or not num_bytes:
            return NOTHING
        sent = PHASES[operation] * (self.size - 1) / self.size * num_bytes
        usable = self._usable(operation, num_bytes)
        return min((self._by(kernel, operation, sent) for kernel in usable), key=lambda term: term.seconds)

    def linear(self) -> tuple[float, float]:
        """Constant seconds, and seconds per gathered byte, of a gather that is part of an exchange."""
        if self.size == 1:
            return 0.0, 0.0
        kernel = self.instance.constants.collectives
        passage = self._passage(kernel)
        figures = _figures(kernel).value
        constant = self._constant(figures, passage, phases=1)
        return constant, (self.size - 1) / self.size * self._stretch(figures, "all_gather") / passage.rate

    def latency_s(self, kernel: KernelFile, operation: Operation) -> float:
        """What the links' latency adds to the launch and the steps of a kernel."""
        figures = _figures(kernel).value
        phases = PHASES[operation]
        steps = figures.step * phases * (self._domain_size - 1)
        return self._constant(figures, self._passage(kernel), phases) - figures.launch - steps

    def _usable(self, operation: Operation, num_bytes: float) -> list[KernelFile]:
        constants = self.instance.constants
        small = constants.small_collectives
        if small is None or operation != "all_reduce" or self._domains > 1:
            return [constants.collectives]
        most = _figures(small).value.most_bytes
        return [constants.collectives] if most is not None and num_bytes > most else [constants.collectives, small]

    def _by(self, kernel: KernelFile, operation: Operation, sent: float) -> Term:
        figures = _figures(kernel)
        passage = self._passage(kernel)
        constant = self._constant(figures.value, passage, PHASES[operation])
        p, light = figures.value.softness, sent / passage.light
        travel = sent * self._stretch(figures.value, operation) / passage.rate
        if passage.rate <= passage.light:  # else somebody measured more than the links are said to have
            travel = max(light, travel)
        seconds = constant + travel if p == 1 else (constant**p + travel**p) ** (1.0 / p)
        if figures.value.one_shot is not None and operation == "all_reduce" and self._domains == 1:
            seconds = min(seconds, self._one_shot_s(figures.value, figures.value.one_shot, passage, sent))
        link = self.instance.topology.links[passage.level]
        source = "; ".join(text for text in (link.bandwidth.source, figures.source) if text)
        return Term(operation, seconds, light, figures.basis, source, figures.held_out or figures.fit)

    def _stretch(self, figures: Collective, operation: Operation) -> float:
        """Time of a rank's bytes over that of those it sends at the library's rate."""
        if self._domains > 1:
            return 1.0
        overlapped = figures.all_reduce if operation == "all_reduce" else 1.0
        return overlapped * (1.0 + figures.copied / (self.size - 1))

    def _one_shot_s(self, figures: Collective, launch: float, passage: Passage, sent: float) -> float:
        """Each rank reads the whole tensors of all others; `sent` is what two phases would send."""
        whole = sent * self.size / PHASES["all_reduce"]
        steps = figures.step * PHASES["all_reduce"] * (self.size - 1)
        return launch + steps + max(0.0, passage.latency_s - figures.at_latency) + whole / passage.rate

    def _passage(self, kernel: KernelFile) -> Passage:
        ports = Ports(self.instance.topology, kernel.collective_reach, self.gpus)
        return ports.slowest(*ring(self.size, len(self.gpus) // self.size))

    def _constant(self, figures: Collective, passage: Passage, phases: int) -> float:
        constant = figures.launch + figures.step * phases * (self._domain_size - 1)
        if self._domains == 1:
            return constant + phases * max(0.0, passage.latency_s - figures.at_latency)
        return constant + phases * math.ceil(math.log2(self._domains)) * passage.latency_s

    @cached_property
    def _units(self) -> tuple[int, int]:
        """Most scale-up domains of a block, and most members of a block in one domain."""
        topology = self.instance.topology
        domain_BG = topology.unit_VG[topology.scale_up_level, list(self.gpus)].reshape(-1, self.size)
        counts = [np.unique(block, return_counts=True)[1] for block in np.unique(domain_BG, axis=0)]
        return max(len(count) for count in counts), max(int(count.max()) for count in counts)

    @property
    def _domains(self) -> int:
        return self._units[0]

    @property
    def _domain_size(self) -> int:
        return self._units[1]


def _figures(kernel: KernelFile) -> Fitted[Collective]:
    assert kernel.collective is not None, "engines name kernels that have collectives"
    return kernel.collective
