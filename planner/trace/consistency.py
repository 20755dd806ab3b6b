"""Does a trace fit the model that it is said to come from?"""

from __future__ import annotations

from planner.errors import Place, Problem
from planner.inputs.model import Model
from planner.trace.trace import Trace


def against_model(trace: Trace, model: Model) -> list[Problem]:
    """Everything in which a trace and a model disagree."""
    file = str(trace.path)
    moe = model.moe
    problems = []
    if trace.num_experts != moe.num_experts:
        message = f"{trace.num_experts} experts, but {model.name} has {moe.num_experts}"
        hint = ""
        if trace.num_experts > moe.num_experts:
            hint = "recorded with redundant experts? map physical ids back to logical ones first"
        problems.append(Problem(message, Place(file, key="num_experts"), hint))
    if trace.top_k != moe.top_k:
        message = f"top-{trace.top_k} routing, but {model.name} chooses {moe.top_k} experts per token"
        problems.append(Problem(message, Place(file, key="expert_ids")))
    known = set(model.moe_layer_ids)
    strange = [layer for layer in trace.layer_ids_L.tolist() if layer not in known]
    if strange:
        problems.append(_layers(strange, trace, model))
    return problems


def _layers(strange: list[int], trace: Trace, model: Model) -> Problem:
    where = Place(str(trace.path), key="layer_ids")
    shown = ", ".join(str(layer) for layer in strange[:6]) + (", ..." if len(strange) > 6 else "")
    first, last = model.moe_layer_ids[0], model.moe_layer_ids[-1]
    message = f"layers {shown} are not MoE layers of {model.name} (MoE: {first}..{last})"
    if len(trace.layer_ids_L) == len(model.moe_layer_ids):
        hint = "numbered by MoE layer? give layer_ids as hidden-layer indices, dense layers counted"
    elif len(trace.layer_ids_L) == model.num_layers:
        hint = "rows of dense layers are filler: leave them out and give layer_ids"
    else:
        hint = "layer_ids are hidden-layer indices, dense layers counted"
    return Problem(message, where, hint)
