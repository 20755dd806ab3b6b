"""The report of `ep-plan trace info`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from planner.capacity.verdict import saved_text
from planner.inputs.units import format_number_of
from planner.report.advice_report import verdict_table
from planner.report.style import heat, plain_table, shortened
from planner.review.describe import Description
from planner.trace.drift import Drift

_STEPS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
_ROWS, _LAYERS, _DOMAINS = 32, 8, 8


def render_trace(found: Description, console: Console, *, verbose: bool = False) -> None:
    """Print what is known of a trace, the verdict last."""
    table = plain_table("", "")
    table.columns[0].no_wrap = True
    for name, text in _lines(found):
        table.add_row(name, text)
    console.print(table)
    console.print()
    for part in _layer_table(found, verbose):
        console.print(part)
    if found.domains is not None:
        console.print()
        console.print(_domain_table(found, verbose))
    console.print()
    console.print(_heat_map(found, console.width))
    console.print()
    console.print(_verdict(found))


def _lines(found: Description) -> Iterator[tuple[str, str]]:
    layers = found.windows.layer_ids_L
    experts = format_number_of(found.num_experts, "expert")
    size = f"{format_number_of(len(layers), 'MoE layer')} ({layers[0]}..{layers[-1]}), {experts}"
    sequences = f" in {format_number_of(found.sequences, 'sequence')}" if found.sequences else ""
    yield "trace", escape(", ".join(str(path) for path in found.paths))
    yield "holds", f"{format_number_of(found.tokens, 'token')}{sequences}; {size}, top-{found.top_k}"
    yield "windows", escape(found.windows.how)
    yield from _skew_lines(found)
    if found.drift is not None:
        yield from _drift_lines(found.drift)
    yield from _affinity_lines(found)


def _skew_lines(found: Description) -> Iterator[tuple[str, str]]:
    within = _mean(layer.max_over_mean for layer in found.layers)
    pooled = _mean(layer.pooled_max_over_mean for layer in found.layers)
    gini = _mean(layer.pooled_gini for layer in found.layers)
    figures = f"max/mean {within:.2f} in a window, {pooled:.2f} over all (chance alone: {found.expert_floor:.2f})"
    yield "experts", f"{figures}; Gini {gini:.2f}"
    figures = (
        f"max/mean {_mean(found.layer_imbalance):.3f} on {format_number_of(found.group.ranks, 'rank')}, linear layout"
    )
    floors = f"chance alone: {found.rank_floor:.3f}; no copies: at least {found.least_without_copies:.3f}"
    yield "ranks", f"{figures} ({floors})"


def _drift_lines(drift: Drift) -> Iterator[tuple[str, str]]:
    lags = ", ".join(f"{value:.2f} at {lag}" for lag, value in drift.lag_correlation.items())
    yield "drift", f"correlation of windows {lags} apart"
    moved = f"{drift.halves_distance:.1%} of the choices move (even and odd windows: {drift.chance_distance:.1%})"
    yield "", f"first and last half: correlation {drift.halves_correlation:.2f}, {moved}"
    hot = (
        "times the hottest expert stays so"
        if drift.hot_experts == 1
        else f"{drift.hot_experts} hottest experts stay hot"
    )
    yield "", f"{drift.hot_kept:.0%} of the {hot} in the next window"


def _affinity_lines(found: Description) -> Iterator[tuple[str, str]]:
    if found.pairs:
        middle, far = _mean(p.median_lift for p in found.pairs), _mean(p.p99_lift for p in found.pairs)
        mass, chance = _mean(p.top_pairs_mass for p in found.pairs), _mean(p.chance_mass for p in found.pairs)
        held = f"the top tenth of pairs holds {mass:.0%} (popularity alone: {chance:.0%})"
        yield "together", f"lift of pairs: median {middle:.2f}, 99th percentile {far:.2f}; {held}"
    if found.successors:
        mass = _mean(layer.top_successors_mass for layer in found.successors)
        chance = _mean(layer.chance_mass for layer in found.successors)
        taken = f"takes {mass:.0%} (shuffled tokens: {chance:.0%})"
        yield "next layer", f"given an expert, the top fifth of the next traced layer {taken}"
    for nodes in found.nodes:
        visited = f"a token visits {nodes.seen:.2f} of them in each layer"
        yield format_number_of(nodes.nodes, "node"), f"{visited}, linear layout (chance alone: {nodes.by_chance:.2f})"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _layer_table(found: Description, verbose: bool) -> tuple[Text, Table]:
    moved = found.drift.halves_distance_L if found.drift else ()
    order = sorted(range(len(found.layers)), key=lambda row: -found.layer_imbalance[row])
    shown = sorted(order[: len(order) if verbose else _LAYERS])
    title = "layers" if len(shown) == len(order) else f"worst {len(shown)} of {format_number_of(len(order), 'layer')}"
    head = Text(f"{title}: max/mean of ranks and experts, choices moved, experts never chosen and hottest", "dim")
    table = plain_table("layer", "ranks", "experts", "Gini", "moved", "never", "hottest (share)", right=range(1, 6))
    table.columns[6].no_wrap = True
    for row in shown:
        layer = found.layers[row]
        table.add_row(
            str(layer.layer),
            f"{found.layer_imbalance[row]:.3f}",
            f"{layer.max_over_mean:.2f}",
            f"{layer.pooled_gini:.2f}",
            f"{moved[row]:.1%}" if moved else "-",
            str(layer.never_chosen),
            f"{', '.join(map(str, layer.hottest))} ({layer.hottest_share:.1%})",
        )
    return head, table


def _domain_table(found: Description, verbose: bool) -> Group:
    domains = found.domains
    assert domains is not None
    table = plain_table("domain", "tokens", "experts max/mean", right=(1, 2))
    order = sorted(range(len(domains.names)), key=lambda number: -domains.tokens[number])
    for number in order if verbose else order[:_DOMAINS]:
        table.add_row(
            shortened(escape(domains.names[number]), 40),
            f"{domains.tokens[number]:,}",
            f"{domains.max_over_mean[number]:.2f}",
        )
    one, other, far = domains.farthest
    told = (
        f"between domains: correlation {domains.mean_correlation:.2f} (least {domains.least_correlation:.2f}), "
        f"{domains.mean_distance:.0%} of the choices move; most between {one} and {other}: {far:.0%}"
    )
    more = len(order) - _DOMAINS
    return Group(table, Text(f"and {more} more (-v)", "dim") if more > 0 and not verbose else Text(), Text(told))


def _heat_map(found: Description, width: int) -> Group:
    """Layers down, experts across; neighbours share a cell where the terminal is narrow, the hotter one shown."""
    load_LE = found.share_LE * found.num_experts
    cells = max(8, min(found.num_experts, width - 8))
    edges = np.linspace(0, found.num_experts, cells + 1).astype(int)[:-1]
    shown = np.unique(np.linspace(0, len(load_LE) - 1, min(_ROWS, len(load_LE))).astype(int))
    head = f"load of experts 0..{found.num_experts - 1} over the mean one: "
    key = Text(head, "dim") + heat(_STEPS, _STEPS) + Text(" from " + " ".join(f"{step:g}" for step in _STEPS), "dim")
    rows = [
        Text(f"{found.windows.layer_ids_L[row]:>4} ") + heat(np.maximum.reduceat(load_LE[row], edges).tolist(), _STEPS)
        for row in shown.tolist()
    ]
    return Group(key, *rows)


def _verdict(found: Description) -> Table:
    verdict = found.verdict
    copies = found.group.slots - found.num_experts
    engine = found.engine_verdict.fresh
    layers, all_layers = len(found.judged_layers), len(found.windows.layer_ids_L)
    which = "" if layers == all_layers else f" and {layers} of {all_layers} layers"
    table = verdict_table(verdict)
    if engine is not None:
        often = f"{saved_text(engine)} than linear, on {format_number_of(len(engine.judged), 'unseen window')}"
        table.add_row(Text("EPLB", "bold"), Text(f"run again and again: {often}"))
    mean = round(_mean(found.judged_tokens))
    size = f"{format_number_of(len(found.judged_tokens), 'window')} of about {format_number_of(mean, 'token')}"
    ranks, redundant = format_number_of(found.group.ranks, "rank"), format_number_of(copies, "redundant expert")
    judged = f"judged for {ranks} with {redundant}, on {size}{which}"
    table.add_row("", Text(f"{judged}; net benefit unknown: no step was timed", "dim"))
    return table


def trace_json(found: Description) -> dict[str, Any]:
    """The same as plain data."""
    windows = found.windows
    return {
        "schema": "ep-plan/trace-info/1",
        "paths": [str(path) for path in found.paths],
        "num_experts": found.num_experts,
        "topk": found.top_k,
        "tokens": found.tokens,
        "sequences": found.sequences,
        "layer_ids": windows.layer_ids_L.tolist(),
        "windows": {"count": windows.num_windows, "tokens": windows.tokens_S.tolist(), "how": windows.how},
        "ranks": {
            "ranks": found.group.ranks,
            "slots": found.group.slots,
            "linear_max_over_mean": list(found.layer_imbalance),
            "noise_floor": found.rank_floor,
            "least_without_copies": found.least_without_copies,
        },
        "experts": {
            "noise_floor": found.expert_floor,
            "layers": [asdict(layer) for layer in found.layers],
            "shares": found.share_LE.tolist(),
        },
        "drift": _drift(found),
        "domains": asdict(found.domains) if found.domains else None,
        "co_activation": [asdict(layer) for layer in found.pairs],
        "next_layer": [asdict(layer) for layer in found.successors],
        "nodes": [asdict(nodes) for nodes in found.nodes],
        "judged_layers": list(found.judged_layers),
        "judged_window_tokens": list(found.judged_tokens),
        "verdict": asdict(found.verdict),
        "engine_verdict": asdict(found.engine_verdict),
    }


def _drift(found: Description) -> dict[str, Any] | None:
    if found.drift is None:
        return None
    lags = [{"windows": lag, "correlation": value} for lag, value in found.drift.lag_correlation.items()]
    return asdict(found.drift) | {"lag_correlation": lags, "moved": found.drift.moved}
