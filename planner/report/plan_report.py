"""The report of a plan: what was chosen, how good it provably is, where the time and memory go.

One screen by default; with `verbose` every rejected split, memory line and window as well.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from planner.capacity.redundancy import curve_of, gains, knee
from planner.inputs.units import format_bytes, format_percent, format_rate, format_seconds
from planner.plan.plan import Plan
from planner.report import plan_texts as texts
from planner.report.rules_report import render_rejected, render_rules
from planner.report.style import BAR_COLOUR, as_wide_as_fits, bar, heat, largest_of, plain_table

_IMBALANCE_STEPS = (1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0)
_RANK_STEPS = (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
_BEST_SHOWN = 10
_BESIDE_BARS = 66
"""Columns that the other cells of the table of times take."""
_BESIDE_CELLS = 20
"""Columns that name and mean take beside the cells of a row of layers."""


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
    if plan.predicted.layer_imbalance and plan.split.ep > 1:
        console.print()
        _layers(plan, console, verbose)
    if verbose:
        console.print()
        render_rules(plan.chosen, console)
        _memory(plan, console)
        _windows(plan, console)
        _sources(plan, console)
    for note in plan.notes:
        console.print(Text(f"note: {note}", "yellow"))


def _headline(plan: Plan, console: Console) -> None:
    title, work = texts.headline(plan)
    console.print(Text(title, "bold"))
    console.print(Text(work))


def _verdict(plan: Plan, console: Console) -> None:
    table = plain_table("", "")
    table.columns[1].no_wrap = False
    for line in texts.verdict(plan):
        text = Text(line.text, "bold green" if line.label == "plan" else "")
        if line.part is not None:
            text.append(f"  {bar(line.part, 12)}", BAR_COLOUR).append(f" {format_percent(line.part, 0)}", "default")
        table.add_row(Text(line.label, "bold"), text)
    console.print(table)


def _time(plan: Plan, console: Console) -> None:
    table = plain_table("where the time goes", "", "", "share", "of light", "rests on", right=(1, 3, 4))
    width = max(12, min(40, console.width - _BESIDE_BARS))
    for term in plan.predicted.terms:
        share = term.seconds / plan.predicted.step_s
        drawn = Text(bar(share, width), BAR_COLOUR)
        light = texts.light_text(term)
        table.add_row(term.name, format_seconds(term.seconds), drawn, format_percent(share), light, term.basis)
    console.print(table)
    console.print(texts.step_text(plan))
    console.print(texts.rests_on(plan), style="dim")


def _splits(plan: Plan, console: Console, verbose: bool) -> None:
    columns, rows = texts.split_columns(plan), texts.split_rows(plan)
    table = as_wide_as_fits(console, columns, rows if verbose else rows[:_BEST_SHOWN], least=4)
    console.print(table)
    left_out = columns[len(table.columns) :]
    told = list(texts.SPLIT_LEGEND[: max(0, len(table.columns) - 4)])
    told += [f"no room for: {', '.join(left_out)} (--json)"] if left_out else []
    console.print("; ".join(told), style="dim")
    hidden = 0 if verbose else max(0, len(rows) - _BEST_SHOWN)
    if hidden:
        console.print(f"and {hidden} more that fit (-v)", style="dim")
    if summary := texts.rejected_summary(plan):
        console.print(summary, style="dim")
        if verbose:
            render_rejected(texts.rejected(plan), console)
    if plan.rejected_left_out:
        console.print(texts.left_out(plan), style="dim")


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


def _layers(plan: Plan, console: Console, verbose: bool) -> None:
    """Max/mean per layer, before and after."""
    before, after = plan.baselines["linear"].layer_imbalance, plan.predicted.layer_imbalance
    first, last = plan.inputs.traced_layer_ids[0], plan.inputs.traced_layer_ids[-1]
    legend = heat(_IMBALANCE_STEPS, _IMBALANCE_STEPS) + Text(" = " + " ".join(f"{step:g}" for step in _IMBALANCE_STEPS))
    console.print(Text(f"max/mean rows of the ranks, layers {first}..{last}: ", "dim") + legend)
    rows = [("linear", before)]
    if "eplb" in plan.baselines:
        rows.append(("eplb", plan.baselines["eplb"].layer_imbalance))
    room = max(1, console.width - _BESIDE_CELLS)
    joined = -(-len(after) // room)
    for name, values in [*rows, ("plan", after)]:
        cells = heat(largest_of(values, joined), _IMBALANCE_STEPS)
        console.print(Text(f"  {name:<7}") + cells + Text(f"  {texts.mean(values):.3f}"))
    if joined > 1:
        console.print(f"each cell: the largest of {joined} neighbouring layers (-v: every layer)", style="dim")
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
    machine = plan.inputs.machine
    for number, lines in enumerate(plan.predicted.memory):
        stage = f" of stage {number}" if plan.split.pp > 1 else ""
        on_stage = plan.stages[number].gpus
        used_G = plan.predicted.memory_bytes
        gpu = max(on_stage, key=lambda gpu: (used_G[gpu] / machine.memory_G[gpu], -gpu))
        console.print(f"[dim]memory of the fullest GPU{stage} ({texts.rank_text(plan, gpu)})[/dim]")
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
