"""Permuted checkpoints answer as the originals do, and route to linear ranks what the plan says.

Logits agree within 1e-5 of the largest, in single precision, and not bit by bit: experts are added up in
another order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="running models needs torch")
pytest.importorskip("transformers", reason="building models needs transformers")
torch.set_num_threads(1)  # small work, many test processes

from planner.export.checkpoint.rewrite import prepare, rewrite  # noqa: E402
from planner.export.layout import layout_of  # noqa: E402
from planner.trace.native import read_trace  # noqa: E402
from planner.trace.trace import TokenTrace  # noqa: E402
from tests.unit.export import tiny_models  # noqa: E402


def counts_of(trace: Path, ranks: int) -> list[list[int]]:
    """Choices that each rank serves in linear layout, by MoE layer."""
    read = read_trace(trace).trace
    assert isinstance(read, TokenTrace)
    ids_TLK = read.source.whole("expert_ids").astype(np.int64)
    per_rank = read.num_experts // ranks
    return [
        np.bincount(ids_TLK[:, layer].reshape(-1) // per_rank, minlength=ranks).tolist()
        for layer in range(ids_TLK.shape[1])
    ]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_permuted_model_is_the_model(family: str, tmp_path: Path) -> None:
    weights, permuted = tmp_path / "weights", tmp_path / "permuted"
    tiny_models.build(family, weights)
    original = tiny_models.load(weights)
    before = tiny_models.run(original, tmp_path / "trace.npz")
    ep = tiny_models.RANKS.get(family, 4)
    plan, plan_file = tiny_models.planned(tmp_path, weights, ep)
    assert plan.placement.physical_to_logical != tuple(
        tuple(range(plan.inputs.model.moe.num_experts)) for _ in plan.placement.layer_ids
    )
    work = prepare(layout_of(plan, plan_file), plan_file, weights, router_only=False)
    assert work.renamed + work.reordered > 0
    rewrite(work, permuted)

    model = tiny_models.load(permuted)
    after = tiny_models.run(model, tmp_path / "after.npz")
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    linear = counts_of(tmp_path / "trace.npz", ep)
    assert counts_of(tmp_path / "after.npz", ep) == [list(row) for row in plan.predicted.rank_tokens] != linear


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_a_wrong_permutation_would_be_seen(family: str, tmp_path: Path) -> None:
    """The comparison above is no formality: with routers permuted alone, logits are others."""
    weights, permuted = tmp_path / "weights", tmp_path / "permuted"
    tiny_models.build(family, weights)
    before = tiny_models.run(tiny_models.load(weights), tmp_path / "trace.npz")
    plan, plan_file = tiny_models.planned(tmp_path, weights, tiny_models.RANKS.get(family, 4))
    work = prepare(layout_of(plan, plan_file), plan_file, weights, router_only=False)
    for name in list(work.moves):
        if not work.moves[name].is_router:
            work.moves[name] = type(work.moves[name])(name)  # type: ignore[index]
    rewrite(work, permuted)
    after = tiny_models.run(tiny_models.load(permuted), tmp_path / "after.npz")
    assert (after - before).abs().max() > 1e-3 * before.abs().max()
