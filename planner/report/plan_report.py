"""The report of a plan: what was chosen, how good it provably is, where the time and memory go.

One screen by default; with `verbose` every rejected split, memory line and window as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from planner.capacity.redundancy import curve_of, gains, knee
from planner.check import slots_of
from planner.inputs.units import format_bytes, format_count, format_percent, format_rate, format_seconds
from planner.plan.plan import BaselineRecord, CandidateRecord, Plan, SplitRecord
from planner.report.machine_text import fullest_gpus, machine_of, machine_text
from planner.report.rules_report import render_rejected, render_rules
from planner.report.style import as_wide_as_fits, bar, heat, plain_table

_IMBALANCE_STEPS = (1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0)
_RANK_STEPS = (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
_BEST_SHOWN = 10


def render_plan(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Print the report."""
    _headline(plan, console)
    console.print()
    _verdict(plan, console)
    console.print()
    _time(plan, console)
    console.print()
    _splits(plan, console, verbose)
    if plan.inputs.search.redundant_experts == "auto":
        _copies(plan, console)
    if plan.predicted.layer_imbalance:
        console.print()
        _layers(plan, console, verbose)
    if verbose:
        console.print()
        render_rules(_chosen(plan), console)
        _memory(plan, console)
        _windows(plan, console)
        _sources(plan, console)
    for note in plan.notes:
        console.print(Text(f"note: {note}", "yellow"))


def _headline(plan: Plan, console: Console) -> None:
    inputs = plan.inputs
    work = inputs.workload
    text = Text(f"{inputs.name} on {machine_text(machine_of(plan))}", "bold")
    text.append(
        f"\n{work.phase}, {work.tokens_per_gpu:,} tokens per GPU and step, context {work.context_length:,}; "
        f"experts in {inputs.cost.precision.experts}; {inputs.cost.communication.kernel}"
        + (f"; {inputs.engine} {inputs.engine_version}" if inputs.engine else ""),
        "default",
    )
    console.print(text)


def split_text(split: SplitRecord) -> str:
    """A split for people; degrees of 1 that nobody asks about are left out."""
    text = f"tp={split.tp} dp={split.dp} ep={split.ep}"
    for name in ("etp", "edp", "pp"):
        if getattr(split, name) > 1:
            text += f" {name}={getattr(split, name)}"
    return text + (f" mb={split.micro_batches}" if split.micro_batches > 1 else "")


def _verdict(plan: Plan, console: Console) -> None:
    table = plain_table("", "")
    table.columns[1].no_wrap = False
    predicted, placement = plan.predicted, plan.placement
    moe = plan.inputs.model.moe
    step = format_seconds(predicted.step_s)
    per_gpu = format_count(predicted.tokens_per_s / plan.inputs.gpus)
    table.add_row(Text("plan", "bold"), Text(split_text(plan.split), "bold green"))
    table.add_row("", f"{step} per step, {format_count(predicted.tokens_per_s)} tokens/s, {per_gpu} per GPU")
    if plan.inputs.workload.draft_tokens and predicted.time_per_output_token_s is not None:
        table.add_row("", f"{format_seconds(predicted.time_per_output_token_s)} per output token, drafts accepted")
    copies = f" + {placement.redundant_experts} copies" if placement.redundant_experts else ""
    slots = slots_of(plan)
    if all((slots_R == slots_R[0]).all() for slots_R in slots):
        held = f"{placement.slots_per_rank} slot{'s' if placement.slots_per_rank > 1 else ''}"
        on = f"on {'each of ' if plan.split.ep > 1 else ''}{plan.split.ep} EP rank{'s' if plan.split.ep > 1 else ''}"
    else:
        held, on = f"{_slot_text(slots)} slots", f"on {plan.split.ep} EP ranks"
    table.add_row("", f"{moe.num_experts} experts{copies} per layer, {held} {on}")
    if machine_of(plan).is_mixed:
        for row in _stage_rows(plan):
            table.add_row("", row)
    table.add_row(Text("proof", "bold"), _proof(plan))
    for name, text in _balance(plan):
        table.add_row(Text(name, "bold"), text)
    for number, row in enumerate(_fullest(plan)):
        table.add_row("" if number else Text("memory", "bold"), row)
    table.add_row("", _room(plan))
    console.print(table)


def _proof(plan: Plan) -> str:
    solver = plan.solver
    looked = _all(plan)
    if solver.status == "optimal":
        return f"optimal: no plan over {looked} is faster in this cost model"
    why = {
        "gap": "gap reached",
        "effort": "effort spent",
        "time_limit": "stopped by the time limit",
        "interrupt": "stopped by Ctrl-C",
        "proof": "proved",
    }[solver.stopped_by]
    gap, bound = format_percent(solver.gap, 2), format_seconds(solver.bound_s)
    return f"within {gap} of the best possible: bound {bound} over {looked} ({why})"


def _all(plan: Plan) -> str:
    """What was looked at: all splits, or those with the degrees that were given."""
    count = len(plan.candidates)
    pins = ", ".join(f"{name}={value}" for name, value in plan.inputs.search.pins.items())
    looked = f"all {count} candidates" if count > 1 else "the one candidate"
    return looked + (f" with {pins}" if pins else "")


def _balance(plan: Plan) -> list[tuple[str, str]]:
    if not plan.predicted.layer_imbalance:
        return [("balance", "unknown: no trace was given")]
    mine = _mean(plan.predicted.layer_imbalance)
    parts = [f"{name} {record.imbalance:.3f}" for name, record in _shown_baselines(plan)]
    floor = plan.predicted.noise_floor
    rows = [("max/mean", f"plan {mine:.3f}; {', '.join(parts)}" + (f" (chance alone: {floor:.3f})" if floor else ""))]
    if "eplb" not in plan.baselines:
        rows.append(("", "no EPLB beside it: that needs equal slots on all ranks, and equal nodes"))
    if plan.held_out is not None:
        held = plan.held_out.imbalance
        others = ", ".join(f"{name} {held[name]:.3f}" for name, _ in _shown_baselines(plan) if name in held)
        rows.append(("held out", f"plan {held['plan']:.3f}; {others}"))
        rows.append(("", plan.held_out.how))
    return rows


def _shown_baselines(plan: Plan) -> list[tuple[str, BaselineRecord]]:
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


def _stage_rows(plan: Plan) -> list[str]:
    """With several stages, the layers and GPUs of each."""
    if len(plan.stages) == 1:
        return []
    machine = machine_of(plan)
    rows = []
    for number, stage in enumerate(plan.stages):
        counts = Counter(machine.kinds[machine.kind_G[gpu]].name for gpu in stage.gpus)
        gpus = " + ".join(f"{count} x {name}" for name, count in counts.items())
        rows.append(f"stage {number}: {stage.layers[1] - stage.layers[0]} layers on {gpus}")
    return rows


def _fullest(plan: Plan) -> list[str]:
    """The fullest GPU of each kind."""
    machine, memory = machine_of(plan), plan.inputs.cost.engine_memory
    rows = []
    for name, where, used, whole in fullest_gpus(plan, machine):
        usable = memory.usable_bytes(whole)
        part = used / usable
        share = f"{bar(part, 12)} {format_percent(part, 0)}"
        has = format_bytes(usable)
        if usable < whole:  # the line has no room for a bar as well
            has += f" ({format_percent(memory.share.value, 0)} of {format_bytes(whole)})"
            share = format_percent(part, 0)
        what = f"{name} " if machine.is_mixed else ""
        rows.append(f"{format_bytes(used)} of {has} on the fullest {what}GPU ({_rank(plan, where)})  {share}")
    return rows


def _rank(plan: Plan, gpu: int) -> str:
    """A GPU with its stage and EP rank, where there are several."""
    text = f"{gpu}"
    for number, stage in enumerate(plan.stages):
        if gpu in stage.gpus:
            text += f", stage {number}" if plan.split.pp > 1 else ""
            rank = stage.gpus.index(gpu) // plan.split.etp % plan.split.ep
            return text + (f", EP rank {rank}" if plan.split.ep > 1 else "")
    return text


def _chosen(plan: Plan) -> CandidateRecord:
    return next(candidate for candidate in plan.candidates if candidate.outcome == "chosen")


def _room(plan: Plan) -> str:
    """What would still fit with this split."""
    work, chosen = plan.inputs.workload, _chosen(plan)
    parts = []
    if chosen.spare_kv_tokens is not None:
        parts.append(f"room for {chosen.spare_kv_tokens:,} more KV tokens per data-parallel rank")
    most, longest = chosen.most_sequences, chosen.longest_context
    now = work.tokens_per_gpu * plan.inputs.gpus // work.tokens_per_sequence
    if work.phase == "prefill":
        return "; ".join([*parts, f"at most {most:,} tokens per step" if most is not None else "any number of tokens"])
    sequences = f"at most {most:,} sequences" if most is not None else "any number of sequences"
    context = f"{now:,} of {longest:,}" if longest is not None else f"{now:,} of any length"
    return "; ".join([*parts, f"{sequences} of {work.context_length:,} tokens, or {context}"])


def _time(plan: Plan, console: Console) -> None:
    table = plain_table("where the time goes", "", "", "share", "of light", "rests on", right=(1, 3, 4))
    total = plan.predicted.step_s
    for term in plan.predicted.terms:
        light = f"{100 * term.speed_of_light_s / term.seconds:.0f} %" if term.speed_of_light_s and term.seconds else ""
        share = term.seconds / total
        table.add_row(term.name, format_seconds(term.seconds), bar(share, 16), format_percent(share), light, term.basis)
    extra = ""
    if len(plan.predicted.windows) > 1:
        extra = (
            f"; over windows p95 {format_seconds(plan.predicted.p95_s)}, worst {format_seconds(plan.predicted.worst_s)}"
        )
    console.print(table)
    step = plan.baselines["linear"].step_s
    gain = f"; the linear layout would take {format_seconds(step)}" if step > total * 1.0005 else ""
    console.print(f"step {format_seconds(total)}{extra}{gain}")
    console.print(_rests_on(plan), style="dim")


def _rests_on(plan: Plan) -> str:
    """What the prediction rests on, and how far such constants are off by themselves."""
    parts = []
    for one in plan.predicted.rests_on:
        error = one.error
        band = (
            f" (off by {format_percent(error.median, 0)}, 1 in 10 by {format_percent(error.p90, 0)})" if error else ""
        )
        parts.append(f"{format_percent(one.share, 0)} {one.basis}{band}")
    return "rests on: " + ", ".join(parts) + "; no queueing"


def _splits(plan: Plan, console: Console, verbose: bool) -> None:
    alive = [c for c in plan.candidates if c.outcome != "rejected"]
    rejected = [c for c in plan.candidates if c.outcome == "rejected"]
    alive.sort(key=lambda c: (c.step_s if c.step_s is not None else c.bound_s or 0.0, c.bound_s or 0.0))
    most = ("sequences", "context") if plan.inputs.workload.phase == "decode" else ("tokens",)
    columns = ("splits", "step", "at best", "memory left", "spare KV", *most)
    chosen_first = sorted(alive, key=lambda c: c.outcome != "chosen")
    shown = chosen_first if verbose else chosen_first[:_BEST_SHOWN]
    table = as_wide_as_fits(console, columns, [_split_row(c)[: len(columns)] for c in shown], least=4)
    console.print(table)
    told = ["spare KV: more tokens for a data-parallel rank", "then the most that fit"]
    left_out = columns[len(table.columns) :]
    told = told[: max(0, len(table.columns) - 4)] + (
        [f"no room for: {', '.join(left_out)} (--json)"] if left_out else []
    )
    console.print("; ".join(told), style="dim")
    hidden = 0 if verbose else max(0, len(alive) - _BEST_SHOWN)
    if hidden:
        console.print(f"and {hidden} more that fit (-v)", style="dim")
    render_rejected([(split_text(c.split), c) for c in rejected], console, verbose=verbose)


def _copies(plan: Plan, console: Console) -> None:
    """What each number of redundant experts that was priced for the plan's split gains and costs."""
    curve = curve_of(plan)
    if len(curve) < 2:
        return
    bend = knee(curve)
    table = plain_table("copies", "step", "gained per copy", "KV tokens lost", right=range(4))
    for one, gain in zip(curve, gains(curve), strict=True):
        own = one.redundant_experts == plan.placement.redundant_experts
        name = ("* " if one.redundant_experts == bend else "") + str(one.redundant_experts)
        gained = gain.step_s_per_expert
        per_copy = format_seconds(gained) if gained >= 0 else f"-{format_seconds(-gained)}"
        lost = "-" if gain.kv_tokens is None else f"{gain.kv_tokens:,}"
        step = ("at best " if one.is_bound else "") + format_seconds(one.step_s)
        table.add_row(name, step, per_copy, lost, style="green" if own else None)
    console.print(table)
    told = "* the knee: beyond it each more gains less than the mean one" if bend is not None else "copies gain nothing"
    console.print(told, style="dim")


def _split_row(candidate: CandidateRecord) -> tuple[str, ...]:
    copies = f" +{candidate.redundant_experts}" if candidate.redundant_experts else ""
    layout = f", {candidate.layout}" if candidate.layout else ""
    limits = (candidate.spare_kv_tokens, candidate.most_sequences, candidate.longest_context)
    return (
        ("* " if candidate.outcome == "chosen" else "") + split_text(candidate.split) + copies + layout,
        format_seconds(candidate.step_s) if candidate.step_s is not None else "-",
        format_seconds(candidate.bound_s or 0.0),
        format_bytes(candidate.free_bytes or 0),
        *("-" if limit is None else f"{limit:,}" for limit in limits),
    )


def _layers(plan: Plan, console: Console, verbose: bool) -> None:
    """Max/mean per layer, before and after."""
    before, after = plan.baselines["linear"].layer_imbalance, plan.predicted.layer_imbalance
    first, last = plan.inputs.traced_layer_ids[0], plan.inputs.traced_layer_ids[-1]
    legend = heat(_IMBALANCE_STEPS, _IMBALANCE_STEPS) + Text(" = " + " ".join(f"{step:g}" for step in _IMBALANCE_STEPS))
    console.print(Text(f"max/mean rows of the ranks, layers {first}..{last}: ", "dim") + legend)
    rows = [("linear", before)]
    if "eplb" in plan.baselines:
        rows.append(("eplb", plan.baselines["eplb"].layer_imbalance))
    for name, values in [*rows, ("plan", after)]:
        console.print(Text(f"  {name:<7}") + heat(values, _IMBALANCE_STEPS) + Text(f"  {_mean(values):.3f}"))
    if verbose:
        table = plain_table("layer", "linear", "plan", "rows per rank, plan", right=(0, 1, 2))
        traced = dict(zip(plan.inputs.traced_layer_ids, zip(before, after, strict=True), strict=True))
        for layer, tokens in zip(plan.placement.layer_ids, plan.predicted.rank_tokens, strict=True):
            if layer in traced and any(tokens):
                mean = sum(tokens) / len(tokens)
                cells = heat([count / mean for count in tokens], _RANK_STEPS)
                table.add_row(str(layer), f"{traced[layer][0]:.3f}", f"{traced[layer][1]:.3f}", cells)
        console.print(table)


def _memory(plan: Plan, console: Console) -> None:
    machine = machine_of(plan)
    for number, lines in enumerate(plan.predicted.memory):
        stage = f" of stage {number}" if plan.split.pp > 1 else ""
        on_stage = plan.stages[number].gpus
        used_G = plan.predicted.memory_bytes
        gpu = max(on_stage, key=lambda gpu: (used_G[gpu] / machine.memory_G[gpu], -gpu))
        console.print(f"[dim]memory of the fullest GPU{stage} ({_rank(plan, gpu)})[/dim]")
        table = plain_table("", "", "rests on", "", right=(1,))
        table.columns[3].no_wrap = False
        for line in sorted(lines, key=lambda line: -line.bytes):
            table.add_row(line.name, format_bytes(line.bytes), line.basis, Text(line.source, overflow="fold"))
        table.add_row("together", format_bytes(sum(line.bytes for line in lines)), "", "")
        share = plan.inputs.cost.engine_memory.share
        usable = format_bytes(plan.inputs.cost.engine_memory.usable_bytes(machine.memory_G[gpu].item()))
        table.add_row("usable", usable, share.basis, Text(share.source, overflow="fold"))
        console.print(table)
        console.print()


def _windows(plan: Plan, console: Console) -> None:
    if not plan.predicted.windows:
        return
    table = plain_table("window", "step", "max/mean", right=(1, 2))
    for window in plan.predicted.windows:
        table.add_row(window.name, format_seconds(window.step_s), f"{window.imbalance:.3f}")
    console.print(table)
    console.print(f"[dim]{plan.inputs.windows}[/dim]\n")


def _sources(plan: Plan, console: Console) -> None:
    table = plain_table("rests on", "", "")
    for term in plan.predicted.terms:
        table.add_row(term.name, term.basis, Text(term.source, overflow="fold"))
    table.columns[2].no_wrap = False
    for link in plan.inputs.topology.links:
        source = Text(
            ", ".join(filter(None, [format_rate(link.bandwidth.value), link.bandwidth.source])), overflow="fold"
        )
        table.add_row(f"link {link.level}", link.bandwidth.basis, source)
    console.print(table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
