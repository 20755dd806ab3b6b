"""What the reports of a plan say, as data: terminal and HTML show the same words and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.inputs.units import format_bytes, format_count, format_number_of, format_percent, format_seconds
from planner.plan.decision import slots_of
from planner.plan.plan import BaselineRecord, CandidateRecord, Plan, TermRecord
from planner.report.machine_text import fullest_gpus, machine_text

STOPS: Final = {
    "gap": "gap reached",
    "effort": "effort spent",
    "time_limit": "stopped by the time limit",
    "interrupt": "stopped by Ctrl-C",
    "proof": "proved",
}
SPLIT_LEGEND: Final = ("spare KV: more tokens for a data-parallel rank", "then the most that fit")


@dataclass(frozen=True)
class Line:
    """One line of the verdict; `part` of 1 is drawn as a bar where there is room."""

    label: str
    text: str
    part: float | None = None


def headline(plan: Plan) -> tuple[str, str]:
    """Model and machine; the work."""
    inputs, work = plan.inputs, plan.inputs.workload
    engine = f"; {inputs.engine} {inputs.engine_version}" if inputs.engine else ""
    tokens = format_number_of(work.tokens_per_gpu, "token")
    done = f"{work.phase}, {tokens} per GPU and step, context {work.context_length:,}"
    how = f"experts in {inputs.cost.precision.experts}; {inputs.cost.communication.kernel}{engine}"
    return f"{inputs.name} on {machine_text(plan.inputs.machine)}", f"{done}; {how}"


def candidate_text(candidate: CandidateRecord) -> str:
    """A candidate for people: split, copies, layout."""
    copies = f" +{candidate.redundant_experts}" if candidate.redundant_experts else ""
    layout = f", {candidate.layout}" if candidate.layout else ""
    return candidate.split.text + copies + layout


def verdict(plan: Plan) -> Iterator[Line]:
    """Plan, proof, balance and memory; lines without a label go on with the one before."""
    yield Line("plan", plan.split.text)
    yield from (Line("", text) for text in _plan_rows(plan))
    yield Line("proof", proof(plan))
    yield from balance_lines(plan)
    yield from memory_lines(plan)


def _plan_rows(plan: Plan) -> Iterator[str]:
    predicted, placement = plan.predicted, plan.placement
    per_gpu = format_count(predicted.tokens_per_s / plan.inputs.gpus)
    step = format_seconds(predicted.step_s)
    yield f"{step} per step, {format_count(predicted.tokens_per_s)} tokens/s, {per_gpu} per GPU"
    if plan.inputs.search.risk is not None:
        part, slowest = format_percent(plan.inputs.search.risk, 0), format_seconds(plan.solver.objective_s)
        yield f"{slowest} on average over the slowest {part} of windows, which was minimised"
    if plan.inputs.workload.draft_tokens and predicted.time_per_output_token_s is not None:
        yield f"{format_seconds(predicted.time_per_output_token_s)} per output token, drafts accepted"
    number = placement.redundant_experts
    copies = f" + {format_number_of(number, 'copy', 'copies')}" if number else ""
    serving = " (the nearest serves)" if copies and placement.copy_rule == "nearest" else ""
    slots = slots_of(plan)
    if all((slots_R == slots_R[0]).all() for slots_R in slots):
        held = f"{placement.slots_per_rank} slot{'s' if placement.slots_per_rank > 1 else ''}"
        on = f"on {'each of ' if plan.split.ep > 1 else ''}{plan.split.ep} EP rank{'s' if plan.split.ep > 1 else ''}"
    else:
        held, on = f"{_slot_text(slots)} slots", f"on {plan.split.ep} EP ranks"
    yield f"{format_number_of(plan.inputs.model.moe.num_experts, 'expert')}{copies} per layer{serving}, {held} {on}"
    if plan.inputs.machine.is_mixed:
        yield from _stage_rows(plan)


def proof(plan: Plan) -> str:
    """How good the plan provably is."""
    solver, looked = plan.solver, _looked_at(plan)
    if solver.status == "optimal":
        return f"optimal: no plan over {looked} is faster{_where(plan)} in this cost model"
    gap, bound = format_percent(solver.gap, 2), format_seconds(solver.bound_s)
    return f"within {gap} of the best possible{_where(plan)}: bound {bound} over {looked} ({STOPS[solver.stopped_by]})"


def _where(plan: Plan) -> str:
    return "" if plan.inputs.search.risk is None else " in the slowest windows"


def _looked_at(plan: Plan) -> str:
    """All splits, or those with the degrees that were given."""
    count = len(plan.candidates) + plan.rejected_left_out
    pins = ", ".join(f"{name}={value}" for name, value in plan.inputs.search.pins.items())
    looked = f"all {count} candidates" if count > 1 else "the one candidate"
    return looked + (f" with {pins}" if pins else "")


def balance_lines(plan: Plan) -> Iterator[Line]:
    """Balance on the windows that were planned on, and on those held out."""
    if not plan.predicted.layer_imbalance:
        yield Line("balance", "unknown: no trace was given")
        return
    if plan.split.ep == 1:
        yield Line("balance", "nothing to balance: one EP rank holds all experts")
        return
    parts = [f"{name} {record.imbalance:.3f}" for name, record in shown_baselines(plan)]
    floor = plan.predicted.noise_floor
    chance = f" (chance alone: {floor:.3f})" if floor else ""
    yield Line("max/mean", f"plan {mean(plan.predicted.layer_imbalance):.3f}; {', '.join(parts)}{chance}")
    if "eplb" not in plan.baselines:
        yield Line("", "no EPLB beside it: that needs equal slots on all ranks, and equal nodes")
    if plan.held_out is not None:
        held = plan.held_out.imbalance
        others = ", ".join(f"{name} {held[name]:.3f}" for name, _ in shown_baselines(plan) if name in held)
        yield Line("held out", f"plan {held['plan']:.3f}; {others}")
        yield Line("", plan.held_out.how)


def shown_baselines(plan: Plan) -> list[tuple[str, BaselineRecord]]:
    """The baselines that are told without being asked for."""
    return [
        (name, record)
        for name, record in plan.baselines.items()
        if record.imbalance is not None and name != "round_robin"
    ]


def _slot_text(slots: Sequence[NDArray[np.int64]]) -> str:
    """Slots of the ranks in rank order, runs together, such as "20 x4, 12 x4"; one text for each stage."""
    texts = []
    for slots_R in slots:
        runs = [(count, len(list(run))) for count, run in groupby(slots_R.tolist())]
        texts.append(", ".join(f"{count} x{length}" for count, length in runs))
    return " / ".join(dict.fromkeys(texts))


def _stage_rows(plan: Plan) -> Iterator[str]:
    """With several stages, the layers and GPUs of each."""
    if len(plan.stages) == 1:
        return
    machine = plan.inputs.machine
    for number, stage in enumerate(plan.stages):
        counts = Counter(machine.kinds[machine.kind_G[gpu]].name for gpu in stage.gpus)
        gpus = " + ".join(f"{count} x {name}" for name, count in counts.items())
        yield f"stage {number}: {format_number_of(stage.layers[1] - stage.layers[0], 'layer')} on {gpus}"


def memory_lines(plan: Plan) -> Iterator[Line]:
    """The fullest GPU of each kind, and what would still fit."""
    machine, memory = plan.inputs.machine, plan.inputs.cost.engine_memory
    for number, (name, where, used, whole) in enumerate(fullest_gpus(plan, machine)):
        usable = memory.usable_bytes(whole)
        part: float | None = used / usable
        has, tail = format_bytes(usable), ""
        if usable < whole:  # the line has no room for a bar as well
            has += f" ({format_percent(memory.share.value, 0)} of {format_bytes(whole)})"
            part, tail = None, f"  {format_percent(used / usable, 0)}"
        what = f"{name} " if machine.is_mixed else ""
        text = f"{format_bytes(used)} of {has} on the fullest {what}GPU ({rank_text(plan, where)}){tail}"
        yield Line("" if number else "memory", text, part)
    yield Line("", _room(plan))


def rank_text(plan: Plan, gpu: int) -> str:
    """A GPU with its stage and EP rank, where there are several."""
    text = f"{gpu}"
    for number, stage in enumerate(plan.stages):
        if gpu in stage.gpus:
            text += f", stage {number}" if plan.split.pp > 1 else ""
            rank = stage.gpus.index(gpu) // plan.split.etp % plan.split.ep
            return text + (f", EP rank {rank}" if plan.split.ep > 1 else "")
    return text


def _room(plan: Plan) -> str:
    """What would still fit with this split."""
    work, own = plan.inputs.workload, plan.chosen
    parts = []
    if own.spare_kv_tokens is not None:
        parts.append(f"room for {format_number_of(own.spare_kv_tokens, 'more KV token')} per data-parallel rank")
    most, longest = own.most_sequences, own.longest_context
    now = work.tokens_per_gpu * plan.inputs.gpus // work.tokens_per_sequence
    if work.phase == "prefill":
        tokens = f"at most {format_number_of(most, 'token')} per step" if most is not None else "any number of tokens"
        return "; ".join([*parts, tokens])
    sequences = f"at most {format_number_of(most, 'sequence')}" if most is not None else "any number of sequences"
    context = f"{now:,} of {longest:,}" if longest is not None else f"{now:,} of any length"
    return "; ".join([*parts, f"{sequences} of {work.context_length:,} tokens, or {context}"])


def light_text(term: TermRecord) -> str:
    """The same work at datasheet speed, as a part of the term."""
    return f"{100 * term.speed_of_light_s / term.seconds:.0f} %" if term.speed_of_light_s and term.seconds else ""


def step_text(plan: Plan) -> str:
    """The step over windows, and what the linear layout would take."""
    predicted, linear_s = plan.predicted, plan.baselines["linear"].step_s
    text = f"step {format_seconds(predicted.step_s)}"
    if len(predicted.windows) > 1:
        text += f"; over windows p95 {format_seconds(predicted.p95_s)}, worst {format_seconds(predicted.worst_s)}"
    return text + (
        f"; the linear layout would take {format_seconds(linear_s)}" if linear_s > predicted.step_s * 1.0005 else ""
    )


def rests_on(plan: Plan) -> str:
    """What the prediction rests on, and how far such constants are off by themselves."""
    parts = []
    for one in plan.predicted.rests_on:
        error = one.error
        band = (
            f" (off by {format_percent(error.median, 0)}, 1 in 10 by {format_percent(error.p90, 0)})" if error else ""
        )
        parts.append(f"{format_percent(one.share, 0)} {one.basis}{band}")
    return "rests on: " + ", ".join(parts) + "; no queueing"


def split_columns(plan: Plan) -> tuple[str, ...]:
    """Headings of the table of splits that fit."""
    most = ("sequences", "context") if plan.inputs.workload.phase == "decode" else ("tokens",)
    return ("splits", "step", "at best", "memory left", "spare KV", *most)


def split_rows(plan: Plan) -> list[tuple[str, ...]]:
    """One row for every split that fits: the chosen one, then by step time or bound."""
    alive = [one for one in plan.candidates if one.outcome != "rejected"]
    alive.sort(key=lambda c: (c.step_s if c.step_s is not None else c.bound_s or 0.0, c.bound_s or 0.0))
    alive.sort(key=lambda c: c.outcome != "chosen")
    width = len(split_columns(plan))
    return [_split_row(one)[:width] for one in alive]


def _split_row(candidate: CandidateRecord) -> tuple[str, ...]:
    limits = (candidate.spare_kv_tokens, candidate.most_sequences, candidate.longest_context)
    return (
        ("* " if candidate.outcome == "chosen" else "") + candidate_text(candidate),
        format_seconds(candidate.step_s) if candidate.step_s is not None else "-",
        format_seconds(candidate.bound_s or 0.0),
        format_bytes(candidate.free_bytes or 0),
        *("-" if limit is None else f"{limit:,}" for limit in limits),
    )


def rejected(plan: Plan) -> list[tuple[str, CandidateRecord]]:
    """The splits that break a rule, by name."""
    return [(one.split.text, one) for one in plan.candidates if one.outcome == "rejected"]


def left_out(plan: Plan) -> str:
    """That rejected splits are only counted in this plan (golden plans)."""
    return f"{plan.rejected_left_out} rejected, not listed in this file"


def rejected_summary(plan: Plan) -> str:
    """How many splits were rejected for what; empty if none was."""
    found = rejected(plan)
    if not found:
        return ""
    counts = Counter(rule.rule.split(" of ")[0] for _, candidate in found for rule in candidate.rules)
    summary = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return f"{len(found)} rejected: {summary}"


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
