"""What an engine can run and what memory it keeps, from its profile.

Sources and versions stand in `profiles/engines/*.yaml`.

Legend: tp, dp, pp, ep, etp, edp as in `planner.plan.split`; E experts, N redundant experts.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.kernels import EngineBuffer
from planner.inputs.sourced import Basis, Sourced
from planner.inputs.units import Percentage, SizeOrZero
from planner.inputs.workload import CopyRule, Overlap, Phase

ExpertGrid = Literal["all_or_none", "one_remainder", "no_copies", "two_grids", "free"]


class EngineRules(Frozen):
    """Which splits an engine can run."""

    expert_grid: ExpertGrid
    """all_or_none: experts are spread over all GPUs of a stage, or every one of them is sharded over
    all; one_remainder: ep and edp above 1 leave no etp; no_copies: any etp x ep with edp = 1;
    two_grids, free: any etp x ep x edp."""
    attention: Literal["any", "all_or_none"]
    """any: any tp x dp; all_or_none: tp over all GPUs of a stage, or data parallel over all."""
    uneven_experts: Literal["never", "without_copies", "always"]
    """Whether ranks may hold unequal numbers of experts, with redundant experts or without."""
    redundant_experts: bool
    """Whether an expert may have several copies."""
    copies_need_dp: bool = False
    """Whether copies of experts are used only with data-parallel attention."""
    exchange_needs_dp: bool = False
    """Whether tokens travel to experts only with data-parallel attention; without it every rank of a stage has all
    tokens, and an all-reduce joins what experts give."""
    expert_order: Literal["etp_first", "ep_first"] = "etp_first"
    """Which rank of the expert grid grows fastest with the GPUs of a stage: the shard of an expert, or its EP rank."""
    vocabulary_padding: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """The vocabulary is padded to a multiple of this, which tp must divide; null: padded as tp needs."""
    vocabulary_source: str = ""
    """Where that comes from."""
    even_cuts: bool = False
    """Whether stages have as equally many layers as can be, the first ones more, and no others can be asked for."""
    whole_stage_kernels: tuple[str, ...] = ()
    """Communication kernels that it runs only with ep = all GPUs of a stage."""
    source: str = ""
    """Files or threads that the rules come from."""


class ReserveLine(Frozen):
    """One use of memory by the engine itself: a constant, and parts that grow with the deployment."""

    name: str
    """What takes the memory."""
    fixed: SizeOrZero = 0
    """In any case."""
    per_gpu: SizeOrZero = 0
    """For each GPU of the deployment."""
    per_sequence: SizeOrZero = 0
    """For each sequence of a decode step on one data-parallel rank, up to `graph_sequences`."""
    basis: Basis
    """What the figure rests on."""
    source: str
    """Where it comes from."""


EngineName = Annotated[str, AfterValidator(partial(profiles.known, "engines"))]
"""Name of an engine profile."""
Share = Annotated[Percentage, Field(gt=0, le=1)]


class EngineMemory(Frozen):
    """Memory of a GPU that the model cannot use."""

    share: Sourced[Share]
    """Part of the GPU's memory that the engine plans with; the rest stays free."""
    cache_share: Sourced[Share] | None = None
    """Part of what weights and working space leave that becomes KV cache; null: all of it."""
    graph_sequences: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Most sequences of a decode step that graphs are captured for."""
    lines: tuple[ReserveLine, ...]
    """What the engine takes for itself."""

    def usable_bytes(self, memory_bytes: int) -> int:
        """What the engine uses of a GPU with so much memory: its share, rounded down."""
        return math.floor(memory_bytes * Fraction(str(self.share.value)))


class EngineFile(Frozen):
    """A serving or training engine as planning sees it."""

    version: str
    """Version that the rules are of."""
    rules: EngineRules
    """Which splits it can run."""
    copy_rule: CopyRule
    """How the copies of an expert share tokens that come by all-to-all. even: evenly; nearest: own rank, else own
    node, else evenly. With an all-gather they always share evenly."""
    kernel: dict[Phase, str]
    """Communication kernel by phase."""
    one_node_kernel: str | None = None
    """What it runs instead on a single node unless told otherwise; null: the same."""
    overlap: dict[Phase, Overlap] = Field(default_factory=dict)
    """What traffic hides behind, by phase; a phase left out: nothing."""
    own_kernels_only: bool = False
    """Whether it has no compute kernels but its own; others choose among those of several libraries."""
    collectives: str = "nccl"
    """Kernel of tensor-parallel collectives and pipeline sends."""
    small_collectives: str | None = None
    """Kernel of all-reduces of small tensors inside a scale-up domain; null: the same as of large ones."""
    buffers: dict[str, EngineBuffer] = Field(default_factory=dict)
    """Sizes that it asks of a kernel's buffer, by kernel."""
    memory: EngineMemory
    """Memory that the model cannot use."""
    source: str
    """Files that the rules were read from."""
    note: str = ""
    """Anything a reader should know."""


ANY_ENGINE = "any"


def load_engine(name: str | None) -> EngineFile:
    """Read an engine profile; without a name the permissive one called `any`."""
    path = profiles.path_of("engines", name or ANY_ENGINE)
    engine, _ = documents.load(path, EngineFile, "engine")
    return engine
