"""Saying no: which rules every split breaks, by how much, and what would help.

The grid is small, so every candidate is listed with its reason instead of a minimal conflict, the
nearest to fitting first. Each repair offered was tried: with it some split breaks no rule.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from planner.cost.instance import Instance
from planner.errors import InfeasibleError
from planner.inputs.units import format_bytes, format_number_of
from planner.rules import Verdict
from planner.rules.grid import SearchSpace, all_splits
from planner.solve.candidates import Candidate
from planner.solve.repairs import repairs
from planner.solve.watch import GaveUpError, Watch
from planner.solve.workers import TimeIsUpError

_SHOWN = 8
_LEAST_S: Final = 2.0
"""Seconds for repairs where the time limit leaves less: mostly enough for all of them."""
_WHY: Final = {"time_limit": "the time limit passed", "interrupt": "interrupted"}

Stopped = Literal["time_limit", "interrupt"]


@dataclass(frozen=True)
class Short:
    """Why no split can run, in a line."""

    message: str
    nearest: str
    """The first rule that the split nearest to fitting breaks; empty if there is no split at all."""


def in_short(instance: Instance, space: SearchSpace, candidates: list[Candidate]) -> Short:
    """Why no split can run, for those who look at many machines: no table, and no repairs are tried."""
    if not candidates:
        return Short(_none_message(instance, space), "")
    nearest = sorted(candidates, key=_distance)
    return Short(_message(instance, _rows(nearest)), nearest[0].reasons[0].detail)


def infeasible(
    instance: Instance, space: SearchSpace, candidates: list[Candidate], watch: Watch, deadline: float | None
) -> InfeasibleError:
    """The error that explains why no split can run.

    Args:
        instance: model, machine and work.
        space: which splits were looked at.
        candidates: all of them, with what they break.
        watch: who looks on.
        deadline: when to end looking for repairs, as `time.monotonic` counts; a little time is taken in any case.
            Ctrl-C ends it, too: that nothing fits is proved without them.
    """
    if not candidates:
        return _no_split(instance, space)
    nearest = sorted(candidates, key=_distance)
    rows = _rows(nearest)
    found, stopped = _repairs(instance, space, candidates, watch, deadline)
    lines = [*_table(rows), *_arithmetic(instance, nearest[0])]
    lines += [f"try: {repair}" for repair in found]
    if stopped is not None:
        lines.append(f"repairs were not all tried: {_WHY[stopped]}")
    error = InfeasibleError(_message(instance, rows), hint="\n".join(lines))
    error.data = {"candidates": [_as_data(candidate) for candidate in nearest], "repairs_stopped_by": stopped}
    return error


def _repairs(
    instance: Instance, space: SearchSpace, candidates: list[Candidate], watch: Watch, deadline: float | None
) -> tuple[list[str], Stopped | None]:
    """Repairs found, and what ended the search before all were tried."""
    until = None if deadline is None else max(deadline, time.monotonic() + _LEAST_S)

    def check_time() -> None:
        if until is not None and time.monotonic() >= until:
            raise TimeIsUpError

    found: list[str] = []
    try:
        with watch.stoppable():
            for repair in repairs(instance, space, candidates, watch, check_time):
                found.append(repair)  # noqa: PERF402  # those found before an interrupt are kept
    except TimeIsUpError:
        return found, "time_limit"
    except GaveUpError:
        raise
    except KeyboardInterrupt:
        return found, "interrupt"
    return found, None


def _message(instance: Instance, rows: dict[str, tuple[Verdict, ...]]) -> str:
    gpus = instance.topology.num_gpus
    return f"no split of {format_number_of(gpus, 'GPU')} fits ({len(rows)} tried)"


def _none_message(instance: Instance, space: SearchSpace) -> str:
    pins = ", ".join(f"{name}={value}" for name, value in space.pins.items())
    return f"no split of {format_number_of(instance.topology.num_gpus, 'GPU')} has {pins}"


def _as_data(candidate: Candidate) -> dict[str, Any]:
    """A rejected split with the table of the rules that it breaks."""
    return {
        "split": asdict(candidate.split),
        "redundant_experts": candidate.redundant_experts,
        "rules": [asdict(reason) for reason in candidate.reasons],
    }


def _no_split(instance: Instance, space: SearchSpace) -> InfeasibleError:
    hint = "per stage tp x dp = etp x ep x edp = GPUs / pp, so every degree must divide it"
    for name, value in space.pins.items():
        others = {other: degree for other, degree in space.pins.items() if other != name}
        values = sorted({getattr(split, name) for split in all_splits(instance, others)})
        if values:
            hint += f"\ntry: instead of {name}={value}, one of {', '.join(map(str, values[:_SHOWN]))}"
    if "try" not in hint:
        hint += f"\ntry: without {' or '.join(space.pins)}"
    return InfeasibleError(_none_message(instance, space), hint=hint)


def _distance(candidate: Candidate) -> tuple[int, int, tuple[int, ...]]:
    """Fewest rules broken first, then least memory over."""
    return len(candidate.reasons), 0 if candidate.held is None else max(0, -candidate.free_bytes), candidate.order


def _rows(nearest: list[Candidate]) -> dict[str, tuple[Verdict, ...]]:
    """What every split breaks at its best: numbers of micro-batches and of copies are not told apart."""
    rows: dict[str, tuple[Verdict, ...]] = {}
    for candidate in nearest:
        s = candidate.split
        rows.setdefault(f"tp={s.tp} dp={s.dp} ep={s.ep} etp={s.etp} pp={s.pp}", candidate.reasons)
    return rows


def _table(broken: dict[str, tuple[Verdict, ...]]) -> Iterator[str]:
    """A row for each rule that a split breaks: value, what it must fit, verdict."""
    rows = [("split", "rule", "value", "must be", "verdict")]
    for name, reasons in list(broken.items())[:_SHOWN]:
        for number, one in enumerate(reasons):
            rows.append(("" if number else name, one.rule, one.value, one.limit, f"✗ {one.detail}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[4]])
    if len(broken) > _SHOWN:
        yield f"and {len(broken) - _SHOWN} more"


def _arithmetic(instance: Instance, candidate: Candidate) -> Iterator[str]:
    """The memory lines of the fullest GPU of the split that comes nearest."""
    held = candidate.held
    if held is None or not any("memory" in reason.rule for reason in candidate.reasons):
        return
    _, fullest, capacity = held.excess
    layers, memory = held.cuts[fullest], held.memories[fullest]
    slots = dict(held.fullest_ranks(fullest))[capacity]
    filled = slots * len(set(instance.model.moe_layer_ids).intersection(layers))
    where = f", stage {fullest} (layers {layers.start} to {layers.stop - 1})" if len(held.cuts) > 1 else ""
    yield f"memory of GPU {held.fullest_gpu(fullest, capacity)}{where}, the fullest, with {candidate.split}:"
    for line in sorted(memory.lines(layers, filled), key=lambda line: -line.num_bytes):
        yield f"  {line.name:<44} {format_bytes(line.num_bytes):>10}  {line.basis}"
    yield f"  {'needs':<44} {format_bytes(memory.total(layers, filled)):>10}, has {format_bytes(capacity)}"
