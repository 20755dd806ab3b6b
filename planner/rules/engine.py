"""What an engine can run: one small function per way to lay out its grid, named by the profile.

Legend: tp, dp, pp, ep, etp, edp as in `planner.plan.split`; per stage tp * dp = etp * ep * edp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from planner.cost.grid import Grid as StageGrid
from planner.inputs.engines import EngineRules, ExpertGrid
from planner.plan.split import Split
from planner.rules.verdict import Verdict


def verdicts(split: Split, redundant: int, rules: EngineRules, name: str) -> Iterator[Verdict]:
    """The rules of an engine over a split."""
    grid = _GRIDS[rules.expert_grid](split)
    if grid is not None:
        limit, holds, detail = grid
        value = f"etp {split.etp} x ep {split.ep} x edp {split.edp}"
        yield Verdict(f"{name} grid", value, limit, holds, detail, rules.source)
    if rules.attention == "all_or_none":
        holds = split.tp == 1 or split.dp == 1
        limit = f"tp {split.stage_gpus} or dp {split.stage_gpus}"
        detail = "tp over all GPUs of a stage, or data parallel over all"
        yield Verdict(f"{name} attention", f"tp {split.tp} x dp {split.dp}", limit, holds, detail, rules.source)
    if redundant:
        yield _copies(split, redundant, rules, name)


def order(split: Split, rules: EngineRules, name: str, grids: Sequence[StageGrid]) -> Iterator[Verdict]:
    """Where EP ranks grow fastest, shards lie on other GPUs than a plan says; among GPUs all alike it is no matter."""
    if rules.expert_order == "etp_first" or split.ep == 1 or split.etp == 1:
        return
    holds = all(_all_alike(grid) for grid in grids)
    limit = "etp = 1 or ep = 1, or GPUs that are all joined alike"
    detail = f"neighbours hold different experts, so the {split.etp} shards of one lie {split.ep} GPUs apart"
    value = f"etp {split.etp} x ep {split.ep}"
    yield Verdict(f"{name} order", value, limit, holds, "all joined alike" if holds else detail, rules.source)


def _all_alike(grid: StageGrid) -> bool:
    """Whether it makes no difference which GPU of a stage is which."""
    machine = grid.topology
    if machine.shares_ports or machine.pairs or not machine.links_alike or len(np.unique(grid.kind_G)) > 1:
        return False
    return all(len(np.unique(unit_G)) in (1, len(unit_G)) for unit_G in grid.unit_VG)


def _copies(split: Split, redundant: int, rules: EngineRules, name: str) -> Verdict:
    """Whether several copies of an expert would be used; some engines drop them without a word."""
    limit, holds, detail = "ep > 1", split.ep > 1, "copies need ep > 1"
    if not rules.redundant_experts:
        limit, holds, detail = "0", False, "an expert cannot have several copies"
    elif rules.copies_need_dp and split.dp == 1:
        limit, holds, detail = "dp > 1", False, "copies are ignored without data-parallel attention"
    detail = f"{redundant} redundant experts" if holds else detail
    return Verdict(f"{name} copies", f"{redundant}", limit, holds, detail, rules.source)


Grid = tuple[str, bool, str]
"""What the expert grid must be, whether it is, and that in words."""


def _all_or_none(split: Split) -> Grid:
    """vLLM: with expert parallelism on, EP = TP x PCP x DP; off, every expert is sharded over the same GPUs.

    There is no degree in between (vllm-project/vllm#28889 asks for one), and copies of the grid would
    be separate servers (vllm-project/vllm#30615).
    """
    stage = split.stage_gpus
    holds = (split.ep, split.etp, split.edp) in ((stage, 1, 1), (1, stage, 1))
    limit = f"ep = {stage}, or etp = {stage}"
    return limit, holds, f"ep = {stage} (all GPUs of a stage) or every expert sharded over all {stage}"


def _no_copies(split: Split) -> Grid:
    """TensorRT-LLM: moe_tp x moe_ep = tp of the stage (`tensorrt_llm/mapping.py`)."""
    detail = f"edp {split.edp}: the expert grid is not copied inside a stage"
    return "edp = 1", split.edp == 1, detail if split.edp > 1 else f"moe_tp {split.etp} x moe_ep {split.ep}"


def _one_remainder(split: Split) -> Grid:
    """SGLang: ep x moe_dp <= tp; if both exceed 1 they must fill the stage, so no expert is sharded as well."""
    holds = split.ep == 1 or split.edp == 1 or split.etp == 1
    limit = "etp = 1 where ep > 1 and edp > 1"
    detail = f"ep {split.ep} x moe_dp {split.edp} must be all {split.stage_gpus} GPUs of a stage where both exceed 1"
    return limit, holds, detail


def _two_grids(split: Split) -> Grid:
    """Megatron-LM: TP x CP x DP for dense parts, ETP x EP x EDP for experts, over the same GPUs of a stage.

    Any factorisation will do, so EP may exceed DP ("parallel folding"); users expect otherwise
    (NVIDIA-NeMo/Speech#14838).
    """
    dense, expert = split.tp * split.dp, split.etp * split.ep * split.edp
    return f"tp x dp = {dense}", dense == expert, f"tp {split.tp} x dp {split.dp} = {dense}, experts {expert}"


_GRIDS: Final[dict[ExpertGrid, Callable[[Split], Grid | None]]] = {
    "all_or_none": _all_or_none,
    "no_copies": _no_copies,
    "one_remainder": _one_remainder,
    "two_grids": _two_grids,
    "free": lambda _: None,
}
