"""The MoE layers of a stage bound to the machine: their kernels, exchange and constants as `MoeCost`.

Legend: R EP ranks, G GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.collectives import Blocks
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.moe import MoeCost
from planner.cost.roofline import Kernel, kernel, slowest_kernel
from planner.cost.sharing import Sharing
from planner.cost.term import NOTHING, Term
from planner.cost.traffic import Exchange, exchange_of, no_exchange
from planner.inputs.kernels import OneWay
from planner.inputs.parameters import expert_parameters
from planner.inputs.precision import ACTIVATION_BITS, WEIGHTS

Ints = NDArray[np.int64]
_NO_GATHER: Final = (0.0, 0.0)


def moe_cost(instance: Instance, grid: Grid, beside_s: float = 0.0) -> MoeCost:
    """Constants of the MoE layers of a stage.

    Args:
        instance: model, machine, work and constants.
        grid: the GPUs of the stage.
        beside_s: what `MoeCost.beside_s` says.
    """
    model, constants, split = instance.model, instance.constants, grid.split
    precision = constants.precision
    hidden, width = model.moe.expert_hidden_size(model.hidden_size), model.moe.intermediate_size // split.etp
    parameters = expert_parameters(model.moe, model.hidden_size, split.etp)
    matrices = 3 if model.moe.gated else 2
    gathers, copy_rule = instance.gathers(split), instance.copy_rule(split)
    header = 0 if gathers else constants.kernel.header_bytes
    dispatch_bytes = float(hidden * ACTIVATION_BITS[precision.dispatch] / 8) + header
    combine_bytes = float(hidden * ACTIVATION_BITS[precision.combine] / 8) + header
    tokens = instance.step_tokens / (split.micro_batches * split.edp)
    flop_per_row = 2.0 * matrices * hidden * width
    weight_bytes = float(parameters * WEIGHTS[precision.experts].bits / 8)
    # A row is read and written once (H each); between the matrices `matrices` rows of F pass.
    moved_bytes_per_row = 2.0 * (2 * hidden + matrices * width)
    local, chosen = model.moe.num_experts / split.ep, tokens * model.moe.mean_choices
    rows = chosen / split.ep
    touched = local * (1.0 - (1.0 - 1.0 / model.moe.num_experts) ** chosen)
    choices, class_R = _kernels(
        instance,
        grid,
        lambda k: k.seconds(rows * flop_per_row, touched * weight_bytes, rows * moved_bytes_per_row, local),
    )
    if gathers:
        gather = _NO_GATHER
        exchange = no_exchange(grid, constants.communication.dedup)
        dispatch, combine = _gathered(instance, grid, tokens * dispatch_bytes, tokens * combine_bytes)
    else:
        gather = Blocks(instance, grid.gpus, split.etp).linear()
        exchange = exchange_of(grid, constants.communication.dedup, constants.kernel.reach, copy_rule)
        brought = tokens / (split.ep * split.etp)
        message = brought * model.moe.mean_choices / split.ep  # copies to each rank, were all alike
        ways = ((constants.kernel.dispatch.value, dispatch_bytes), (constants.kernel.combine.value, combine_bytes))
        dispatch, combine = (
            _launches(way, exchange, brought, message * copy_bytes, grid, gather[0]) for way, copy_bytes in ways
        )
    return MoeCost(
        num_ranks=split.ep,
        etp=split.etp,
        tokens=tokens,
        kernels_C=choices[0],
        class_R=class_R,
        flop_per_row=flop_per_row,
        weight_bytes=weight_bytes,
        moved_bytes_per_row=moved_bytes_per_row,
        exchange=exchange,
        sharing=Sharing(copy_rule, exchange.node_R),
        dispatch_bytes=dispatch_bytes,
        combine_bytes=combine_bytes * constants.kernel.combine.value.slower,
        combine_light_bytes=combine_bytes,
        dispatch_fixed=dispatch,
        combine_fixed=combine,
        gather_s_per_row_byte=gather[1],
        overlap=min(instance.overlap(kind).value for kind in set(grid.kind_G.tolist())),
        experts_hide=constants.communication.overlap == "two_batch",
        beside_s=beside_s,
        other_kernels=choices[1:],
    )


def _launches(
    way: OneWay, exchange: Exchange, brought: float, message_bytes: float, grid: Grid, gather_s: float
) -> Term:
    """What an all-to-all takes besides its bytes.

    Args:
        way: the library's constants.
        exchange: the all-to-alls of the stage.
        brought: tokens that come from each GPU.
        message_bytes: what it sends to each rank, on the mean.
        grid: the stage.
        gather_s: what a gather among the GPUs of a rank takes besides its bytes.
    """
    ranks = exchange.num_ranks
    seconds = way.launch + exchange.latency_s + way.per_doubling * math.log2(ranks) + way.per_token * brought
    seconds += way.handshake * message_bytes / (message_bytes + way.handshake_bytes)
    outermost = max(level for group in grid.ep_groups for level in group.levels_used)
    if outermost > grid.topology.scale_up_level:
        seconds += way.between
    else:  # a row's seconds per byte are those of its part that comes from other ranks
        seconds += way.copied * message_bytes * float(exchange.row_s_R.max()) * ranks / (ranks - 1)
    return Term("", seconds + gather_s, 0.0, "assumed", "")


def _gathered(instance: Instance, grid: Grid, dispatched: float, combined: float) -> tuple[Term, Term]:
    """All tokens of an expert grid to all its GPUs, and the sum of their results back.

    Where a tensor-parallel group has all these GPUs, each already has all tokens after the attention,
    and needs all results.
    """
    split = grid.split
    blocks = Blocks(instance, grid.gpus, split.ep * split.etp)
    if split.tp % blocks.size == 0:
        return NOTHING, blocks.term("all_reduce", combined)
    return blocks.term("all_gather", dispatched), blocks.term("reduce_scatter", combined)


def _kernels(
    instance: Instance, grid: Grid, balanced_s: Callable[[Kernel], float]
) -> tuple[tuple[tuple[Kernel, ...], ...], Ints]:
    """The kernels among which a layer has its choice, each of all classes of ranks, and the class of each rank.

    An engine runs one kernel on all ranks with GPUs of a kind. A minimum taken rank by rank would not be convex, on
    which bounds and tangents rest. A rank waits for the slowest of its GPUs, in all copies of the grid.

    Args:
        instance: model, machine, work and constants.
        grid: the GPUs of the stage.
        balanced_s: seconds that a kernel takes on a rank with an equal part of rows and experts, all experts alike;
            the choice that is fastest there comes first.
    """
    split, weights = grid.split, instance.constants.precision.experts
    kinds_R = grid.kind_G.reshape(split.edp, split.ep, split.etp).transpose(1, 0, 2).reshape(split.ep, -1)
    together_R = [tuple(sorted(set(kinds))) for kinds in kinds_R.tolist()]

    def known(kind: int) -> tuple[Kernel, ...]:
        gpu, curves = instance.topology.kinds[kind], instance.curves(kind, "experts", weights)
        return tuple(sorted((kernel(gpu, curve, weights) for curve in curves), key=balanced_s))

    # By figures alone: GPUs that differ in memory only are alike, and take the same kernel.
    known_of = {kind: known(kind) for kind in dict.fromkeys(kind for kinds in together_R for kind in kinds)}
    figures_of = {kind: tuple(replace(k, source="") for k in kernels) for kind, kernels in known_of.items()}
    alike = list(dict.fromkeys(figures_of.values()))
    one_of = {kind: next(other for other in figures_of if figures_of[other] == figures_of[kind]) for kind in figures_of}
    classes = list(dict.fromkeys(tuple(dict.fromkeys(one_of[kind] for kind in kinds)) for kinds in together_R))
    choices = []
    for numbers in product(*(range(len(figures)) for figures in alike)):
        chosen = {kind: known_of[kind][numbers[alike.index(figures_of[kind])]] for kind in known_of}
        choices.append(tuple(slowest_kernel([chosen[kind] for kind in kinds]) for kinds in classes))
    class_R = [classes.index(tuple(dict.fromkeys(one_of[kind] for kind in kinds))) for kinds in together_R]
    return tuple(choices), np.array(class_R, dtype=np.int64)
