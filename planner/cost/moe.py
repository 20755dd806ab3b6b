"""Time of one MoE layer: dispatch, experts, combine. The truth that solver and checker share.

For a placement, the rows of a rank are the choices of its experts, each shared evenly by the
expert's copies. Experts touched in a step follow from the shares: an expert with share p of the
choices is touched with probability 1 - (1-p)**choices, however long the window was.

Legend: S windows, R EP ranks, E experts, P slots, V link levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid
from planner.cost.instance import Instance, LayerLoad
from planner.cost.roofline import Kernel, kernel, smooth_max
from planner.cost.traffic import Exchange, visits
from planner.inputs.constants import Constants
from planner.inputs.parameters import expert_parameters
from planner.inputs.precision import ACTIVATION_BITS, WEIGHTS
from planner.inputs.topology import Topology
from planner.plan.placement import copies_E

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one MoE layer in each window [S], for one micro-batch."""

    expert_S: Floats
    dispatch_S: Floats
    combine_S: Floats
    total_S: Floats
    """Overlap taken into account."""


def rows_of(load: LayerLoad, tokens: float) -> Floats:
    """Expert choices [S, E] that a step with so many tokens makes."""
    return load.share_SE * (load.choices_S * tokens)[:, None]


def touched_of(load: LayerLoad, tokens: float, copies: Floats | float) -> Floats:
    """Probability [S, E] that one copy of each expert serves at least one row of the step."""
    choices_S1 = (load.choices_S * tokens)[:, None]
    with np.errstate(divide="ignore"):
        missed = choices_S1 * np.log1p(-np.minimum(load.share_SE / copies, 1.0))
    return np.asarray(-np.expm1(missed))


def per_rank(value_SP: Floats, slots_per_rank: int) -> Floats:
    """Sum of slots over each rank [S, R]."""
    total: Floats = value_SP.reshape(len(value_SP), -1, slots_per_rank).sum(axis=2)
    return total


@dataclass(frozen=True)
class MoeCost:
    """The MoE layers of one stage under one split: plain numbers that turn a placement into seconds."""

    num_ranks: int
    """R, EP ranks."""
    etp: int
    """GPUs that share the experts of a rank."""
    tokens: float
    """Tokens of one micro-batch in one copy of the expert grid."""
    kernel: Kernel
    flop_per_row: float
    weight_bytes: float
    """Bytes of one expert on one GPU."""
    moved_bytes_per_row: float
    exchanges: tuple[Exchange, ...]
    dispatch_bytes: float
    combine_bytes: float
    launch_s: float
    gather_s_per_row_byte: float
    """All-gather of a rank's rows among the GPUs that share its experts (etp > 1), and back."""
    gather_launch_s: float
    overlap: float

    # --- experts ---------------------------------------------------------------------------------

    def expert_s(self, rows: Floats, touched: Floats, slots: Floats | float) -> Floats:
        """Seconds of ranks that serve so many rows with so many experts touched, of so many slots."""
        k = self.kernel
        busy = smooth_max(
            rows * (self.flop_per_row * k.s_per_flop),
            touched * (self.weight_bytes * k.s_per_byte),
            k.exponent,
        )
        moved = rows * (self.moved_bytes_per_row * k.s_per_moved_byte)
        return np.asarray(k.base_s + k.per_expert_s * slots + busy + moved)

    def expert_light_s(self, rows: Floats, touched: Floats) -> Floats:
        """Speed of light of the same work."""
        k = self.kernel
        flop_s = rows * (self.flop_per_row * k.light_s_per_flop)
        bytes_s = (touched * self.weight_bytes) * k.light_s_per_byte
        return np.maximum(flop_s, bytes_s)

    # --- traffic ---------------------------------------------------------------------------------

    @cached_property
    def has_exchange(self) -> bool:
        """Whether tokens travel between EP ranks at all."""
        return self.num_ranks > 1

    def volume_S(self, load: LayerLoad, expert_P: Ints, rows_SR: Floats) -> Floats:
        """Seconds per byte of a copy on the slowest unit of any level [S]."""
        if not self.has_exchange:
            return np.zeros(len(rows_SR))
        shard = 1.0 / self.etp  # each of the etp groups carries its part of the tokens
        worst = np.zeros(len(rows_SR))
        for exchange in self.exchanges:
            rank_SR, domain_SD = self._copies(exchange, load, expert_P, rows_SR)
            seconds_SU = exchange.unit_seconds_SU(rank_SR * shard, None if domain_SD is None else domain_SD * shard)
            worst = np.maximum(worst, seconds_SU.max(axis=1))
        return worst

    def _copies(
        self, exchange: Exchange, load: LayerLoad, expert_P: Ints, rows_SR: Floats
    ) -> tuple[Floats, Floats | None]:
        if exchange.ranks_share_volume:
            return rows_SR, None
        part_ER = self.part_on_ranks(load, expert_P)
        rank_SR = visits(load, part_ER) * self.tokens
        if exchange.dedup == "gpu" or exchange.num_domains == 1:
            return rank_SR, None
        part_ED = np.einsum("er,rd->ed", part_ER, exchange.in_domain_RD)
        return rank_SR, visits(load, part_ED) * self.tokens

    def part_on_ranks(self, load: LayerLoad, expert_P: Ints) -> Floats:
        """Share of each expert's copies on each rank [E, R]."""
        num_experts = load.share_SE.shape[1]
        slots = len(expert_P) // self.num_ranks
        filled = np.flatnonzero(expert_P >= 0)
        count_ER = np.zeros((num_experts, self.num_ranks))
        np.add.at(count_ER, (expert_P[filled], filled // slots), 1.0)
        return np.asarray(count_ER / np.maximum(count_ER.sum(axis=1, keepdims=True), 1.0))

    @cached_property
    def exchange_launch_s(self) -> float:
        """Constant time of one dispatch (or combine)."""
        gather = self.gather_launch_s if self.etp > 1 else 0.0
        if not self.has_exchange:
            return gather
        return gather + self.launch_s + max(exchange.latency_s for exchange in self.exchanges)

    # --- the layer -------------------------------------------------------------------------------

    def rank_load(self, load: LayerLoad, expert_P: Ints) -> tuple[Floats, Floats, Ints]:
        """Rows [S, R], experts touched [S, R] and filled slots [R] of each rank."""
        num_experts = load.share_SE.shape[1]
        slots = len(expert_P) // self.num_ranks
        copies = np.maximum(copies_E(expert_P, num_experts), 1).astype(float)
        rows_SE = rows_of(load, self.tokens) / copies
        touched_SE = touched_of(load, self.tokens, copies)
        empty = expert_P < 0
        rows_SP = np.where(empty, 0.0, rows_SE[:, expert_P])
        touched_SP = np.where(empty, 0.0, touched_SE[:, expert_P])
        filled_R = (~empty).reshape(self.num_ranks, slots).sum(axis=1)
        return per_rank(rows_SP, slots), per_rank(touched_SP, slots), filled_R

    def layer(self, load: LayerLoad, expert_P: Ints) -> LayerTimes:
        """Times of a layer with this placement."""
        rows_SR, touched_SR, filled_R = self.rank_load(load, expert_P)
        expert_S = self.expert_s(rows_SR, touched_SR, filled_R.astype(float)).max(axis=1)
        volume_S = self.volume_S(load, expert_P, rows_SR)
        gather_S = rows_SR.max(axis=1) * self.gather_s_per_row_byte
        per_byte_S = volume_S + gather_S
        return self.times(expert_S, per_byte_S)

    def times(self, expert_S: Floats, per_byte_S: Floats) -> LayerTimes:
        """Put expert time and the slowest unit's seconds per byte together."""
        dispatch_S = self.exchange_launch_s + per_byte_S * self.dispatch_bytes
        combine_S = self.exchange_launch_s + per_byte_S * self.combine_bytes
        traffic_S = dispatch_S + combine_S
        hidden_S = self.overlap * np.minimum(expert_S, traffic_S)
        return LayerTimes(expert_S, dispatch_S, combine_S, expert_S + traffic_S - hidden_S)


def moe_cost(instance: Instance, grid: Grid) -> MoeCost:
    """Constants of the MoE layers of a stage."""
    model, constants, topology = instance.model, instance.constants, instance.topology
    split = grid.split
    precision = constants.precision
    hidden, width = model.moe.expert_hidden_size(model.hidden_size), model.moe.intermediate_size // split.etp
    parameters = expert_parameters(model.moe, model.hidden_size, split.etp)
    matrices = 3 if model.moe.gated else 2
    efficiency = constants.efficiency.experts
    per_byte_V = link_seconds_per_byte(constants, topology)
    latency_s_V = tuple(link.latency.value for link in topology.links)
    etp_level = grid.etp_level()
    gather = 0.0
    if etp_level is not None:
        speed = topology.links[etp_level].bandwidth.value * _reached(constants, topology, etp_level, collective=True)
        gather = (split.etp - 1) / split.etp / speed
    return MoeCost(
        num_ranks=split.ep,
        etp=split.etp,
        tokens=instance.step_tokens / (split.micro_batches * split.edp),
        kernel=kernel(topology.gpu, efficiency.value, precision.experts, efficiency.basis, efficiency.source),
        flop_per_row=2.0 * matrices * hidden * width,
        weight_bytes=float(parameters * WEIGHTS[precision.experts].bits / 8),
        # A row is read and written once (H each); between the matrices `matrices` rows of F pass.
        moved_bytes_per_row=2.0 * (2 * hidden + matrices * width),
        exchanges=tuple(
            Exchange(group, constants.communication.dedup, per_byte_V, latency_s_V, topology.ports)
            for group in grid.ep_groups
        ),
        dispatch_bytes=float(hidden * ACTIVATION_BITS[precision.dispatch] / 8) + constants.kernel.header_bytes,
        combine_bytes=float(hidden * ACTIVATION_BITS[precision.combine] / 8) + constants.kernel.header_bytes,
        launch_s=constants.kernel.launch.value,
        gather_s_per_row_byte=gather,
        gather_launch_s=0.0 if etp_level is None else collective_launch_s(constants, topology, etp_level),
        overlap=constants.efficiency.overlap.value,
    )


def link_seconds_per_byte(constants: Constants, topology: Topology) -> tuple[float, ...]:
    """Seconds per byte that the communication kernel needs at each level."""
    return tuple(
        1.0 / (link.bandwidth.value * _reached(constants, topology, level, collective=False))
        for level, link in enumerate(topology.links)
    )


def _reached(constants: Constants, topology: Topology, level: int, *, collective: bool) -> float:
    """Part of a level's bandwidth that large messages reach: measured on the link, else the kernel's."""
    measured = topology.links[level].efficiency
    if measured is not None:
        return float(measured.value)
    source = constants.collectives if collective else constants.kernel
    inside = topology.ports[level] == 0
    return float((source.scale_up if inside else source.scale_out).value)


def collective_seconds_per_byte(constants: Constants, topology: Topology, level: int) -> float:
    """Seconds per byte of a tensor-parallel collective whose outermost level is this one."""
    return 1.0 / (topology.links[level].bandwidth.value * _reached(constants, topology, level, collective=True))


def collective_launch_s(constants: Constants, topology: Topology, level: int) -> float:
    """Constant time of one collective: launch, and the latency of its outermost level."""
    return float(constants.collectives.launch.value + topology.links[level].latency.value)
