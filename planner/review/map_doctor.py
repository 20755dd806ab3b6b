"""Anybody's map of experts, examined: what is wrong with it, and how it would balance on a trace.

Legend: S windows, L layers, P slots, E experts, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.capacity.verdict import imbalance, rank_loads
from planner.errors import InputError, Place, Problem, UsageError
from planner.export.maps import FileMap, Row, placement_of_map
from planner.export.table import MAPS
from planner.export.write import read_map_file
from planner.inputs.model import Model
from planner.inputs.workload import Phase
from planner.plan.placement import Placement, copies_E, linear, slots_of_ranks
from planner.plan.plan import Plan
from planner.trace.consistency import against_model
from planner.trace.native import read_trace
from planner.trace.windows import Windows, cut

Ints = NDArray[np.int64]

_SHOWN: Final = 5
STEP_TOKENS: Final = 4096
"""Tokens of a window where no plan says how many a step has."""


@dataclass(frozen=True)
class About:
    """What is known beside the file; None: not given."""

    model: Model | None = None
    ep: int | None = None
    plan: Plan | None = None
    traces: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Balance:
    """How a map spreads the choices of a trace over its ranks, copies sharing evenly; and the linear layout."""

    balancedness: float
    """Sum of means over sum of maxima, as vLLM logs it."""
    max_mean: float
    """Mean over layers and windows."""
    worst_layer: int
    worst: float
    """Mean over windows of max/mean in that layer."""
    linear_max_mean: float
    """Of the linear layout without copies."""
    windows: int


@dataclass(frozen=True)
class Examined:
    """What was found in a map."""

    findings: tuple[str, ...]
    notes: tuple[str, ...]
    """What the file says, and what could not be examined."""
    balance: Balance | None


def examine(path: Path, name: str, about: About) -> Examined:
    """Examine a map file.

    Args:
        path: the file.
        name: its format, one of `MAPS`.
        about: model, EP size, plan and traces, as far as they are given.

    Raises:
        UsageError: no such format or file, or options that do not go together.
        InputError: the engine would not even read it, or a trace is broken.
    """
    if name not in MAPS:
        raise UsageError(f"--format {name}: unknown format", hint=f"known: {', '.join(MAPS)}")
    if about.traces and about.model is None:
        raise UsageError("--trace needs --model or --plan: rows of a map are named by MoE layers of a model")
    found = read_map_file(path, name)
    ranks, notes = _ranks(found, about)
    experts, named = _experts(found, about)
    notes += named
    meant = found.rows if about.model is None or not found.dense_rows else found.of_model(about.model)
    findings = [
        *_layers(found, name, about.model),
        *_lengths(found, ranks, experts, name),
        *_rows(meant, ranks, experts, name),  # rows of dense layers mean nothing
    ]
    if about.plan is not None and not findings:
        findings += _against_plan(found, about.plan)
    balance = None
    if about.traces and about.model is not None:
        if findings or ranks is None:
            why = "because of what was found" if findings else "give --ep"
            notes.append(f"balance: not computed, {why}")
        else:
            balance = _balance(placement_of_map(found, about.model, ranks), about.model, ranks, about)
    return Examined(tuple(findings), tuple(notes), balance)


def _ranks(found: FileMap, about: About) -> tuple[int | None, list[str]]:
    """EP ranks: as the file says, else as given."""
    given = about.ep if about.ep is not None else None if about.plan is None else about.plan.split.ep
    if found.num_ranks is not None:
        if given is not None and given != found.num_ranks:
            message = f"the file is for {found.num_ranks} ranks, not {given}"
            raise InputError(Problem(message, Place(found.file), "give the EP size that it was made for, or none"))
        return found.num_ranks, []
    if given is None:
        return None, ["ranks: the file does not say how many; give --ep to look for experts twice on one"]
    return given, []


def _experts(found: FileMap, about: About) -> tuple[int, list[str]]:
    if about.model is not None:
        return about.model.moe.num_experts, []
    if found.num_experts is not None:
        return found.num_experts, ["layers: give --model to see whether they are the MoE layers"]
    most = 1 + max(int(row.expert_P.max()) for row in found.rows.values())
    return most, [f"experts: taken as {most}, the highest id + 1; give --model to know them and the MoE layers"]


def _layers(found: FileMap, name: str, model: Model | None) -> Iterator[str]:
    """Rows numbered otherwise than the engine reads them, missing ones, and those too many."""
    if model is None or found.numbering == "all":
        return
    moe, hidden, rows = model.moe_layer_ids, model.num_layers, sorted(found.rows)
    if found.numbering == "moe":
        if len(rows) == hidden > len(moe):
            counted = f"{name} counts its {len(moe)} MoE layers"
            yield f"layer indexing: {hidden} rows, one for each layer of {model.name}; {counted}"
        elif rows != list(range(len(moe))):
            yield f"layers: rows {_some(rows)}, expected 0..{len(moe) - 1}, one for each MoE layer of {model.name}"
        return
    expected = list(range(hidden)) if found.dense_rows else list(moe)
    if rows == expected:
        return
    if rows == list(range(len(moe))) and len(moe) < hidden:
        wanted = (
            f"one row for each of the {hidden} layers" if found.dense_rows else f"hidden-layer indices {_some(moe)}"
        )
        yield f"layer indexing: layers are counted by MoE layer, 0..{len(moe) - 1}; {name} reads {wanted}"
        return
    missing, extra = sorted(set(expected) - set(rows)), sorted(set(rows) - set(expected))
    if missing:
        yield f"layers: {_some(missing)} missing"
    if extra:
        yield f"layers: {_some(extra)} are no {'layers' if found.dense_rows else 'MoE layers'} of {model.name}"


def _lengths(found: FileMap, ranks: int | None, experts: int, name: str) -> Iterator[str]:
    lengths = {layer: len(row.expert_P) for layer, row in found.rows.items()}
    if len(set(lengths.values())) > 1 and "uneven ranks" in MAPS[name].cannot:
        counts = sorted(set(lengths.values()))
        yield f"length: rows of {_some(counts)} slots; all layers must have equally many"
    for layer, length in lengths.items():
        if length < experts:
            yield f"length: layer {layer} has {length} slots for {experts} experts"
            return
    rule = MAPS[name].cannot.get("uneven ranks", "ranks must hold equally many")
    for layer, row in found.rows.items():
        if row.slots_R is not None:
            least, most = int(row.slots_R.min()), int(row.slots_R.max())
            if least < most and "uneven ranks" in MAPS[name].cannot:
                yield f"length: layer {layer}: ranks hold {least} to {most} experts; {rule}"
                return
        elif ranks is not None and lengths[layer] % ranks:
            yield f"length: layer {layer}: {lengths[layer]} slots mod {ranks} ranks = {lengths[layer] % ranks}; {rule}"
            return


def _rows(rows: dict[int, Row], ranks: int | None, experts: int, name: str) -> Iterator[str]:
    for layer, row in rows.items():
        wrong = row.expert_P[row.expert_P >= experts]
        if len(wrong):
            yield f"expert ids: layer {layer}: expert {wrong[0]}, but there are {experts} (0..{experts - 1})"
            continue
        missing = np.flatnonzero(copies_E(row.expert_P, experts) == 0)
        if len(missing):
            yield f"missing experts: layer {layer}: {_some(missing.tolist())} placed nowhere"
        yield from _twice(layer, row, ranks, name)


def _twice(layer: int, row: Row, ranks: int | None, name: str) -> Iterator[str]:
    slots_R = row.slots_R
    if slots_R is None:
        if ranks is None or len(row.expert_P) % ranks:
            return
        slots_R = np.full(ranks, len(row.expert_P) // ranks)
    what = "the device loses a slot (vllm-project/vllm-ascend#9151)" if name == "vllm-ascend" else "a copy is wasted"
    for rank, experts in enumerate(np.split(row.expert_P, np.cumsum(slots_R)[:-1])):
        held, counts = np.unique(experts, return_counts=True)
        if (counts > 1).any():
            yield f"twice on a rank: layer {layer}, rank {rank}: expert {_some(held[counts > 1].tolist())}; {what}"


def _against_plan(found: FileMap, plan: Plan) -> Iterator[str]:
    placed = placement_of_map(found, plan.inputs.model, plan.split.ep)
    for layer, row, planned in zip(placed.layer_ids, placed.expert_LP, plan.placement.physical_to_logical, strict=True):
        own = _by_rank(row.tolist(), plan.split.ep)
        differ = [rank for rank, (a, b) in enumerate(zip(own, _by_rank(planned, plan.split.ep), strict=True)) if a != b]
        if differ:
            yield f"plan: layer {layer}: rank {_some(differ)} hold other experts than the plan says"


def _by_rank(row: Sequence[int], ranks: int) -> list[list[int]]:
    slots = len(row) // ranks
    return [sorted(expert for expert in row[rank * slots : (rank + 1) * slots] if expert >= 0) for rank in range(ranks)]


def _balance(placed: Placement, model: Model, ranks: int, about: About) -> Balance:
    windows = _windows(model, about)
    rows = [placed.layer_ids.index(layer) for layer in windows.layer_ids_L.tolist()]
    scale_S = 1.0 / windows.tokens_S  # windows weigh the same, however long they were
    loads_SLR = rank_loads(windows.counts_SLE, placed.expert_LP[rows], ranks) * scale_S[:, None, None]
    experts = model.moe.num_experts
    linear_P = linear(experts, slots_of_ranks(experts, ranks))
    linear_SLR = rank_loads(windows.counts_SLE, np.tile(linear_P, (len(rows), 1)), ranks)
    by_layer_L = imbalance(loads_SLR).mean(axis=0)
    worst = int(by_layer_L.argmax())
    return Balance(
        balancedness=float(loads_SLR.mean(axis=2).sum() / loads_SLR.max(axis=2).sum()),
        max_mean=float(by_layer_L.mean()),
        worst_layer=int(windows.layer_ids_L[worst]),
        worst=float(by_layer_L[worst]),
        linear_max_mean=float(imbalance(linear_SLR).mean()),
        windows=len(loads_SLR),
    )


def _windows(model: Model, about: About) -> Windows:
    traces = [read_trace(path).trace for path in about.traces]
    problems = [problem for trace in traces for problem in against_model(trace, model)]
    if problems:
        raise InputError(problems)
    phase: Phase = "decode"
    tokens = STEP_TOKENS
    if about.plan is not None:
        phase = about.plan.inputs.workload.phase
        tokens = about.plan.inputs.workload.tokens_per_gpu * about.plan.inputs.gpus
    return cut(traces, phase, tokens)


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")
