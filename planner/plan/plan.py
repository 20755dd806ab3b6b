"""A plan: what was decided, what it is predicted to do, how good it provably is, and from what.

Everything needed to check, export or validate the plan alone is in it; traces are named by path and
hash. How it stands in its file: `plan_file.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from planner.inputs.constants import Constants
from planner.inputs.documents import Frozen, Sparse
from planner.inputs.engines import EngineRules
from planner.inputs.gpu import Gpu
from planner.inputs.model import Model
from planner.inputs.sourced import Basis
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.workload import CopyRule, Workload

Number = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Slot = Annotated[int, Field(ge=-1, lt=1 << 31)]


class SplitRecord(Frozen):
    """Degrees, alike in all stages."""

    tp: Positive
    """Tensor-parallel attention ranks."""
    dp: Positive
    """Data-parallel attention ranks."""
    pp: Positive
    """Pipeline stages."""
    ep: Positive
    """Ranks that experts are spread over."""
    etp: Positive = 1
    """GPUs that share each expert."""
    edp: Positive = 1
    """Copies of the expert grid."""
    micro_batches: Positive = 1
    """Micro-batches of a step."""

    @property
    def text(self) -> str:
        """For people; degrees of 1 that nobody asks about are left out."""
        shown = [f"tp={self.tp} dp={self.dp} ep={self.ep}"]
        shown += [f"{name}={getattr(self, name)}" for name in ("etp", "edp", "pp") if getattr(self, name) > 1]
        return " ".join(shown) + (f" mb={self.micro_batches}" if self.micro_batches > 1 else "")


class StageRecord(Frozen):
    """Hidden layers [first, end) and global GPU ids in rank order."""

    layers: tuple[Whole, Whole]
    """First hidden layer, and the first of the next stage."""
    gpus: tuple[Whole, ...]
    """Index i is attention rank i % tp, expert-TP rank i % etp, EP rank (i // etp) % ep."""


class PlacementRecord(Frozen):
    """Slots of all MoE layers; slot s lives on EP rank s // slots_per_rank; -1 is empty."""

    layer_ids: tuple[Whole, ...]
    """Hidden-layer index of every MoE layer."""
    slots_per_rank: Positive
    """Slots of the longest rank."""
    redundant_experts: Whole = 0
    """Redundant experts per layer, over all ranks."""
    copy_rule: CopyRule = "even"
    """How copies of an expert share its tokens. even: evenly; nearest: own rank, else own node, else evenly."""
    physical_to_logical: tuple[tuple[Slot, ...], ...]
    """For each MoE layer, the expert in each slot."""


class ErrorRecord(Frozen):
    """Absolute relative errors on measurements that took no part in the fit."""

    median: Number
    """Half of them are smaller."""
    p90: Number
    """Nine in ten are smaller."""


class BasisRecord(Frozen):
    """How much of a step rests on constants of one kind."""

    basis: Basis
    """What they rest on."""
    share: Number
    """Part of the time of all kernels and messages."""
    error: ErrorRecord | None
    """Error of such kernels by themselves; null: nobody knows."""


class TermRecord(Frozen):
    """One part of the step's time."""

    name: str
    """What takes the time."""
    seconds: float
    """With one stage, of all micro-batches; with several, of one micro-batch summed over stages."""
    speed_of_light_s: float
    """The same work at datasheet rates."""
    basis: Basis
    """What the constants rest on."""
    source: str
    """Where they come from."""
    error: ErrorRecord | None = None
    """How far the constants are off by themselves; null: nobody knows."""


class MemoryRecord(Frozen):
    """One use of memory on the fullest GPU of a stage."""

    name: str
    """What takes the memory."""
    bytes: Whole
    """How much."""
    basis: Basis
    """What the figure rests on."""
    source: str
    """Where it comes from."""


class WindowRecord(Frozen):
    """One window: its step time and the mean over layers of its max/mean rank load."""

    name: str
    """Name of the window."""
    step_s: Number
    """Its step time."""
    imbalance: Number
    """Mean over layers of max/mean rows."""


class Predicted(Frozen):
    """The figures that a plan books."""

    step_s: Number
    """Time for all of the step's tokens to advance once; the objective."""
    tokens_per_s: Number
    """Tokens of a step over its time; in decode output tokens, drafts that are refused left out."""
    time_per_output_token_s: Number | None
    """Decode: time between two tokens of a sequence, without queueing."""
    time_to_first_token_s: Number | None
    """Prefill: until a prompt is through, without queueing: a step, or several where a rank has less than a prompt."""
    balancedness: float | None
    """Sum of means over sum of maxima of the ranks' rows; null without a trace."""
    memory_bytes: tuple[Whole, ...]
    """By GPU id."""
    rank_tokens: tuple[tuple[Whole, ...], ...]
    """Choices that each rank serves in each MoE layer over all windows as recorded."""
    p95_s: Number
    """95th percentile of the windows' step times."""
    worst_s: Number
    """Step time of the slowest window."""
    stage_s: tuple[Number, ...]
    """Time of each stage for one micro-batch."""
    terms: tuple[TermRecord, ...]
    """Parts that add up to the step time."""
    rests_on: tuple[BasisRecord, ...]
    """Shares of the step by what the constants rest on, best known first."""
    memory: tuple[tuple[MemoryRecord, ...], ...]
    """For each stage, the lines of its fullest GPU."""
    windows: tuple[WindowRecord, ...]
    """Every window."""
    layer_imbalance: tuple[Number, ...]
    """Mean over windows of the ranks' max/mean rows, for each traced layer."""
    noise_floor: float | None
    """The max/mean that perfectly uniform routing of the recorded windows would show."""


class ProgressRecord(Frozen):
    """What the search knew after some effort."""

    effort: Number
    """Deterministic effort spent until then."""
    objective_s: Number
    """Objective of the best plan found until then."""
    bound_s: Number
    """Until then no plan over all candidates was known to have a smaller one."""


class SolverRecord(Sparse):
    """How the plan was found and what is proved about it."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"history"})

    status: Literal["optimal", "feasible"]
    """optimal: the gap is at most 1e-6."""
    objective_s: Number
    """What was minimised: the plan's step time, with `risk` the mean step of its slowest windows."""
    bound_s: Number
    """No plan over all candidates has a smaller objective."""
    gap: Number
    """(objective - bound) / objective."""
    effort: Number
    """Deterministic effort spent."""
    stopped_by: Literal["proof", "gap", "effort", "time_limit", "interrupt"]
    """Why the search ended."""
    history: tuple[ProgressRecord, ...] = ()
    """Changes of the best plan or the bound, in order, at most 100; the last is how the search ended. While the layers
    of the first split are being placed, the best plan is that with the rest linear. Left out in plans that were made by
    hand."""


class BaselineRecord(Frozen):
    """A built-in placement on the same split, judged on the same windows."""

    step_s: Number
    """Its step time."""
    balancedness: float | None
    """As of the plan."""
    imbalance: float | None
    """Mean over layers and windows of the ranks' max/mean rows."""
    layer_imbalance: tuple[Number, ...]
    """Mean over windows of max/mean rows, for each traced layer."""
    duplicates: Whole = 0
    """Rank-layer pairs that hold some expert twice."""


class RuleRecord(Frozen):
    """A rule of a split with its verdict."""

    rule: str
    """What is examined."""
    value: str
    """The figure."""
    limit: str
    """What it must fit: `mod tp 3`, `at most 1024`."""
    holds: bool
    """Whether it does."""
    detail: str
    """The arithmetic, and what would mend it."""
    source: str
    """Thread or file that the rule comes from; empty for arithmetic of the grid."""


class CandidateRecord(Sparse):
    """One split that was looked at, and its outcome."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"layout"})

    split: SplitRecord
    """The split."""
    redundant_experts: Whole
    """Redundant experts per layer."""
    layout: str = ""
    """With unequal GPUs, how they form stages and how slots are shared out; left out: as with equal ones."""
    outcome: Literal["chosen", "priced", "bounded", "rejected"]
    """chosen; priced: a plan was found; bounded: only its bound is known; rejected."""
    bound_s: float | None = None
    """No plan with this split has a smaller objective."""
    step_s: float | None = None
    """Objective of the best plan found with it: its step time, with `risk` the mean of its slowest windows."""
    free_bytes: int | None = None
    """Memory left on the fullest GPU under the cuts that need least; negative if over."""
    spare_kv_tokens: int | None = None
    """Tokens that the KV cache of a data-parallel rank could hold besides, under the same cuts; null if
    rejected, if the search was stopped, or if nothing grows with the tokens."""
    most_sequences: int | None = None
    """Most sequences of the workload's context that fit (prefill: tokens of a step), all ranks together;
    null if rejected, or if nothing limits them."""
    longest_context: int | None = None
    """Longest context that fits with the workload's sequences; null if rejected, in prefill, or if nothing
    limits it."""
    reasons: tuple[str, ...] = ()
    """Rules that it breaks."""
    rules: tuple[RuleRecord, ...] = ()
    """chosen: every rule; rejected: those that it breaks; else none."""


class HeldOutRecord(Frozen):
    """The same search on some windows, judged on the others, with the baselines beside it."""

    how: str
    """Which windows plan and which judge."""
    layers: Positive
    """Layers that took part."""
    imbalance: dict[str, Number]
    """Mean over layers and windows of the ranks' max/mean rows, by name of placement."""
    layer_s: dict[str, Number]
    """Mean time of one MoE layer."""


class TraceRecord(Frozen):
    """A trace by path (relative to the plan) and hash."""

    path: str
    """Relative to the plan."""
    sha256: str
    """Of the file."""


class SearchRecord(Sparse):
    """What was looked for, and when to stop."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"risk"})

    pins: dict[str, Positive]
    """Degrees that were given; the others were chosen."""
    redundant_experts: Whole | Literal["auto"]
    """As given; auto: the number with the least step time."""
    gap: Number
    """Stop when (objective - bound) / objective is at most this."""
    seed: Whole
    """Seed of the integer program."""
    risk: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the windows, the slowest, whose mean step is minimised; left out: the step time."""


class PlanInputs(Frozen):
    """Everything resolved, so that a plan can be checked, exported and validated alone."""

    name: str
    """Name of the model."""
    model: Model
    """The model, resolved."""
    topology: TopologyFile
    """The machine, GPU inline."""
    gpus: Positive
    """GPUs in service."""
    workload: Workload
    """The work."""
    cost: Constants
    """All constants of the cost model."""
    engine: str | None
    """Name of the engine; null if none was given."""
    engine_version: str | None
    """Its version."""
    rules: EngineRules
    """What the engine can run."""
    keep_groups: Literal["node"] | None = None
    """Whether routing groups stay on a node."""
    target: Literal["checkpoint"] | None = None
    """checkpoint: the placement is one that permuting a checkpoint realises."""
    search: SearchRecord
    """What was looked for."""
    traces: tuple[TraceRecord, ...]
    """Recorded routing."""
    traced_layer_ids: tuple[Whole, ...]
    """Hidden layers with recorded routing."""
    windows: str
    """How the windows were made."""

    @property
    def machine(self) -> Topology:
        """The GPUs in service that the plan is for."""
        return resolve(self.topology, self.gpus)


class Plan(Sparse):
    """A plan.json."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"rejected_left_out"})

    version: str
    """Version of ep-plan."""
    split: SplitRecord
    """The degrees."""
    stages: tuple[StageRecord, ...]
    """Layers and GPUs of every stage."""
    placement: PlacementRecord
    """Experts in slots."""
    predicted: Predicted
    """Figures, re-derived by `ep-plan check`."""
    solver: SolverRecord
    """How good it provably is."""
    baselines: dict[str, BaselineRecord]
    """Built-in placements on the same split and windows."""
    held_out: HeldOutRecord | None
    """The same search judged on windows that it has not seen; null without enough windows."""
    notes: tuple[str, ...]
    """What to know before trusting the figures."""
    candidates: tuple[CandidateRecord, ...]
    """Every split looked at."""
    rejected_left_out: Whole = 0
    """Rejected splits that are not listed, as in golden plans: `ep-plan check` finds them again."""
    inputs: PlanInputs
    """Everything needed to check the plan alone."""

    @property
    def chosen(self) -> CandidateRecord:
        """The candidate that became the plan."""
        return next(candidate for candidate in self.candidates if candidate.outcome == "chosen")

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        """What every reader of a plan relies on; whether the figures are right is for `ep-plan check`."""
        traced, predicted = len(self.inputs.traced_layer_ids), self.predicted
        curves = [predicted.layer_imbalance, *(record.layer_imbalance for record in self.baselines.values())]
        wrong = {
            "inputs.topology: a plan holds its GPUs in full": not all(
                isinstance(gpu, Gpu) for gpu in self.inputs.topology.gpu_kinds()
            ),
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
