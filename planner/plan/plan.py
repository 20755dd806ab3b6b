"""The plan file: what was decided, what it is predicted to do, how good it provably is, and from what.

Everything needed to check, export or validate the plan alone is in it; traces are named by path and
hash. The same inputs, options and version give the same bytes: no time, no date, no host.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from planner.errors import InputError, Place, Problem
from planner.inputs import documents
from planner.inputs.constants import Constants
from planner.inputs.documents import Frozen
from planner.inputs.engines import EngineRules
from planner.inputs.model import Model
from planner.inputs.sourced import Basis
from planner.inputs.topology import Gpu, TopologyFile
from planner.inputs.workload import Workload

Number = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Slot = Annotated[int, Field(ge=-1, lt=1 << 31)]


class SplitRecord(Frozen):
    """Degrees, alike in all stages."""

    tp: Positive
    dp: Positive
    pp: Positive
    ep: Positive
    etp: Positive = 1
    edp: Positive = 1
    micro_batches: Positive = 1


class StageRecord(Frozen):
    """Hidden layers [first, end) and global GPU ids in rank order."""

    layers: tuple[Whole, Whole]
    gpus: tuple[Whole, ...]


class PlacementRecord(Frozen):
    """Slots of all MoE layers; slot s lives on EP rank s // slots_per_rank; -1 is empty."""

    layer_ids: tuple[Whole, ...]
    slots_per_rank: Positive
    redundant_experts: Whole = 0
    copy_rule: Literal["even"] = "even"
    physical_to_logical: tuple[tuple[Slot, ...], ...]


class TermRecord(Frozen):
    """One part of the step's time."""

    name: str
    seconds: float
    speed_of_light_s: float
    basis: Basis
    source: str


class MemoryRecord(Frozen):
    """One use of memory on the fullest GPU of a stage."""

    name: str
    bytes: Whole
    basis: Basis
    source: str


class WindowRecord(Frozen):
    """One window: its step time and the mean over layers of its max/mean rank load."""

    name: str
    step_s: Number
    imbalance: Number


class Predicted(Frozen):
    """The figures that a plan books."""

    step_s: Number
    tokens_per_s: Number
    balancedness: float | None
    memory_bytes: tuple[Whole, ...]
    rank_tokens: tuple[tuple[Whole, ...], ...]
    p95_s: Number
    worst_s: Number
    stage_s: tuple[Number, ...]
    terms: tuple[TermRecord, ...]
    memory: tuple[tuple[MemoryRecord, ...], ...]
    windows: tuple[WindowRecord, ...]
    layer_imbalance: tuple[Number, ...]
    """Mean over windows of the ranks' max/mean rows, for each traced layer."""
    noise_floor: float | None
    """The max/mean that perfectly uniform routing of the recorded windows would show."""


class SolverRecord(Frozen):
    """How the plan was found and what is proved about it."""

    status: Literal["optimal", "feasible"]
    objective_s: Number
    bound_s: Number
    gap: Number
    effort: Number
    stopped_by: Literal["proof", "gap", "effort", "time_limit", "interrupt"]


class BaselineRecord(Frozen):
    """A built-in placement on the same split, judged on the same windows."""

    step_s: Number
    balancedness: float | None
    imbalance: float | None
    """Mean over layers and windows of the ranks' max/mean rows."""
    layer_imbalance: tuple[Number, ...]
    duplicates: Whole = 0
    """Rank-layer pairs that hold some expert twice."""


class CandidateRecord(Frozen):
    """One split that was looked at, and its outcome."""

    split: SplitRecord
    redundant_experts: Whole
    outcome: Literal["chosen", "priced", "bounded", "rejected"]
    bound_s: float | None = None
    step_s: float | None = None
    free_bytes: int | None = None
    reasons: tuple[str, ...] = ()


class HeldOutRecord(Frozen):
    """The same search on some windows, judged on the others, with the baselines beside it."""

    how: str
    layers: Positive
    imbalance: dict[str, Number]
    """Mean over layers and windows of the ranks' max/mean rows, by name of placement."""
    layer_s: dict[str, Number]
    """Mean time of one MoE layer."""


class TraceRecord(Frozen):
    """A trace by path (relative to the plan) and hash."""

    path: str
    sha256: str


class PlanInputs(Frozen):
    """Everything resolved, so that a plan can be checked, exported and validated alone."""

    name: str
    model: Model
    topology: TopologyFile
    gpus: Positive
    workload: Workload
    cost: Constants
    engine: str | None
    engine_version: str | None
    rules: EngineRules
    keep_groups: Literal["node"] | None = None
    traces: tuple[TraceRecord, ...]
    traced_layer_ids: tuple[Whole, ...]
    windows: str


class Plan(Frozen):
    """A plan.json."""

    version: str
    split: SplitRecord
    stages: tuple[StageRecord, ...]
    placement: PlacementRecord
    predicted: Predicted
    solver: SolverRecord
    baselines: dict[str, BaselineRecord]
    held_out: HeldOutRecord | None
    notes: tuple[str, ...]
    candidates: tuple[CandidateRecord, ...]
    inputs: PlanInputs

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        """What every reader of a plan relies on; whether the figures are right is for `ep-plan check`."""
        traced, predicted = len(self.inputs.traced_layer_ids), self.predicted
        curves = [predicted.layer_imbalance, *(record.layer_imbalance for record in self.baselines.values())]
        wrong = {
            "inputs.topology.gpu: a plan holds its GPU in full": not isinstance(self.inputs.topology.gpu, Gpu),
            "baselines: linear is missing": "linear" not in self.baselines,
            f"layer_imbalance: expected one figure for each of {traced} traced layers": any(
                len(curve) != traced for curve in curves
            ),
            "predicted.rank_tokens: expected one row for each layer of the placement": len(predicted.rank_tokens)
            != len(self.placement.layer_ids),
            "predicted.memory_bytes: expected one figure for each GPU": len(predicted.memory_bytes) != self.inputs.gpus,
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(message)
        return self


_SCHEMA = "ep-plan/plan/1"


def plan_text(plan: Plan) -> str:
    """The plan as JSON, one row per layer, ending in a newline."""
    data = {"schema": _SCHEMA, **plan.model_dump(mode="json")}
    return _pretty(data, 0) + "\n"


def _pretty(value: Any, depth: int) -> str:
    """JSON with one list of numbers (or one small record) per line."""
    compact = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or _is_leaf(value, compact):
        return compact
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, list):
        inside = (f"{pad}{_pretty(item, depth + 1)}" for item in value)
        return "[\n" + ",\n".join(inside) + f"\n{end}]"
    pairs = (f"{pad}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, depth + 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(pairs) + f"\n{end}}}"


def _is_leaf(value: dict[str, Any] | list[Any], compact: str) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, dict | list) for item in value)
    return len(compact) <= 160


def read_plan(path: Path) -> Plan:
    """Read a plan.json; raises `InputError` with all problems and their places."""
    data = documents.read_json(path)
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        hint = f"expected a file written by ep-plan solve (schema: {_SCHEMA})"
        raise InputError(Problem(f"not a plan: schema is {found!r}", Place(str(path)), hint))
    values = {key: value for key, value in data.items() if key != "schema"}
    try:
        return documents.validated(Plan, values)
    except ValidationError as error:
        document = documents.document_of_json(path, data)
        raise InputError(documents.problems_of(error, document, Plan)) from None
