"""The report of `ep-plan validate`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from planner.inputs.units import format_bytes, format_number_of, format_percent, format_seconds
from planner.measure.document import Validation
from planner.report.style import plain_table, shortened

_COLOUR = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not judged": "dim"}
_RANKS_SHOWN = 16


def render_validation(validation: Validation, console: Console, *, verbose: bool = False) -> None:
    """Verdict first, then what it rests on."""
    run = validation.run
    console.print(Text(f"{validation.verdict:<8} {validation.plan}", f"bold {_COLOUR[validation.verdict]}"))
    for reason in validation.reasons:
        console.print(Text(f"         {reason}"))
    hosts = len(set(run.hosts))
    where = f"{format_number_of(run.ranks, 'rank')} on {format_number_of(hosts, 'host')}, {run.backend}"
    scale = f", sizes divided by {run.scale}" if run.scale > 1 else ""
    console.print(Text(f"ran      {run.mode}: {where}{scale}"))
    console.print(Text(f"shows    {run.shows}"))
    _checks(validation, console)
    if validation.terms:
        _terms(validation, console)
    _placements(validation, console)
    for finding in validation.machine:
        console.print(Text(f"machine  {finding}", "yellow"))
    if verbose:
        _ranks(validation, console)


def _checks(validation: Validation, console: Console) -> None:
    counts, outputs = validation.counts, validation.outputs
    table = plain_table("", "", "")
    table.columns[2].no_wrap = False
    layers, windows = format_number_of(counts.layers, "layer"), format_number_of(validation.run.windows, "window")
    how = f"{format_number_of(counts.choices, 'choice')} served over {layers} and {windows}"
    if counts.judged == "pass":
        how += ", every rank exactly as booked"
    elif counts.judged == "not judged":
        how += f"; {counts.findings[0]}"
    table.add_row("counts", Text(counts.judged, _COLOUR[counts.judged]), Text(how))
    error = f"at most {outputs.worst_error:.1e} of a token's norm from the single-process reference"
    table.add_row(
        "results", Text(outputs.judged, _COLOUR[outputs.judged]), Text(f"{error}, {outputs.allowed:.0e} allowed")
    )
    for level in validation.levels:
        model = "" if level.model is None else f", {level.model:,.0f} by the cost model"
        text = (
            f"{format_number_of(level.counted, 'copy', 'copies')} ({format_bytes(level.bytes)} at real size), "
            f"{level.predicted:,} predicted{model}"
        )
        table.add_row(f"level {level.level}", Text(level.judged, _COLOUR[level.judged]), Text(text))
    console.print(table)
    if validation.run.backend == "gloo":
        console.print("[dim]copies by level: as handed to gloo by the senders, not seen on the wire[/dim]")


def _terms(validation: Validation, console: Console) -> None:
    table = plain_table("term", "predicted", "measured", "ratio", "spread", "waiting", "", right=range(1, 6))
    for term in validation.terms:
        ratio = "" if not term.predicted_s else f"{term.measured_s / term.predicted_s:.2f}"
        table.add_row(
            term.name,
            "-" if term.predicted_s is None else format_seconds(term.predicted_s),
            format_seconds(term.measured_s),
            ratio,
            format_percent(term.spread),
            format_seconds(term.wait_s),
            Text(term.judged, _COLOUR[term.judged]),
        )
    console.print(table)
    console.print(
        f"[dim]slowest rank of each layer, after a barrier; median of {validation.run.repeats} passes over windows "
        f"{', '.join(map(str, validation.run.timed_windows))}; spread: middle 80 % of the samples; "
        f"within {format_percent(validation.tolerance)} passes[/dim]"
    )


def _placements(validation: Validation, console: Console) -> None:
    timed = any(run.step_s is not None for run in validation.placements)
    if len(validation.placements) == 1 and not timed:
        return
    columns = ["placement", "max/mean served"]
    if timed:
        columns += ["step predicted", "measured", "back to back"]
    table = plain_table(*columns, right=range(1, len(columns)))
    for run in validation.placements:
        cells = [run.name, f"{run.imbalance:.4f}"]
        if timed:
            seconds = (run.predicted_s, run.step_s, run.whole_s)
            cells += ["-" if value is None else format_seconds(value) for value in seconds]
        table.add_row(*cells)
    console.print(table)
    if timed:
        console.print(
            "[dim]step: modelled parts of the replayed layers; back to back: a whole pass without barriers, "
            "with routing, counts and norms, which the model leaves out[/dim]"
        )


def _ranks(validation: Validation, console: Console) -> None:
    phases = list(validation.ranks[0].phases_s)
    table = plain_table("rank", "host", *phases, "waiting", "memory", right=range(2, len(phases) + 4))
    for rank in validation.ranks[:_RANKS_SHOWN]:
        cells = (format_seconds(rank.phases_s.get(phase, 0.0)) for phase in phases)
        memory = format_bytes(rank.high_water_bytes)
        table.add_row(str(rank.rank), shortened(rank.host, 24), *cells, format_seconds(rank.wait_s), memory)
    console.print(table)
    if len(validation.ranks) > _RANKS_SHOWN:
        console.print(f"[dim]and {format_number_of(len(validation.ranks) - _RANKS_SHOWN, 'more rank')} (--json)[/dim]")


def node_lists(validation: Validation, output: Path) -> dict[Path, str]:
    """Files beside validation.json: hosts to keep and hosts to look at, one a line."""
    stem = output.with_suffix("")
    lists = {"passing_nodes": validation.nodes.passing, "failing_nodes": validation.nodes.failing}
    return {
        stem.with_name(f"{stem.name}.{name}.txt"): "".join(f"{host}\n" for host in hosts)
        for name, hosts in lists.items()
    }
