"""The heat maps: rows of every rank in every layer, and bytes between GPUs and nodes, before and after.

Legend: L MoE layers, R EP ranks, G GPUs, N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.inputs.units import format_bytes, format_number_of, format_percent
from planner.plan.plan import Plan
from planner.report.html import charts
from planner.report.html.sections import MOST_CELLS, Chart, Section, Table
from planner.review.unbooked import Traffic, Unbooked

_MOST_NODES = 16
_TABLE_COLUMNS = 64
_NAMES = ("linear layout", "plan")

Floats = NDArray[np.float64]


def load(plan: Plan, found: Unbooked | str) -> Section | None:
    """Rows of every rank in every traced layer; None without a trace.

    Args:
        plan: the plan.
        found: what the plan does not book, or why that is not known.
    """
    traced = set(plan.inputs.traced_layer_ids)
    layers = [(row, layer) for row, layer in enumerate(plan.placement.layer_ids) if layer in traced]
    if not plan.predicted.layer_imbalance or plan.split.ep == 1:
        return None
    says = ["Rows that a rank serves over the mean of its layer, all windows together."]
    tables = {_NAMES[1]: plan.predicted.rank_tokens}
    if isinstance(found, str):
        says.append(f"The linear layout cannot be shown beside it: {found}")
    else:
        tables = {_NAMES[0]: found.linear_rank_tokens, **tables}
    merged = -(-len(tables) * len(layers) * plan.split.ep // MOST_CELLS)
    if merged > 1:
        says.append(f"Each cell stands for the most loaded of {merged} neighbouring ranks.")
    cells, gpus = [], {layer: _gpus_of_ranks(plan, layer) for _, layer in layers}
    for name, tokens_LR in tables.items():
        for row, layer in layers:
            for rank, (ratio, rows) in enumerate(_worst(tokens_LR[row], merged)):
                first = rank * merged
                ranks = f"EP ranks {first}..{first + merged - 1}"
                if merged == 1:
                    ranks = f"EP rank {first} ({gpus[layer][rank]})"
                told = f"{name}, layer {layer}, {ranks}: {ratio:.3f} x mean, {format_number_of(rows, 'row')}"
                cells.append({"of": name, "x": first, "y": layer, "value": round(ratio, 4), "told": told})
    chart = charts.heat_maps(cells, ("EP rank", "layer"), len(layers), ratio=True)
    label = "Heat map of rows over the mean, by layer and EP rank"
    steps = charts.RATIO_STEPS
    words = [f"< {steps[0]:g}", *(f"{low:g}–{high:g}" for low, high in pairwise(steps)), f"≥ {steps[-1]:g}"]
    swatches = tuple(zip(charts.RATIO_COLOURS, words, strict=True))
    drawn = (Chart(chart, label),)
    return Section("load", "Load of every rank, before and after", tuple(says), drawn, _ratio_tables(plan), swatches)


def _gpus_of_ranks(plan: Plan, layer: int) -> list[str]:
    """The GPUs of each EP rank in the stage of a layer, copies of the grid and shards of an expert together."""
    split = plan.split
    stage = next(stage for stage in plan.stages if stage.layers[0] <= layer < stage.layers[1])
    held: list[list[int]] = [[] for _ in range(split.ep)]
    for index, gpu in enumerate(stage.gpus):
        held[index // split.etp % split.ep].append(gpu)
    return [
        f"GPU{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids[:4]))}" + ", ..." * (len(ids) > 4) for ids in held
    ]


def _worst(tokens_R: Sequence[int], merged: int) -> Iterator[tuple[float, int]]:
    """Of each `merged` neighbouring ranks the one with most rows: rows over the mean, and rows."""
    mean = sum(tokens_R) / len(tokens_R) or 1.0
    for first in range(0, len(tokens_R), merged):
        most = max(tokens_R[first : first + merged])
        yield most / mean, most


def _ratio_tables(plan: Plan) -> tuple[Table, ...]:
    if plan.split.ep > _TABLE_COLUMNS:
        return ()
    traced, rows = set(plan.inputs.traced_layer_ids), []
    for layer, tokens_R in zip(plan.placement.layer_ids, plan.predicted.rank_tokens, strict=True):
        if layer in traced:
            rows.append((str(layer), *(f"{ratio:.3f}" for ratio, _ in _worst(tokens_R, 1))))
    headings = ("layer", *(str(rank) for rank in range(plan.split.ep)))
    return (Table("Rows over the mean, plan, by EP rank", headings, tuple(rows), tuple(range(plan.split.ep + 1))),)


def traffic(plan: Plan, found: Unbooked | str) -> Section | None:
    """Bytes between nodes and between GPUs; None where no placement changes what travels."""
    title = "Traffic between GPUs"
    if isinstance(found, str):
        return Section("traffic", title, (f"Not shown: {found}",))
    one = found.traffic
    if one is None:
        return None
    drawn, says = tuple(_traffic_charts(one)), tuple(_traffic_says(plan, one))
    return Section("traffic", title, says, drawn, tuple(_by_node(one)), _amounts(one) if drawn else ())


def _amounts(one: Traffic) -> tuple[tuple[str, str], ...]:
    """What the colours of the heat maps mean: equal parts of the largest amount."""
    _, linear_UU, plan_UU = _units(one)
    most, count = max(linear_UU.max(), plan_UU.max()), len(charts.AMOUNT_COLOURS)
    words = (f"to {_bytes(float(most) * (number + 1) / count)}" for number in range(count))
    return tuple(zip(charts.AMOUNT_COLOURS, words, strict=True))


def _traffic_says(plan: Plan, one: Traffic) -> Iterator[str]:
    dedup = plan.inputs.cost.communication.dedup
    yield (
        f"Bytes of one step's dispatch in {one.layers} traced layers, mean over windows, one copy of a token per "
        f"{dedup} visited; combine sends the same copies back."
    )
    total, crossing = float(one.plan_GG.sum()), one.between_nodes(one.plan_GG)
    before = one.between_nodes(one.linear_GG)
    if crossing:
        part = format_percent(crossing / total, 0)
        yield f"Between nodes: {_bytes(crossing)} ({part} of all); linear layout {_bytes(before)}."
    busiest = _busiest(one.plan_GG), _busiest(one.linear_GG)
    yield f"The busiest GPU receives {_bytes(busiest[0])}; in the linear layout {_bytes(busiest[1])}."
    if _units(one)[0] == "node":
        yield f"{len(one.plan_GG)} GPUs are too many for a map of pairs: nodes are shown, the diagonal stays inside."


def _busiest(bytes_GG: Floats) -> float:
    return float(bytes_GG.sum(axis=1).max())


def _bytes(amount: float) -> str:
    return format_bytes(round(amount))


def _traffic_charts(one: Traffic) -> Iterator[Chart]:
    unit, *both = _units(one)
    count = len(both[0])
    if 2 * count * count > MOST_CELLS:
        return
    cells = []
    for name, bytes_UU in zip(_NAMES, both, strict=True):
        for to in range(count):
            for sender in range(count):
                amount = float(bytes_UU[to, sender])
                told = f"{name}, {unit} {sender} to {unit} {to}: {_bytes(amount)}"
                cells.append({"of": name, "x": to, "y": sender, "value": round(amount), "told": told})
    label = f"Heat map of bytes from each {unit} to each other"
    yield Chart(charts.heat_maps(cells, (f"to {unit}", f"from {unit}"), count, ratio=False), label)


def _units(one: Traffic) -> tuple[str, Floats, Floats]:
    """What the map shows: GPUs, or nodes where there are too many GPUs; linear layout, then plan."""
    if 2 * one.plan_GG.size <= MOST_CELLS:
        return "GPU", one.linear_GG, one.plan_GG
    return "node", one.by_node(one.linear_GG), one.by_node(one.plan_GG)


def _by_node(one: Traffic) -> Iterator[Table]:
    nodes = np.unique(one.node_G).tolist()
    if not 1 < len(nodes) <= _MOST_NODES:
        return
    headings = ("from node", *(f"to {node}" for node in nodes))
    for name, bytes_GG in zip(reversed(_NAMES), (one.plan_GG, one.linear_GG), strict=True):
        bytes_NN = one.by_node(bytes_GG)
        rows = tuple((str(sender), *(_bytes(float(bytes_NN[to, sender])) for to in nodes)) for sender in nodes)
        caption = f"Bytes between nodes, {name}; the diagonal stays inside"
        yield Table(caption, headings, rows, tuple(range(len(nodes) + 1)), is_folded=False)
