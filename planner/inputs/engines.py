"""What an engine can run: its rules over a split, from its profile.

Sources and versions stand in `profiles/engines/*.yaml`.

Legend: tp, dp, pp, ep, etp, edp as in `planner.plan.split`; E experts, N redundant experts.
"""

from __future__ import annotations

from typing import Literal

from planner.errors import Place
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.sourced import Sourced
from planner.inputs.units import SizeOrZero
from planner.inputs.workload import Phase

CopyRule = Literal["even"]


class EngineRules(Frozen):
    """Which splits an engine can run."""

    expert_grid: Literal["all_or_none", "free", "no_copies"]
    """all_or_none: experts are spread over all GPUs of a stage, or every one of them is sharded over
    all; free: any etp x ep x edp; no_copies: any etp x ep with edp = 1."""
    attention: Literal["any", "all_or_none"]
    """any: any tp x dp; all_or_none: tp over all GPUs of a stage, or data parallel over all."""
    uneven_experts: Literal["never", "without_copies", "always"]
    """Whether ranks may hold unequal numbers of experts, with redundant experts or without."""
    redundant_experts: bool
    """Whether an expert may have several copies."""


class EngineFile(Frozen):
    """A serving or training engine as planning sees it."""

    version: str
    """Version that the rules are of."""
    rules: EngineRules
    """Which splits it can run."""
    copy_rule: CopyRule
    """How the copies of an expert share its tokens."""
    kernel: dict[Phase, str]
    """Communication kernel by phase."""
    reserve: Sourced[SizeOrZero]
    """Memory that the engine keeps per GPU: context, graphs, allocator slack."""
    source: str
    """Files that the rules were read from."""
    note: str = ""
    """Anything a reader should know."""


ANY_ENGINE = "any"


def load_engine(name: str | None, where: Place | None = None) -> EngineFile:
    """Read an engine profile; without a name the permissive one called `any`."""
    path = profiles.path_of("engines", name or ANY_ENGINE, where)
    engine, _ = documents.load(path, EngineFile, "engine")
    return engine
