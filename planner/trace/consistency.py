"""Does a trace fit the model that it is said to come from, and does it show traps of recording?"""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import Place, Problem
from planner.inputs.model import Model
from planner.trace.alike import Alike
from planner.trace.count_faults import counted_often, dense_layers, token_sums
from planner.trace.faults import Fault, sort_out
from planner.trace.trace import CountTrace, Trace
from planner.trace.windows import Windows


def describe_suspicions(windows: Windows, traces: Sequence[Trace]) -> tuple[str, ...]:
    """Everything that looks like a trap of recording, where figures are told without a model to hold them against."""
    where = Place(str(traces[0].path), key="expert_ids")
    faults = _dense(windows, traces)
    if windows.sets is not None:
        alike = Alike(traces[0].num_experts)
        alike.look(windows.sets.experts_NLK)
        faults += alike.faults(where)
    return (*(text for trace in traces for text in suspicions(trace)), *map(_told, faults))


def suspicions(trace: Trace) -> tuple[str, ...]:
    """What in the counts of a trace looks like a trap of recording, though it may be meant so."""
    if not isinstance(trace, CountTrace):
        return ()
    where, counts_SLE = Place(str(trace.path), key="counts"), trace.counts_SLE
    faults = counted_often(counts_SLE, where)
    faults += token_sums(counts_SLE, trace.layer_ids_L, trace.top_k, trace.names_S, where)
    return tuple(map(_told, faults))


def _told(fault: Fault) -> str:
    return f"{fault.where}: {fault.message} [{fault.name}]: {fault.cure}"


def not_routed(windows: Windows, traces: Sequence[Trace]) -> list[Problem]:
    """Layers in which every token chose expert 0 only: dense ones, or never written."""
    return sort_out(_dense(windows, traces), ())[0]


def _dense(windows: Windows, traces: Sequence[Trace]) -> list[Fault]:
    key = "counts" if isinstance(traces[0], CountTrace) else "expert_ids"
    where = Place(str(traces[0].path), key=key)
    return dense_layers(windows.counts_SLE, windows.layer_ids_L, traces[0].top_k, where)


def against_model(trace: Trace, model: Model) -> list[Problem]:
    """Everything in which a trace and a model disagree."""
    file = str(trace.path)
    moe = model.moe
    problems = []
    if trace.num_experts != moe.num_experts:
        message = f"{trace.num_experts} experts, but {model.name} has {moe.num_experts}"
        hint = ""
        if trace.num_experts > moe.num_experts:
            hint = "recorded with redundant experts? map physical ids back: `ep-plan trace import --physical-map`"
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
    these = f"layers {shown} are not MoE layers" if len(strange) > 1 else f"layer {shown} is not a MoE layer"
    message = f"{these} of {model.name} (MoE: {first}..{last})"
    if len(trace.layer_ids_L) == len(model.moe_layer_ids):
        hint = "numbered by MoE layer? `ep-plan trace import --rows moe --model` gives them hidden-layer indices"
    elif len(trace.layer_ids_L) == model.num_layers:
        hint = "rows of dense layers are filler: `ep-plan trace import --model` leaves them out"
    else:
        hint = "layer_ids are hidden-layer indices, dense layers counted"
    return Problem(message, where, hint)
