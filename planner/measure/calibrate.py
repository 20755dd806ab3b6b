"""A topology with the constants that a validation says are wrong put right.

Each measured term corrects what its prediction rests on: experts their curve, attention the curves of GEMM
and attention, exchanges and tensor-parallel collectives their constant time and the part of the bandwidth
that is reached. Terms that the micro-run runs otherwise than they are priced are left as they were. All constants
of a curve are scaled alike, because one plan measures one point of it; `ep-plan probe` measures whole curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import yaml

from planner.cost.collectives import Blocks
from planner.cost.dense import attention_curve
from planner.cost.instance import Instance
from planner.cost.step import SplitCost
from planner.errors import BadAnswerError
from planner.inputs.documents import validated
from planner.inputs.efficiency import Curve, Efficiency, Work, curves_of
from planner.inputs.engines import load_engine
from planner.inputs.gpu import Gpu
from planner.inputs.kernels import on_machine
from planner.inputs.topology import resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.units import exact_text
from planner.measure.document import Validation
from planner.measure.verdict import run_otherwise
from planner.plan.plan import Plan

_ALL_REDUCE: Final = "attention all-reduce"
_ATTENTION: Final[Mapping[str, Work]] = {"prefill": "attention_prefill", "decode": "attention_decode"}


def calibrated_text(validation: Validation, plan: Plan, cost: SplitCost) -> str:
    """The plan's topology, corrected by what was measured, as a topology file.

    Raises:
        BadAnswerError: nothing was measured that is run as it is priced, or counts or results were wrong: then times
            mean nothing.
    """
    measured = _ratios(validation)
    left_out = {name: how for name in measured if (how := run_otherwise(cost, name)) is not None}
    ratios = {name: ratio for name, ratio in measured.items() if name not in left_out}
    told = [f"{name}: not corrected, {how}" for name, how in left_out.items()]
    if not measured or validation.counts.judged == "fail" or validation.outputs.judged == "fail":
        why = "no times were measured" if not measured else "counts or results are wrong"
        raise BadAnswerError(f"nothing to calibrate with: {why}")
    if not ratios:
        raise BadAnswerError(f"nothing to calibrate with: {'; '.join(told)}")
    file = plan.inputs.topology
    data = file.model_dump(mode="json")
    source = f"ep-plan validate --calibrate: {validation.run.ranks} ranks, {validation.run.backend}"
    for gpu, described in zip(_gpus(file), _gpu_data(data), strict=True):
        _correct_gpu(gpu, described, ratios, cost.instance, source)
    _correct_collectives(data, ratios, plan.inputs.engine, cost, source)
    _correct_exchange(data, ratios, plan.inputs.engine, cost, source)
    resolve(validated(TopologyFile, data))
    head = [f"{validation.plan}, corrected: " + ", ".join(f"{name} x {ratio:.3g}" for name, ratio in ratios.items())]
    head += told
    if "dispatch" in ratios and cost.split.etp > 1:
        head.append("dispatch, combine: bytes gathered among GPUs that share an expert stay as collectives take them")
    body = yaml.safe_dump({"schema": "ep-plan/topology/1", **data}, sort_keys=False, width=120)
    return "".join(f"# {line}\n" for line in head) + body


def _ratios(validation: Validation) -> dict[str, float]:
    """Measured over predicted seconds of each term that has both."""
    return {
        term.name: term.measured_s / term.predicted_s
        for term in validation.terms
        if term.predicted_s and term.measured_s
    }


def uncertain(validation: Validation, cost: SplitCost) -> tuple[str, ...]:
    """Corrections that rest on samples spread wider than the tolerance, to be told where the file is written."""
    return tuple(
        f"{term.name}: corrected by x {term.measured_s / term.predicted_s:.3g}, but its samples spread over "
        f"{term.spread:.0%}: measure again on a quieter machine, or with more --repeats"
        for term in validation.terms
        if term.predicted_s
        and term.measured_s
        and term.spread > validation.tolerance
        and run_otherwise(cost, term.name) is None
    )


def _gpus(file: TopologyFile) -> list[Gpu]:
    return [gpu for gpu in file.gpu_kinds() if isinstance(gpu, Gpu)]


def _gpu_data(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The same GPUs in the file's plain data, in the same order."""
    groups = data.get("groups") or [data]
    return [gpu for group in groups for gpu in ([group["gpu"]] if group.get("gpu") else group["gpus"])]


def _correct_gpu(gpu: Gpu, data: dict[str, Any], ratios: Mapping[str, float], instance: Instance, source: str) -> None:
    known = [efficiency for efficiency in (gpu.efficiency, instance.constants.efficiency) if efficiency is not None]
    precision, phase = instance.constants.precision, instance.workload.phase
    efficiency = data.get("efficiency") or {}
    wanted: list[tuple[Work, str, str]] = [
        ("experts", precision.experts, "experts"),
        ("gemm", precision.dense, "attention"),
        (_ATTENTION[phase], attention_curve("gqa", precision.kv_cache), "attention"),
        (_ATTENTION[phase], attention_curve("mla", precision.kv_cache), "attention"),
    ]
    for work, name, term in wanted:
        if term in ratios:
            note = f"{source}, {term} x {ratios[term]:.3g}"
            scaled = [
                _scaled(curve, ratios[term], note)
                for curve in curves_of(known, work, name, instance.constants.own_kernels)
            ]
            efficiency.setdefault(work, {})[name] = scaled
    # what is left out of an efficiency comes from the default, as before
    data["efficiency"] = Efficiency.model_validate_json(validated(Efficiency, efficiency).model_dump_json()).model_dump(
        mode="json", exclude_defaults=True
    )
    data.pop("name", None)


def _scaled(curve: Curve, ratio: float, source: str) -> dict[str, Any]:
    """A curve on which everything takes `ratio` times as long."""
    roofline = curve.value
    value: dict[str, Any] = {
        "base": exact_text(roofline.base * ratio, "time"),
        "per_expert": exact_text(roofline.per_expert * ratio, "time"),
        "compute": _part(roofline.compute / ratio),
        "memory": _part(roofline.memory / ratio),
        "serial": exact_text(roofline.serial * ratio, "time"),
        "exponent": roofline.exponent,
    }
    if roofline.activation is not None:
        value["activation"] = _part(roofline.activation / ratio)
    note = {"basis": "measured", "source": f"{source}; before: {curve.source}"}
    return {"value": value, "engine": curve.engine, **note}


def _part(value: float) -> str:
    return exact_text(float(f"{value:.6g}"), "fraction")


def _correct_exchange(
    data: dict[str, Any], ratios: Mapping[str, float], engine_name: str | None, cost: SplitCost, source: str
) -> None:
    """Constant time of dispatch and combine, and the part of the bandwidth that they reach at every level.

    Collectives come before it: what a gather among the GPUs of a rank takes in any case is added to the launch again.
    """
    if "dispatch" not in ratios:
        return
    constants, topology, moe = cost.instance.constants, cost.instance.topology, cost.stages[0].moe
    kernel, out = constants.kernel, ratios["dispatch"]
    back = ratios.get("combine", out)
    note = {"basis": "measured", "source": f"{source}, dispatch x {out:.3g}, combine x {back:.3g}"}
    levels = {}
    for level, link in enumerate(topology.links):
        reached = kernel.reach.levels.get(link.level)
        if reached is None and link.efficiency is not None:
            reached = link.efficiency.value
        if reached is None:
            reached = kernel.reach.scale_up if level <= topology.scale_up_level else kernel.reach.scale_out
        levels[link.level] = {"value": _part(reached / out), **note}
    added_s = moe.exchange.latency_s + _gather_s(data, engine_name, cost)
    ways = {}
    for name, ratio, fixed, slower in (
        ("dispatch", out, moe.dispatch_fixed.seconds, kernel.dispatch.value.slower),
        ("combine", back, moe.combine_fixed.seconds, kernel.combine.value.slower * back / out),
    ):
        launch_s = max(0.0, ratio * fixed - added_s)
        value = {"launch": exact_text(launch_s, "time"), "slower": float(f"{slower:.6g}")}
        ways[name] = {"value": value, **note}
    _put(data, {"kernel": constants.communication.kernel, **ways, "levels": levels})


def _gather_s(data: dict[str, Any], engine_name: str | None, cost: SplitCost) -> float:
    """Constant time of a gather among the GPUs that share an expert, by the collectives as the file has them now."""
    name, constants = load_engine(engine_name).collectives, cost.instance.constants
    measured = validated(TopologyFile, data).calibration
    collectives = on_machine(constants.collectives, name, (), measured)
    instance = replace(cost.instance, constants=constants.model_copy(update={"collectives": collectives}))
    return Blocks(instance, cost.stages[0].grid.gpus, cost.split.etp).linear()[0]


def _correct_collectives(
    data: dict[str, Any], ratios: Mapping[str, float], engine_name: str | None, cost: SplitCost, source: str
) -> None:
    """All-reduces of the tensor-parallel group, by the library and by the engine's own kernel alike."""
    ratio = ratios.get(_ALL_REDUCE)
    if ratio is None:
        return
    engine, constants = load_engine(engine_name), cost.instance.constants
    blocks = Blocks(cost.instance, cost.stages[0].grid.gpus, cost.split.tp)
    note = {"basis": "measured", "source": f"{source}, {_ALL_REDUCE} x {ratio:.3g}"}
    for name, kernel in (
        (engine.collectives, constants.collectives),
        (engine.small_collectives, constants.small_collectives),
    ):
        if name is None or kernel is None or kernel.collective is None:
            continue
        figures = kernel.collective.value
        latency_s = blocks.latency_s(kernel, "all_reduce")  # of the links: it stays, the launch takes what it lacks
        value = figures.model_dump(mode="json", exclude_none=True) | {
            "launch": exact_text(max(0.0, ratio * (figures.launch + latency_s) - latency_s), "time"),
            "step": exact_text(ratio * figures.step, "time"),
            "scale_up": _part(figures.scale_up / ratio),
        }
        if figures.one_shot is not None:  # one phase, so one latency
            whole_s = figures.one_shot + latency_s / 2
            value["one_shot"] = exact_text(max(0.0, ratio * whole_s - latency_s / 2), "time")
        if figures.scale_out is not None:
            value["scale_out"] = _part(figures.scale_out / ratio)
        _put(data, {"kernel": name, "collective": {"value": value, **note}})


def _put(data: dict[str, Any], entry: dict[str, Any]) -> None:
    """Figures of a kernel, in the place of those that the file had of the same parts."""
    known = {one["kernel"]: one for one in data.get("calibration", [])}
    known[entry["kernel"]] = known.get(entry["kernel"], {}) | entry
    data["calibration"] = list(known.values())
