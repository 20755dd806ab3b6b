"""Which hidden layer each row of a recording is, and which rows are no MoE layer.

Legend: L rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place
from planner.inputs.model import Model
from planner.trace.count_faults import listed
from planner.trace.faults import Fault
from planner.trace.importers.found import Found, Given

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """The rows to keep, with their hidden-layer indices, and what is wrong or should be said."""

    keep_L: Bools
    layer_ids: Ints
    """Of the rows kept."""
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]


def place_rows(found: Found, routed_L: Bools, given: Given) -> Placed:
    """Number the rows of a recording by hidden layer.

    Args:
        found: the recording.
        routed_L: rows in which some token was routed; the others hold nothing, or zeros.
        given: what the user says.
    """
    where = Place(str(found.path))
    model, rows = given.model, len(routed_L)
    notes: list[str] = []
    kind = _kind(found, routed_L, given, notes)
    if kind == "moe" and model is None:
        notes.append("rows are numbered by MoE layer; without --model they become layers 0, 1, ... [layer-index]")
    if model is not None and found.layer_ids is None:
        fault = _wrong_kind(kind, rows, routed_L, model, where)
        if fault:
            return Placed(routed_L, np.flatnonzero(routed_L), (fault,), ())
    labels = _labels(found, kind, rows, model) + given.layer_offset
    if model is None:
        if not routed_L.all():
            dropped = labels[~routed_L]
            notes.append(f"layers {listed(dropped)} hold no routing and are left out as dense [dense-layer]")
        return Placed(routed_L, labels[routed_L], (), tuple(notes))
    moe_L = np.isin(labels, model.moe_layer_ids)
    faults = _against(labels, moe_L, routed_L, model, where)
    filled = labels[~moe_L & ~routed_L]
    if len(filled):
        notes.append(f"rows of dense layers {listed(filled)} left out [dense-layer]")
    keep_L = moe_L & routed_L
    if not (moe_L & ~routed_L).any():
        faults += _stages(labels[keep_L], model, where)
    return Placed(keep_L, labels[keep_L], tuple(faults), tuple(notes))


def _kind(found: Found, routed_L: Bools, given: Given, notes: list[str]) -> Literal["hidden", "moe"]:
    if found.layer_ids is not None:
        return given.rows or "hidden"
    if given.rows is not None:
        return given.rows
    if found.rows != "either":
        return found.rows
    model = given.model
    if model is None:
        if routed_L.all():
            notes.append("rows become layers 0, 1, ...; where dense layers come first, give --model [layer-index]")
        return "hidden"
    return "hidden" if len(routed_L) == model.num_layers else "moe"


def _wrong_kind(kind: str, rows: int, routed_L: Bools, model: Model, where: Place) -> Fault | None:
    hidden, moe = model.num_layers, len(model.moe_layer_ids)
    if kind == "hidden" and rows == moe and moe < hidden and routed_L.all():
        message = (
            f"{rows} rows, as many as {model.name} has MoE layers of its {hidden} layers: not hidden-layer indices"
        )
        return Fault("layer-index", message, where, "say so with --rows moe")
    if kind == "moe" and rows == hidden and moe < hidden:
        message = f"{rows} rows, as many as {model.name} has layers, {moe} of them MoE: not numbered by MoE layer"
        return Fault("layer-index", message, where, "say so with --rows hidden")
    if kind == "moe" and rows > moe:
        message = f"{rows} rows, but {model.name} has {moe} MoE layers"
        return Fault("layer-index", message, where, "another model, or rows of next-token modules: leave them out")
    return None


def _labels(found: Found, kind: str, rows: int, model: Model | None) -> Ints:
    labels = np.arange(rows, dtype=np.int64) if found.layer_ids is None else np.array(found.layer_ids, dtype=np.int64)
    if kind == "moe" and model is not None:
        return np.array(model.moe_layer_ids, dtype=np.int64)[np.minimum(labels, len(model.moe_layer_ids) - 1)]
    return labels


def _against(labels: Ints, moe_L: Bools, routed_L: Bools, model: Model, where: Place) -> list[Fault]:
    faults = []
    strange = labels[routed_L & ~moe_L]
    if len(strange):
        message = f"layers {listed(strange)} are routed, but are no MoE layers of {model.name}"
        cure = "numbered by MoE layer? --rows moe; by stage? --layer-offset; else another model"
        faults.append(Fault("layer-index", message, where, cure))
    silent = labels[moe_L & ~routed_L]
    if len(silent):
        message = f"MoE layers {listed(silent)} of {model.name} were never recorded: their rows hold nothing"
        cure = "record again; with pipeline stages every stage must write its own file; accepted, they are left out"
        faults.append(Fault("zero-layer", message, where, cure))
    return faults


def _stages(kept: Ints, model: Model, where: Place) -> list[Fault]:
    """Only the first MoE layers: one stage's count of its own layers, or a file that was cut off."""
    moe = np.array(model.moe_layer_ids)
    if not 0 < len(kept) < len(moe) or not np.array_equal(kept, moe[: len(kept)]):
        return []
    message = f"only the first {len(kept)} of {len(moe)} MoE layers of {model.name}"
    cure = (
        "did pipeline stages number their layers from 0 and overwrite each other? record without pipeline stages, "
        "or import each stage with --layer-offset; else the file is cut off"
    )
    return [Fault("pipeline-ranks", message, where, cure)]
