"""The parts of the report: what each says, its chart, and the same figures as a table.

Legend: L MoE layers, R EP ranks, G GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.inputs.units import format_bytes, format_number_of, format_percent, format_rate, format_seconds
from planner.plan.plan import Plan, RuleRecord
from planner.report import plan_texts as texts
from planner.report.html import charts

_MS = 1e3
_GIB = 1 << 30


@dataclass(frozen=True)
class Table:
    """Rows under headings; the columns numbered in `right` are right-aligned."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()
    """Rows that stand out."""
    is_folded: bool = True
    """Whether it opens on request: what it holds is drawn as well, or is long."""


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with what it shows."""

    specification: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    key: str
    title: str
    says: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    swatches: tuple[tuple[str, str], ...] = field(default=())
    """Colours of a heat map with what they mean."""


def of_plan(plan: Plan) -> Iterator[Section]:
    """The parts that the plan file alone can tell, in order, before those of `traffic.py`."""
    yield _splits(plan)
    yield _time(plan)
    yield _memory(plan)


def _splits(plan: Plan) -> Section:
    columns, rows = texts.split_columns(plan), tuple(texts.split_rows(plan))
    right = tuple(range(1, len(columns)))
    tables = [Table("Splits that fit, the chosen one first", columns, rows, right, (0,), is_folded=False)]
    tables.append(_rules("Rules of the chosen split", [("", plan.chosen.rules)]))
    says = [f"Chosen: {plan.split.text}. {_sentence(texts.proof(plan))}"]
    legend = (*texts.SPLIT_LEGEND, "a dash under step: only the bound of that split is known")
    says.append(_sentence("; ".join(legend)))
    out = texts.rejected(plan)
    if out:
        says.append(_sentence(texts.rejected_summary(plan)))
        broken = [(name, candidate.rules) for name, candidate in out]
        tables.insert(
            1, _rules("Splits that were rejected, with every rule that they break", broken, folded=len(out) > 12)
        )
    if plan.rejected_left_out:
        says.append(_sentence(texts.left_out(plan)))
    return Section("splits", "The split, and why", tuple(says), tables=tuple(tables))


def _rules(caption: str, found: Sequence[tuple[str, Sequence[RuleRecord]]], *, folded: bool = True) -> Table:
    named = any(name for name, _ in found)
    rows = [
        (
            *((name if number == 0 else "",) if named else ()),
            rule.rule,
            rule.value,
            rule.limit,
            f"{'✓' if rule.holds else '✗'} {rule.detail}",
            *(() if named else (rule.source,)),
        )
        for name, rules in found
        for number, rule in enumerate(rules)
    ]
    columns = ("rule", "value", "must be", "verdict")
    return Table(caption, ("split", *columns) if named else (*columns, "from"), tuple(rows), is_folded=folded)


def _time(plan: Plan) -> Section:
    drawn, rows = [], []
    for term in plan.predicted.terms:
        share = format_percent(term.seconds / plan.predicted.step_s)
        seconds, light = format_seconds(term.seconds), texts.light_text(term)
        of_light = f", {light} of it at datasheet speed" if light else ""
        drawn.append(
            {
                "name": term.name,
                "value": term.seconds * _MS,
                "inner": term.speed_of_light_s * _MS,
                "shown": f"{seconds}  {share}",
                "told": f"{term.name}: {seconds}, {share} of the step{of_light}; {term.basis}",
            }
        )
        error = "" if term.error is None else f"{format_percent(term.error.median, 0)}"
        worst = "" if term.error is None else f"{format_percent(term.error.p90, 0)}"
        rows.append((term.name, seconds, share, light, term.basis, error, worst, term.source))
    headings = ("term", "time", "share", "of light", "rests on", "off by", "1 in 10 by", "source")
    says = (_sentence(texts.step_text(plan)), _sentence(texts.rests_on(plan)))
    chart = Chart(charts.bars(drawn, "ms; dark: the same work at datasheet speed"), "Time of each part of the step")
    table = Table("Terms with their sources", headings, tuple(rows), (1, 2, 3, 5, 6), is_folded=False)
    return Section("time", "Where the time goes", says, (chart,), (table, _links(plan)))


def _links(plan: Plan) -> Table:
    rows = tuple(
        (link.level, format_rate(link.bandwidth.value), link.bandwidth.basis, link.bandwidth.source or "")
        for link in plan.inputs.topology.links
    )
    return Table("Links, per GPU and direction", ("level", "bandwidth", "rests on", "source"), rows, (1,))


def _memory(plan: Plan) -> Section:
    machine, engine = plan.inputs.machine, plan.inputs.cost.engine_memory
    found, rows, fullest = [], [], []
    for gpu, used in enumerate(plan.predicted.memory_bytes):
        usable = engine.usable_bytes(machine.memory_G[gpu].item())
        part = format_percent(used / usable, 0)
        told = f"GPU {texts.rank_text(plan, gpu)}: {format_bytes(used)} of {format_bytes(usable)}, {part}"
        found.append({"name": str(gpu), "value": used / _GIB, "limit": usable / _GIB, "told": told})
        rows.append((texts.rank_text(plan, gpu), format_bytes(used), format_bytes(usable), part))
    tables = [Table("Memory of every GPU", ("GPU", "in use", "usable", "part"), tuple(rows), (1, 2, 3))]
    drawings = [Chart(charts.against(found, ("GPU", "GiB; line: usable")), "Memory in use on every GPU, and its limit")]
    for number, lines in enumerate(plan.predicted.memory):
        of_stage = f" of stage {number}" if plan.split.pp > 1 else ""
        ordered = sorted(lines, key=lambda line: -line.bytes)
        shown = [
            {
                "name": line.name,
                "value": line.bytes / _GIB,
                "inner": 0.0,
                "shown": format_bytes(line.bytes),
                "told": f"{line.name}: {format_bytes(line.bytes)}; {line.basis}",
            }
            for line in ordered
        ]
        fullest.append(Chart(charts.bars(shown, "GiB"), f"What fills the fullest GPU{of_stage}"))
        cells = tuple((line.name, format_bytes(line.bytes), line.basis, line.source) for line in ordered)
        headings = ("use", "memory", "rests on", "source")
        tables.append(Table(f"The fullest GPU{of_stage}, line by line", headings, cells, (1,), is_folded=False))
    says = tuple(_sentence(line.text) for line in texts.memory_lines(plan))
    return Section("memory", "Memory", says, (*drawings, *fullest), tuple(tables))


def balance(plan: Plan) -> Section:
    """Max/mean of each layer, windows, and what is held out."""
    if not plan.predicted.layer_imbalance:
        return Section("balance", "Balance", ("Unknown: no trace was given, every expert counts as equally popular.",))
    if plan.split.ep == 1:
        says = tuple(_sentence(line.text) for line in texts.balance_lines(plan))
        return Section("balance", "Balance", says, tables=(_window_table(plan),))
    says = tuple(
        _sentence(f"{line.label}: {line.text}" if line.label else line.text) for line in texts.balance_lines(plan)
    )
    drawings, tables = [], []
    if plan.held_out is not None:
        drawings.append(_held_out(plan))
        tables.append(_held_out_table(plan))
    drawings.append(_by_layer(plan))
    tables += [_layer_table(plan), _window_table(plan)]
    return Section("balance", "Balance, and what unseen windows say", says, tuple(drawings), tuple(tables))


def _held_out(plan: Plan) -> Chart:
    assert plan.held_out is not None
    kinds = ("all windows", "held out")
    seen = {"plan": texts.mean(plan.predicted.layer_imbalance)}
    seen |= {name: record.imbalance for name, record in plan.baselines.items() if record.imbalance is not None}
    rows = [
        {"name": name, "kind": kind, "value": values[name], "told": f"{name}, {kind}: max/mean {values[name]:.3f}"}
        for name in seen
        for kind, values in zip(kinds, (seen, plan.held_out.imbalance), strict=True)
        if name in values
    ]
    label = "Max/mean rows of the ranks: on all windows, and on windows that were held out"
    return Chart(charts.pairs_of_points(rows, "max/mean rows of the ranks; 1 is perfect", kinds), label)


def _held_out_table(plan: Plan) -> Table:
    held = plan.held_out
    assert held is not None
    seen = {"plan": texts.mean(plan.predicted.layer_imbalance)}
    seen |= {name: record.imbalance for name, record in plan.baselines.items() if record.imbalance is not None}
    rows = tuple(
        (name, f"{seen[name]:.3f}", f"{held.imbalance[name]:.3f}", format_seconds(held.layer_s[name]))
        for name in seen
        if name in held.imbalance
    )
    headings = ("placement", "max/mean, all windows", "max/mean, held out", "time of an MoE layer, held out")
    return Table(
        f"Held-out windows: {held.how}; {format_number_of(held.layers, 'layer')}",
        headings,
        rows,
        (1, 2, 3),
        (0,),
        is_folded=False,
    )


def _curves(plan: Plan) -> dict[str, tuple[float, ...]]:
    shown = [name for name in ("linear", "eplb") if name in plan.baselines]
    curves: dict[str, tuple[float, ...]] = {name: plan.baselines[name].layer_imbalance for name in shown}
    return {**curves, "plan": plan.predicted.layer_imbalance}


def _by_layer(plan: Plan) -> Chart:
    rows = [
        {"name": name, "x": layer, "y": value, "told": f"layer {layer}, {name}: max/mean {value:.3f}"}
        for name, values in _curves(plan).items()
        for layer, value in zip(plan.inputs.traced_layer_ids, values, strict=True)
    ]
    titles = ("layer", "max/mean rows of the ranks")
    return Chart(charts.lines(rows, titles, list(_curves(plan))), "Max/mean rows of the ranks, layer by layer")


def _layer_table(plan: Plan) -> Table:
    curves = _curves(plan)
    columns = zip(*curves.values(), strict=True)
    rows = tuple(
        (str(layer), *(f"{value:.3f}" for value in values))
        for layer, values in zip(plan.inputs.traced_layer_ids, columns, strict=True)
    )
    return Table("Max/mean rows of the ranks by layer", ("layer", *curves), rows, tuple(range(len(curves) + 1)))


def _window_table(plan: Plan) -> Table:
    rows = tuple((one.name, format_seconds(one.step_s), f"{one.imbalance:.3f}") for one in plan.predicted.windows)
    return Table(f"Windows: {plan.inputs.windows}", ("window", "step", "max/mean"), rows, (1, 2))


def copies(plan: Plan) -> Section | None:
    """Which experts have several copies; None if none has."""
    record = plan.placement
    marks, rows = [], []
    for layer, slots in zip(record.layer_ids, record.physical_to_logical, strict=True):
        several = [(expert, count) for expert, count in sorted(Counter(slots).items()) if count > 1 and expert >= 0]
        for expert, count in several:
            told = f"layer {layer}, expert {expert}: {count} copies"
            marks.append({"x": expert, "y": layer, "value": count, "told": told})
        if several:
            most = sorted(several, key=lambda one: (-one[1], one[0]))
            rows.append((str(layer), ", ".join(f"{expert} x{count}" for expert, count in most)))
    if not marks:
        return None
    counts = Counter(mark["value"] for mark in marks)
    told = ", ".join(f"{number} with {count} copies" for count, number in sorted(counts.items()))
    says = (f"Experts of all layers: {told}; all others have one.",)
    drawings: tuple[Chart, ...] = ()
    if len(marks) <= MOST_CELLS:
        size = plan.inputs.model.moe.num_experts, len(record.layer_ids)
        drawings = (Chart(charts.marks(marks, ("expert", "layer"), size), "Experts with several copies, by layer"),)
    table = Table("Experts with several copies", ("layer", "experts"), tuple(rows))
    swatches = tuple(zip(charts.COPY_COLOURS, ("2 copies", "3", "4", "5 or more"), strict=True)) if drawings else ()
    return Section("copies", "Copies of experts", says, drawings, (table,), swatches)


MOST_CELLS = 12_000
"""More marks than this would make the file large and the browser slow."""


def search(plan: Plan) -> Section:
    """Best plan and bound over effort."""
    solver = plan.solver
    how = f"{texts.STOPS[solver.stopped_by]} after {solver.effort:.3g} units of deterministic effort"
    says = [_sentence(texts.proof(plan)), _sentence(how)]
    if not solver.history:
        return Section("search", "How the search went", (*says, "The plan file holds no history of the search."))
    ends = [*solver.history]
    if solver.effort > ends[-1].effort:
        ends.append(ends[-1].model_copy(update={"effort": solver.effort}))
    kinds = ("best plan", "proven bound")
    marks, rows = [], []
    for one in ends:
        gap = format_percent((one.objective_s - one.bound_s) / one.objective_s, 2)
        texts_of = format_seconds(one.objective_s), format_seconds(one.bound_s)
        rows.append((f"{one.effort:.3g}", *texts_of, gap))
        for kind, value in zip(kinds, (one.objective_s, one.bound_s), strict=True):
            told = f"effort {one.effort:.3g}: {kind} {format_seconds(value)}, gap {gap}"
            marks.append({"kind": kind, "x": one.effort, "y": value * _MS, "told": told})
    table = Table("Every change", ("effort", *kinds, "gap"), tuple(rows), (0, 1, 2, 3))
    if len(ends) == 1:
        return Section("search", "How the search went", (*says, "The first plan was the last."), tables=(table,))
    steps = charts.steps(marks, ("deterministic effort", "ms per step"), kinds)
    chart = Chart(steps, "Best plan and bound over effort")
    return Section("search", "How the search went", tuple(says), (chart,), (table,))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
