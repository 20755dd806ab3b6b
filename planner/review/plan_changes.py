"""Two plans of one deployment beside each other: split, time, balance, memory, traffic, experts moved.

Legend: L layers, G GPUs, V link levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.cost.step import SplitCost
from planner.cost.wires import step_bytes_V
from planner.inputs.units import format_bytes, format_percent, format_seconds
from planner.plan.decision import Decided, cuts_of, placement_of
from planner.plan.finding import CLOSE
from planner.plan.plan import HeldOutRecord, Predicted, SolverRecord

_LAYERS_SHOWN: Final = 5


@dataclass(frozen=True)
class Side:
    """A plan, as far as its figures are known."""

    decided: Decided
    predicted: Predicted
    cost: SplitCost | None = None
    """None: its inputs are not at hand any more."""
    solver: SolverRecord | None = None
    held_out: HeldOutRecord | None = None


@dataclass(frozen=True)
class Row:
    """One figure that differs."""

    what: str
    golden: str
    now: str
    change: str = ""


def changes(golden: Side, now: Side) -> tuple[Row, ...]:
    """Everything that differs, most important first; empty if nothing does."""
    rows = [*_split(golden.decided, now.decided), *_figures(golden, now), *_memory(golden, now)]
    return (*rows, *_traffic(golden, now), *_terms(golden.predicted, now.predicted), *_moved(golden, now))


def _split(golden: Decided, now: Decided) -> Iterator[Row]:
    if golden.split != now.split:
        yield Row("split", golden.split.text, now.split.text)
    before, after = golden.placement.redundant_experts, now.placement.redundant_experts
    if before != after:
        yield Row("copies per layer", str(before), str(after), f"{after - before:+d}")
    elif golden.split == now.split and golden.stages != now.stages:
        old, new = (", ".join(f"{s.layers[0]}..{s.layers[1] - 1}" for s in one.stages) for one in (golden, now))
        yield Row("layers of the stages", old, new, "other GPUs" if old == new else "")


def _figures(golden: Side, now: Side) -> Iterator[Row]:
    before, after = golden.predicted, now.predicted
    yield from _seconds("step", before.step_s, after.step_s)
    yield from _seconds("slowest window", before.worst_s, after.worst_s)
    if golden.solver is not None and now.solver is not None:
        yield from _seconds("bound", golden.solver.bound_s, now.solver.bound_s)
        old, new = (format_percent(solver.gap, 2) for solver in (golden.solver, now.solver))
        if old != new:
            yield Row("gap", old, new)
    yield from _number("balancedness", before.balancedness, after.balancedness)
    held = [None if side.held_out is None else side.held_out.imbalance["plan"] for side in (golden, now)]
    if golden.solver is not None:  # a plan made by hand is not judged on held-out windows
        yield from _number("max/mean, held out", *held)


def _memory(golden: Side, now: Side) -> Iterator[Row]:
    before, after = (max(side.predicted.memory_bytes) for side in (golden, now))
    if before != after:
        sign = "-" if after < before else "+"
        yield Row(
            "memory, most", format_bytes(before), format_bytes(after), f"{sign}{format_bytes(abs(after - before))}"
        )


def _traffic(golden: Side, now: Side) -> Iterator[Row]:
    """Bytes of dispatch and combine in a step, by link level."""
    if golden.cost is None or now.cost is None:
        return
    by_level = []
    for side, cost in ((golden, golden.cost), (now, now.cost)):
        names = [link.level for link in cost.instance.topology.links]
        bytes_V = step_bytes_V(cost, cuts_of(side.decided), placement_of(side.decided))
        by_level.append(dict(zip(names, bytes_V.tolist(), strict=True)))
    for level in dict.fromkeys([*by_level[0], *by_level[1]]):
        before, after = (levels.get(level, 0.0) for levels in by_level)
        if not _close(before, after):
            yield Row(f"traffic, {level}", format_bytes(before), format_bytes(after), _percent(before, after))


def _terms(before: Predicted, after: Predicted) -> Iterator[Row]:
    old, new = ({term.name: term.seconds for term in side.terms} for side in (before, after))
    for name in dict.fromkeys([*old, *new]):
        yield from _seconds(name, old.get(name, 0.0), new.get(name, 0.0))


def _moved(golden: Side, now: Side) -> Iterator[Row]:
    """Experts that a GPU holds now and did not hold before."""
    before, after = held_by_gpu(golden.decided), held_by_gpu(now.decided)
    held = sum(len(experts) for experts in after.values())
    arrived = [one for gpu, experts in after.items() for one in experts - before.get(gpu, set())]
    if not arrived:
        return
    layers = Counter(layer for layer, _, _ in arrived)
    worst = sorted(layers.items(), key=lambda item: (-item[1], item[0]))[:_LAYERS_SHOWN]
    most = ", ".join(f"{layer} ({count})" for layer, count in worst)
    weight = ""
    if now.cost is not None:
        weight = f", {format_bytes(len(arrived) * now.cost.stages[0].moe.weight_bytes)}"
    yield Row("experts moved", "", f"{len(arrived):,} of {held:,}{weight}", f"most in layers {most}")


def held_by_gpu(decided: Decided) -> dict[int, set[tuple[int, int, tuple[int, int]]]]:
    """Layer, expert and which part of how many of it, for each GPU."""
    split, record = decided.split, decided.placement
    held: dict[int, set[tuple[int, int, tuple[int, int]]]] = {}
    for stage in decided.stages:
        rows = [
            (layer, np.array(row).reshape(split.ep, -1))
            for layer, row in zip(record.layer_ids, record.physical_to_logical, strict=True)
            if stage.layers[0] <= layer < stage.layers[1]
        ]
        for index, gpu in enumerate(stage.gpus):
            part, rank = (index % split.etp, split.etp), index // split.etp % split.ep
            own = held.setdefault(gpu, set())
            for layer, expert_RP in rows:
                own.update((layer, expert, part) for expert in expert_RP[rank].tolist() if expert >= 0)
    return held


def _seconds(what: str, before: float, after: float) -> Iterator[Row]:
    if not _close(before, after):
        yield Row(what, format_seconds(before), format_seconds(after), _percent(before, after))


def _number(what: str, before: float | None, after: float | None) -> Iterator[Row]:
    old, new = ("unknown" if value is None else f"{value:.3f}" for value in (before, after))
    if old != new:
        yield Row(what, old, new, "" if before is None or after is None else f"{after - before:+.3f}")


def _percent(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.2f} %" if before else "new"


def _close(before: float, after: float) -> bool:
    return abs(after - before) <= CLOSE * max(abs(before), abs(after))
