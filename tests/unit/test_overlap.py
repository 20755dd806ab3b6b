"""What traffic hides behind, drafts, and measured figures of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from planner.cost.booking import book
from planner.cost.memory import stage_memories
from planner.cost.step import SplitCost, split_cost
from planner.errors import InputError
from planner.inputs.deployment import load_kernel
from planner.inputs.kernels import KernelFigures, KernelFile, on_machine
from planner.inputs.topology import load_topology
from planner.inputs.workload import Overlap, Workload
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.rules import broken_rules
from tests import building


def cost_of(hides: Overlap, micro_batches: int = 1, **work: Any) -> SplitCost:
    of = building.model(experts=8, shared=96)
    windows = building.random_windows(np.random.default_rng(1), of, 3)
    using = building.constants(hides=hides, overlap="50%")
    made = building.instance(of, building.topology(1, 4), windows=windows, using=using, tokens=512)
    if work:
        made = made.__class__(**{**made.__dict__, "workload": made.workload.model_copy(update=work)})
    return split_cost(made, Split(1, 4, 1, 4, micro_batches=micro_batches), 0)


def test_half_of_what_can_hide_does() -> None:
    plain, shared, turns = (cost_of(hides) for hides in ("none", "shared", "two_batch"))
    load, layout = plain.instance.loads[0], np.arange(8)
    times = plain.stages[0].moe.layer(load, layout)
    traffic_S = times.dispatch_S + times.combine_S
    assert times.total_S == pytest.approx(times.expert_S + traffic_S)
    terms = next(iter(plain.stages[0].run_terms.values()))
    aside = next(term.seconds for term in terms if term.name == "shared experts")
    saved_S = times.total_S - shared.stages[0].moe.layer(load, layout).total_S
    assert saved_S == pytest.approx(0.5 * np.minimum(aside, traffic_S))
    rest = sum(term.seconds for term in terms)
    saved_S = times.total_S - turns.stages[0].moe.layer(load, layout).total_S
    assert saved_S == pytest.approx(0.5 * np.minimum(times.expert_S + rest, traffic_S))


def test_two_batches_need_two_micro_batches() -> None:
    limits = building.space().limits
    one, two = cost_of("two_batch"), cost_of("two_batch", micro_batches=2)
    reasons = [verdict.rule for verdict in broken_rules(one.instance, one.split, 0, limits)]
    assert reasons == ["micro-batches"]
    assert not broken_rules(two.instance, two.split, 0, limits)


# --- drafts ---------------------------------------------------------------------------------------


def test_drafts_share_a_cache_and_count_when_accepted() -> None:
    """Two drafts at 50 %: 1 + 0.5 + 0.25 tokens per sequence and step; a third of the tokens are sequences."""
    plain, drafting = cost_of("none"), cost_of("none", draft_tokens=2, acceptance=0.5)
    layout = Placement((0, 1), 2, np.tile(np.arange(8), (2, 1)))
    before, after = (book(cost, (range(2),), layout) for cost in (plain, drafting))
    sequences = plain.instance.step_tokens / 3
    assert after.tokens_per_s == pytest.approx(sequences * 1.75 / after.step_s)
    assert after.time_per_output_token_s == pytest.approx(after.step_s / 1.75)
    assert before.time_per_output_token_s == before.step_s
    assert before.time_to_first_token_s is None

    def cache(cost: SplitCost) -> int:
        (memory,) = stage_memories(cost.instance, [cost.stages[0].grid], 8)
        return sum(line.num_bytes for line in memory.lines(range(2), 4) if "KV cache" in line.name)

    assert cache(drafting) == pytest.approx(cache(plain) / 3, rel=0.01)
    assert after.step_s < before.step_s  # the cache is read once for three tokens


@pytest.mark.parametrize(
    "more", [{"draft_tokens": 1}, {"acceptance": "50%"}, {"draft_tokens": 1, "acceptance": "50%", "phase": "prefill"}]
)
def test_half_a_draft_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="draft_tokens"):
        Workload(**{"phase": "decode", "tokens_per_gpu": 8, "context_length": 8, **more})


# --- measured on the machine ----------------------------------------------------------------------

TOPOLOGY = """\
schema: ep-plan/topology/1
gpu: h100-sxm
nodes: 2
gpus_per_node: 4
links:
  - {level: node, bandwidth: 450 GB/s, latency: 3 us}
  - {level: cluster, bandwidth: 50 GB/s, latency: 10 us}
calibration:
  - kernel: all-to-all
    dispatch: {value: {launch: 33 us}, basis: measured, source: "on this very machine"}
    scale_up: {value: 44%, basis: measured, source: "on this very machine"}
    levels: {cluster: {value: 22%, basis: measured, source: "on this very machine"}}
"""


def test_measured_figures_replace_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    on = load_topology(tmp_path / "topology.yaml")
    shipped = load_kernel("all-to-all")
    found = on_machine(shipped, "all-to-all", [["h100-sxm"]], on.file.calibration)
    assert (found.dispatch.value.launch, found.dispatch.basis) == (33e-6, "measured")
    assert found.combine == shipped.combine
    assert found.reach.scale_up == 0.44
    assert found.reach.levels == {"cluster": 0.22}
    assert on_machine(load_kernel("nccl"), "nccl", [["none"]], on.file.calibration).reach == load_kernel("nccl").reach

    def volume(kernel: KernelFile) -> float:
        of = building.model(experts=8)
        using = building.constants().model_copy(update={"kernel": kernel})
        windows = building.random_windows(np.random.default_rng(1), of, 1)
        made = building.instance(of, on, windows=windows, using=using)
        moe = split_cost(made, Split(1, 8, 1, 8), 0).stages[0].moe
        rows = moe.rank_load(made.loads[0], np.arange(8))[0]
        return float(moe.volume_S(made.loads[0], np.arange(8), rows)[0])

    only_level = shipped.model_copy(update={"levels": found.levels})
    assert volume(only_level) == pytest.approx(volume(shipped) * shipped.scale_out.value / 0.22)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kernel: all-to-all", "kernel: all2all"), "unknown communication kernel 'all2all'"),
        (("{cluster: {v", "{rack: {v"), "no level"),
    ],
)
def test_calibration_of_what_is_not_there_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY.replace(*change))
    with pytest.raises(InputError, match=message):
        load_topology(tmp_path / "topology.yaml")


def test_figures_of_a_gpu_hold_where_all_gpus_have_them() -> None:
    launch = {"value": {"launch": "1 us"}, "source": "made by a test"}
    own = KernelFigures.model_validate({"dispatch": launch})
    kernel = load_kernel("all-to-all").model_copy(update={"on": {"a": own, "b": own}})
    assert on_machine(kernel, "all-to-all", [["a"], ["b"]], ()).dispatch.value.launch == 1e-6
    assert on_machine(kernel, "all-to-all", [["a"], ["c"]], ()).dispatch == kernel.dispatch
    assert on_machine(kernel, "all-to-all", [["a"]], ()).on == {}
    assert on_machine(kernel, "all-to-all", [["of the same chip", "a"]], ()).dispatch.value.launch == 1e-6
