"""The report of `ep-plan what-if`: only what changed, and why; a sweep as table and plot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from planner.capacity.figures import Change
from planner.capacity.loss import Loss
from planner.capacity.redundancy import gains, knee
from planner.capacity.repair import Repair
from planner.capacity.survivors import Load, Loads
from planner.capacity.sweep import Axis, Sweep
from planner.capacity.what_if import WhatIf
from planner.inputs.units import format_bytes, format_count, format_number_of, format_percent, format_seconds
from planner.report.plots import Axes, Series, terminal_plot
from planner.report.style import as_wide_as_fits, plain_table

_TERMS: Final = 6
_EXPERTS: Final = 12
_LAYERS: Final = 4
_LOADS: Final = 4
_WAYS: Final = ("from storage", "over links", "takes")
"""How weights come to GPUs that serve again; a time is known of links only."""
_NUMBER: Final = re.compile(r"\s*([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
_NAMES: Final = {
    "split": "split",
    "redundant_experts": "copies per layer",
    "gpus": "GPUs",
    "step_s": "step",
    "bound_s": "bound of the step",
    "tokens_per_s": "tokens/s",
    "tokens_per_s_per_gpu": "tokens/s per GPU",
    "time_per_output_token_s": "time per output token",
    "time_to_first_token_s": "time to first token",
    "max_over_mean": "max/mean",
    "fullest_gpu": "memory of fullest GPU",
    "spare_kv_tokens": "spare KV tokens",
    "most_sequences": "most sequences",
    "placement": "placement",
}
_UNDERSTOOD: Final = ("time_per_output_token_s", "time_to_first_token_s", "bound_s")
"""Figures that follow from the step: shown with -v only."""


def render_what_if(found: WhatIf, console: Console, *, verbose: bool = False) -> None:
    """Print what changed."""
    console.print(Text("; ".join(found.settings) or "nothing is set", "bold"))
    console.print()
    if found.loss is not None:
        _loss(found.loss, console)
        console.print()
    if found.repair is not None:
        _repair(found.repair, console, verbose)
        console.print()
    if not found.changes and not found.terms:
        console.print("nothing changes: the same split, placement and figures")
        return
    _changes(found, console, verbose)
    console.print()
    _why(found, console, verbose)


def _changes(found: WhatIf, console: Console, verbose: bool) -> None:
    table = plain_table("what changes", "before", "after", "", right=(1, 2, 3))
    for change in found.changes:
        if verbose or change.name not in _UNDERSTOOD:
            before, after = (figure_text(change.name, value) for value in (change.before, change.after))
            table.add_row(_NAMES[change.name], before, after, _difference(change))
    console.print(table)
    unchanged = [_NAMES[name] for name in ("split", "placement") if name not in {c.name for c in found.changes}]
    if unchanged:
        console.print(f"unchanged: {', '.join(unchanged)}", style="dim")


def _why(found: WhatIf, console: Console, verbose: bool) -> None:
    old = found.old_split
    if old is not None and old.reasons:
        console.print(f"the split before, {found.before.split}, cannot run: {'; '.join(old.reasons)}")
    elif old is not None and old.step_s is not None:
        console.print(f"the split before, {found.before.split}, would take {format_seconds(old.step_s)}")
    elif old is not None and old.bound_s is not None:
        told = f"the split before, {found.before.split}, would take at least {format_seconds(old.bound_s)}"
        console.print(told)
    shown = found.terms if verbose else found.terms[:_TERMS]
    if not shown:
        return
    table = plain_table("where the step changes", "before", "after", "", right=(1, 2, 3))
    for term in shown:
        longer = term.after - term.before
        sign = "+" if longer > 0 else "-"
        table.add_row(
            term.name, format_seconds(term.before), format_seconds(term.after), f"{sign}{format_seconds(abs(longer))}"
        )
    console.print(table)
    if len(shown) < len(found.terms):
        console.print(f"and {len(found.terms) - len(shown)} more (-v)", style="dim")


def _loss(loss: Loss, console: Console) -> None:
    nodes = ", ".join(f"n{node}" for node in loss.nodes)
    console.print(f"without {nodes}: {format_number_of(len(loss.gpus), 'GPU')} of the plan gone ({_runs(loss.gpus)})")
    console.print(f"copies of experts lost: {loss.copies:,} over all layers")
    last = sum(map(len, loss.last_copies.values()))
    if not last:
        console.print("no expert loses its last copy")
    else:
        told = f"{format_number_of(last, 'expert')} in {format_number_of(len(loss.last_copies), 'layer')}"
        console.print(f"last copy lost: {told}; {format_bytes(loss.reload_bytes)} to read again")
        layer, experts = next(iter(loss.last_copies.items()))
        more = f" and {len(experts) - _EXPERTS} more" if len(experts) > _EXPERTS else ""
        console.print(
            f"  layer {layer}: {', '.join(map(str, experts[:_EXPERTS]))}{more} (--json lists all)", style="dim"
        )
    if loss.whole_stages:
        console.print(f"pipeline stages gone altogether: {', '.join(map(str, loss.whole_stages))}")
    console.print(f"in flight on ranks that lose a GPU: {loss.sequences:,} {loss.of}")


def _repair(repair: Repair, console: Console, verbose: bool) -> None:
    if repair.cheapest is None:
        console.print(f"no repair of the plan in force was looked for: {repair.why_not}")
    ways = [("cheapest repair", repair.cheapest), ("solved anew", repair.resolved)]
    shown = [(name, way) for name, way in ways if way is not None]
    if not shown:
        return
    brought = [_brought(way.loads) for _, way in shown]
    used = [title for title in _WAYS if any(title in one for one in brought)]
    table = plain_table("to serve again", "split", "to bring", *used, "step", right=range(2, 4 + len(used)))
    for (name, way), one in zip(shown, brought, strict=True):
        copies = f" +{way.redundant_experts}" if way.redundant_experts else ""
        cells = [one.get(title, "-") for title in used]
        total = way.loads.total_bytes
        table.add_row(
            name, way.split + copies, format_bytes(total) if total else "-", *cells, format_seconds(way.step_s)
        )
    console.print(table)
    if repair.cheapest is not None:
        _loads(repair.cheapest.loads, console, verbose)


def _brought(loads: Loads) -> dict[str, str]:
    """How weights come, by the columns of `_WAYS`; without those by which nothing comes."""
    stored = loads.storage_bytes + loads.other_storage_bytes
    linked = loads.total_bytes - stored
    cells = {"from storage": format_bytes(stored)} if stored else {}
    if linked:
        cells |= {"over links": format_bytes(linked), "takes": format_seconds(loads.link_s)}
    return cells


def _loads(loads: Loads, console: Console, verbose: bool) -> None:
    """What the cheapest repair brings, layer by layer."""
    for name, by_level, stored in (
        ("experts", loads.copied_bytes, loads.storage_bytes),
        ("other weights", loads.other_copied_bytes, loads.other_storage_bytes),
    ):
        parts = [f"{format_bytes(count)} over {level}" for level, count in by_level.items()]
        parts += [f"{format_bytes(stored)} from storage"] if stored else []
        if parts:
            console.print(f"{name}: {', '.join(parts)}")
    if not loads.experts:
        console.print("no expert is brought anywhere")
        return
    by_layer: dict[int, list[Load]] = {}
    for load in loads.experts:
        by_layer.setdefault(load.layer, []).append(load)
    table = plain_table("layer", "expert: from GPU (of the plan before) or storage > to GPU", right=(0,))
    for layer in list(by_layer)[: None if verbose else _LAYERS]:
        told = [f"{one.expert}: {_source(one)} > {one.target}" for one in by_layer[layer]]
        more = f" and {len(told) - _LOADS} more" if len(told) > _LOADS and not verbose else ""
        table.add_row(str(layer), ", ".join(told if verbose else told[:_LOADS]) + more)
    console.print(table)
    if len(by_layer) > _LAYERS and not verbose:
        console.print(f"and {format_number_of(len(by_layer) - _LAYERS, 'more layer')} (-v)", style="dim")


def _source(load: Load) -> str:
    return "storage" if load.source is None else str(load.source)


def _runs(ids: Sequence[int]) -> str:
    return f"{ids[0]}..{ids[-1]}" if len(ids) > 2 and ids[-1] - ids[0] == len(ids) - 1 else ", ".join(map(str, ids))


def figure_text(name: str, value: Any) -> str:
    """A figure for people."""
    if value is None:
        return "-"
    if name.startswith("tokens_per_s"):
        return format_count(value)
    if name.endswith("_s"):
        return format_seconds(value)
    if name == "fullest_gpu":
        return format_percent(value)
    if name == "max_over_mean":
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _difference(change: Change) -> str:
    before, after = change.before, change.after
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return ""
    return f"{100 * (after / before - 1):+.1f} %"


def what_if_json(found: WhatIf) -> dict[str, Any]:
    """The same as plain data."""
    left_out = ("plan", "repaired", "repair")
    data = {one.name: getattr(found, one.name) for one in fields(found) if one.name not in left_out}
    plain = {name: _plain(value) for name, value in data.items()}
    return {"schema": "ep-plan/what-if/1", **plain, "repair": _repair_json(found.repair)}


def _plain(value: Any) -> Any:
    """Records as dictionaries."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _repair_json(repair: Repair | None) -> dict[str, Any] | None:
    if repair is None:
        return None
    ways = {"cheapest": repair.cheapest, "resolved": repair.resolved}
    told = {
        name: None if way is None else asdict(way) | {"total_bytes": way.loads.total_bytes}
        for name, way in ways.items()
    }
    return {**told, "why_not": repair.why_not}


# --- sweeps -----------------------------------------------------------------------------------------


def render_sweep(found: Sweep, console: Console) -> None:
    """Print a table of all points, and a plot of the step time."""
    if found.redundancy:
        _redundancy(found, console)
    else:
        _points(found, console)
    series, axes = curves(found)
    if series and max(len(one.x) for one in series) > 1:
        console.print()
        console.print(Text(terminal_plot(series, axes, console.width)))


def _points(found: Sweep, console: Console) -> None:
    names = [axis.path for axis in found.axes]
    columns = (*names, "step", "split", "tokens/s per GPU", "memory", "max/mean")
    rows, missing = [], []
    for point in found.points:
        values, figures = [str(value) for value in point.values], point.figures
        if figures is None:
            rows.append([*values, *"-----"])
            missing.append(f"{', '.join(values)}: {point.why_not}")
            continue
        copies = f" +{figures.redundant_experts}" if figures.redundant_experts else ""
        shown = ("tokens_per_s_per_gpu", "fullest_gpu", "max_over_mean")
        cells = [figure_text(name, getattr(figures, name)) for name in shown]
        rows.append([*values, format_seconds(figures.step_s), figures.split + copies, *cells])
    console.print(as_wide_as_fits(console, columns, rows, least=len(names) + 1, mark_first=False))
    for line in missing:
        console.print(Text(line, "yellow"))


def _redundancy(found: Sweep, console: Console) -> None:
    curve = found.redundancy
    bend = knee(curve)
    columns = ("copies", "step", "gained", "per copy", "max/mean", "better by", "spare KV", "KV lost")
    table = plain_table(*columns, right=range(len(columns)))
    for one, gain in zip(curve, gains(curve), strict=True):
        table.add_row(
            ("* " if one.redundant_experts == bend else "") + str(one.redundant_experts),
            format_seconds(one.step_s),
            format_seconds(gain.step_s),
            format_seconds(gain.step_s_per_expert),
            figure_text("max_over_mean", one.max_over_mean),
            figure_text("max_over_mean", gain.max_over_mean),
            figure_text("spare_kv_tokens", one.spare_kv_tokens),
            figure_text("kv_tokens", gain.kv_tokens),
            style="green" if one.redundant_experts == bend else None,
        )
    console.print(table)
    told = f"* the knee: beyond {format_number_of(bend or 0, 'copy', 'copies')} each more gains less than the mean one"
    console.print(told if bend is not None else "copies gain nothing here", style="dim")
    for point in found.points:
        if point.figures is None:
            console.print(
                f"{point.values[0]} cop{'y' if point.values[0] == 1 else 'ies'}: {point.why_not}", style="yellow"
            )


def curves(found: Sweep) -> tuple[list[Series], Axes]:
    """Step time over the first value, one curve for each of the second."""
    axis = found.axes[0]
    place, unit = _numbers(axis)
    series = []
    for name, points in _by_second(found):
        known = [(place[point.values[0]], point.figures.step_s * 1e3) for point in points if point.figures]
        if known:
            x, y = zip(*sorted(known), strict=True)
            series.append(Series(name, x, y))
    marked = knee(found.redundancy) if found.redundancy else None
    return series, Axes(f"{axis.path}{unit}", "step [ms]", marked)


def _by_second(found: Sweep) -> Iterator[tuple[str, list[Any]]]:
    if len(found.axes) == 1:
        yield "step", list(found.points)
        return
    second = found.axes[1]
    for value in second.values:
        yield f"{second.path}={value}", [point for point in found.points if point.values[1] == value]


def _numbers(axis: Axis) -> tuple[dict[Any, float], str]:
    """Where each value stands on an axis, and their unit; values that are no numbers stand in their order."""
    parts = [_NUMBER.fullmatch(str(value)) for value in axis.values]
    units = {part[2] for part in parts if part}
    if all(parts) and len(units) == 1:
        unit = units.pop()
        return {
            v: float(part[1]) for v, part in zip(axis.values, parts, strict=True) if part
        }, f" [{unit}]" if unit else ""
    return {value: float(number) for number, value in enumerate(axis.values)}, " (number of the value)"


def sweep_json(found: Sweep) -> dict[str, Any]:
    """The same as plain data."""
    curve = found.redundancy
    return {
        "schema": "ep-plan/sweep/1",
        "axes": [{"path": axis.path, "values": list(axis.values)} for axis in found.axes],
        "points": [asdict(point) for point in found.points],
        "redundancy": {"gains": [asdict(gain) for gain in gains(curve)], "knee": knee(curve)} if curve else None,
    }
