"""Collectives and libraries that gather: by hand, and what must hold for any of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accuracy.communication import predicted
from benchmarks.accuracy.traffic_points import Travel
from planner.cost.buffers import exchange_buffers
from planner.cost.collectives import Blocks, Operation
from planner.cost.instance import Instance
from planner.cost.step import SplitCost, split_cost
from planner.inputs.constants import Constants
from planner.inputs.deployment import load_kernel
from planner.inputs.engines import load_engine
from planner.inputs.kernels import Collective, Fitted
from planner.inputs.workload import CopyRule
from planner.plan.split import Split
from planner.rules import Limits, verdicts
from tests import building

LARGE = Collective(launch="5 us", step="1 us", softness=0.5, scale_up="80%", scale_out="90%")  # type: ignore[arg-type]
SMALL = Collective(launch="1 us", step="0 us", softness=1.0, scale_up="50%", most_bytes="1 MiB")  # type: ignore[arg-type]


def made(
    nodes: int,
    per_node: int,
    *,
    large: Collective = LARGE,
    small: Collective | None = SMALL,
    inner: str = "10 GB/s",
    outer: str = "1 GB/s",
) -> Instance:
    """A machine whose libraries have round figures."""
    nccl = load_kernel("nccl")
    using = building.constants().model_copy(
        update={
            "collectives": nccl.model_copy(update={"collective": Fitted(value=large)}),
            "small_collectives": small and nccl.model_copy(update={"collective": Fitted(value=small)}),
        }
    )
    return building.instance(on=building.topology(nodes, per_node, inner=inner, outer=outer), using=using)


def seconds(of: Instance, size: int, operation: Operation, num_bytes: float) -> float:
    return Blocks(of, tuple(range(of.topology.num_gpus)), size).term(operation, num_bytes).seconds


def test_all_reduce_in_a_domain_by_hand() -> None:
    """8 GPUs at 10 GB/s, 80 % reached, 8 MB: constant 5 + 2 * 7 * 1 = 19 us; 2 * 7/8 * 8 MB / 8 GB/s = 1750 us.

    Softness 1/2: (sqrt(19) + sqrt(1750))**2 us.
    """
    expected = (math.sqrt(19e-6) + math.sqrt(1750e-6)) ** 2
    assert seconds(made(1, 8), 8, "all_reduce", 8e6) == pytest.approx(expected)


def test_a_copied_share_and_phases_that_overlap_by_hand() -> None:
    """Half of the own share is copied: 7.5 shares instead of 7, of two phases eight tenths count.

    2 * 7.5/8 * 8 MB / 8 GB/s * 0.8 = 1500 us; gathering: (7.5/8) * 8 MB / 8 GB/s = 937.5 us, a = 12 us. Between nodes
    nobody measured either: as before.
    """
    figures = LARGE.model_copy(update={"copied": 0.5, "all_reduce": 0.8})
    reduced = seconds(made(1, 8, large=figures, small=None), 8, "all_reduce", 8e6)
    assert reduced == pytest.approx((math.sqrt(19e-6) + math.sqrt(1500e-6)) ** 2)
    gathered = seconds(made(1, 8, large=figures, small=None), 8, "all_gather", 8e6)
    assert gathered == pytest.approx((math.sqrt(12e-6) + math.sqrt(937.5e-6)) ** 2)
    apart = [seconds(made(2, 4, large=of, small=None), 8, "all_reduce", 8e6) for of in (figures, LARGE)]
    assert apart[0] == apart[1]


def test_the_smallest_tensors_are_read_whole() -> None:
    """8 ranks at 5 GB/s, 1 us a step: 3 + 14 + 7 * Z, or 20 + 14 + 1.75 * Z; they meet where 5.25 * Z takes 17 us."""
    figures = SMALL.model_copy(update={"launch": 20e-6, "step": 1e-6, "one_shot": 3e-6})
    slow = LARGE.model_copy(update={"launch": 1.0})
    of = made(1, 8, large=slow, small=figures)
    assert seconds(of, 8, "all_reduce", 8e3) == pytest.approx(17e-6 + 7 * 8e3 / 5e9)
    assert seconds(of, 8, "all_reduce", 64e3) == pytest.approx(34e-6 + 1.75 * 64e3 / 5e9)
    turn = 17e-6 / 5.25 * 5e9
    assert seconds(of, 8, "all_reduce", turn * 0.99) < seconds(of, 8, "all_reduce", turn * 1.01) < 39.8e-6
    assert seconds(of, 8, "all_gather", 8e3) > 1.0


def test_small_tensors_take_the_small_kernel_only_where_it_is_faster_and_can() -> None:
    """64 kB: 1 us + 1.75 * 64 kB / 5 GB/s = 23.4 us, against (sqrt(19) + sqrt(14))**2 = 65.6 us."""
    inside = made(1, 8)
    assert seconds(inside, 8, "all_reduce", 64e3) == pytest.approx(23.4e-6)
    assert seconds(made(1, 8, small=None), 8, "all_reduce", 64e3) == pytest.approx(65.62e-6, rel=1e-3)
    beyond_its_limit = seconds(inside, 8, "all_reduce", 2e6)
    assert beyond_its_limit == seconds(made(1, 8, small=None), 8, "all_reduce", 2e6)
    assert seconds(made(2, 4), 8, "all_reduce", 64e3) == seconds(made(2, 4, small=None), 8, "all_reduce", 64e3)
    assert seconds(inside, 8, "all_gather", 64e3) == seconds(made(1, 8, small=None), 8, "all_gather", 64e3)


def test_between_domains_latency_counts_by_doublings() -> None:
    """4 nodes of 2: 5 + 2 * 1 * 1 us in the node, 2 * log2(4) * 10 us between; a byte is nothing."""
    assert seconds(made(4, 2), 8, "all_reduce", 1e-9) == pytest.approx(47e-6, rel=1e-3)
    assert seconds(made(4, 2), 8, "all_gather", 1e-9) == pytest.approx(26e-6, rel=1e-3)


def test_slow_links_add_the_latency_that_the_launch_was_not_measured_on() -> None:
    slow = building.topology(1, 8)
    slow = replace(slow, latency_VG=np.full_like(slow.latency_VG, 13e-6))
    before = made(1, 8, small=None)
    after = replace(before, topology=slow)
    assert seconds(after, 8, "all_gather", 1e-9) - seconds(before, 8, "all_gather", 1e-9) == pytest.approx(
        10e-6, rel=1e-3
    )


@settings(deadline=None)
@given(
    st.sampled_from([(1, 8, 8), (2, 4, 8), (2, 4, 4), (4, 2, 4), (2, 4, 2)]),
    st.sampled_from(["all_reduce", "all_gather", "reduce_scatter"]),
    st.floats(1, 1e10),
    st.floats(1.01, 1e3),
    st.sampled_from([{}, {"copied": 0.7, "all_reduce": 0.8}, {"all_reduce": 0.3, "scale_up": 1.0, "one_shot": 2e-6}]),
)
def test_more_bytes_or_less_bandwidth_take_longer_and_nothing_beats_light(
    grid: tuple[int, int, int], operation: Operation, num_bytes: float, more: float, figures: dict[str, float]
) -> None:
    nodes, per_node, size = grid
    large = LARGE.model_copy(update=figures)
    one, half = (
        made(nodes, per_node, large=large, inner="8 GB/s", outer="2 GB/s"),
        made(nodes, per_node, large=large, inner="4 GB/s", outer="1 GB/s"),
    )
    term = Blocks(one, tuple(range(8)), size).term(operation, num_bytes)
    assert term.seconds >= term.light_s > 0
    assert seconds(one, size, operation, num_bytes * more) > term.seconds
    assert seconds(half, size, operation, num_bytes) > term.seconds


def test_profiles_are_priced_as_they_were_fitted() -> None:
    """`benchmarks accuracy` fits a form of its own, array by array: it must be that of the planner."""
    for name in ("nccl", "vllm-all-reduce"):
        figures = load_kernel(name).collective
        assert figures is not None
        values = {key: value for key, value in dict(figures.value).items() if value is not None}
        for size in (2, 4, 8):
            of = made(1, size, large=figures.value, small=None, inner="450 GB/s")
            sizes_N = np.asarray(2.0 ** np.arange(9, 24), dtype=np.float64)
            operations: tuple[Operation, ...] = ("all_reduce",) if name != "nccl" else ("all_reduce", "all_gather")
            for operation in operations:
                phases = 2 if operation == "all_reduce" else 1
                ones_N = np.ones(len(sizes_N))
                travel = Travel(
                    gpu="h100-sxm",
                    library=name,
                    ranks_N=size * ones_N,
                    phases_N=phases * ones_N,
                    inside_N=phases * (size - 1) / size * sizes_N,
                    beyond_N=0 * ones_N,
                    tokens_N=0 * ones_N,
                    nodes_N=ones_N,
                    seconds_N=ones_N,
                    group_N=np.zeros(len(sizes_N), dtype=np.int64),
                )
                priced = [seconds(of, size, operation, float(num_bytes)) for num_bytes in sizes_N]
                assert predicted(travel, values) == pytest.approx(priced)


# --- libraries that gather ------------------------------------------------------------------------


def gathering(split: Split, using: Constants | None = None) -> SplitCost:
    using = using or building.constants(kernel="allgather-reducescatter")
    of = building.model(experts=8)
    windows = building.random_windows(np.random.default_rng(0), of, 2)
    return split_cost(building.instance(of, building.topology(1, 4), windows=windows, using=using), split, 0)


def test_gathered_tokens_cost_the_same_wherever_experts_are() -> None:
    cost = gathering(Split(tp=1, dp=4, pp=1, ep=4))
    moe, load = cost.stages[0].moe, cost.instance.loads[0]
    linear = moe.layer(load, np.arange(8))
    other = moe.layer(load, np.array([0, 7, 1, 6, 2, 5, 3, 4]))
    assert linear.dispatch_S.tolist() == other.dispatch_S.tolist()
    assert linear.combine_S.tolist() == other.combine_S.tolist()
    blocks = Blocks(cost.instance, (0, 1, 2, 3), 4)
    num_bytes = cost.instance.step_tokens * 2.0 * cost.instance.model.hidden_size
    assert linear.dispatch_S[0] == blocks.term("all_gather", num_bytes).seconds
    assert linear.combine_S[0] == blocks.term("reduce_scatter", num_bytes).seconds


@pytest.mark.parametrize("split", [Split(tp=4, dp=1, pp=1, ep=4), Split(tp=4, dp=1, pp=1, ep=1, etp=4)])
def test_where_tensor_parallelism_left_all_tokens_only_an_all_reduce_is_left(split: Split) -> None:
    cost = gathering(split)
    times = cost.stages[0].moe.layer(cost.instance.loads[0], cost.linear_P(cost.stages[0]))
    num_bytes = cost.instance.step_tokens * 2.0 * cost.instance.model.hidden_size
    assert times.dispatch_S.tolist() == [0.0, 0.0]
    assert times.combine_S[0] == Blocks(cost.instance, (0, 1, 2, 3), 4).term("all_reduce", num_bytes).seconds


def test_engines_that_exchange_tokens_only_between_data_parallel_ranks_join_experts_by_an_all_reduce() -> None:
    """vLLM and TensorRT-LLM: neither the library's time nor its buffers nor its limits count without."""
    assert all(load_engine(name).rules.exchange_needs_dp for name in ("vllm", "tensorrt-llm"))
    usual = building.constants(kernel="deepep-low-latency")
    limited = usual.model_copy(update={"kernel": load_kernel("deepep-low-latency"), "exchange_needs_dp": True})
    alone, spread = Split(tp=4, dp=1, pp=1, ep=4), Split(tp=1, dp=4, pp=1, ep=4)
    gathered, found = gathering(alone), gathering(alone, limited)
    layer = [
        cost.stages[0].moe.layer(cost.instance.loads[0], cost.linear_P(cost.stages[0])) for cost in (gathered, found)
    ]
    assert layer[0].total_S.tolist() == layer[1].total_S.tolist()
    for split, exchanges in ((alone, False), (spread, True)):
        instance = gathering(split, limited).instance
        assert instance.exchanges(split) is exchanges
        assert bool(exchange_buffers(instance, split, 8, 64, crosses_nodes=False)) is exchanges
        ruled = verdicts(instance, split, 0, Limits(building.FREE, "engine", keep_groups=False))
        assert any(one.rule.startswith("deepep-low-latency") for one in ruled) is exchanges


def test_where_every_rank_has_all_tokens_no_copy_is_nearer() -> None:
    """Three copies of expert 0, two of them on one node: by nearness these would serve a quarter each."""
    alone, spread = Split(tp=4, dp=1, pp=1, ep=4), Split(tp=1, dp=4, pp=1, ep=4)
    of, machine = building.model(experts=4, layers=1), building.topology(2, 2)
    windows = building.counted(np.array([[[900, 40, 40, 20]]]), [0], 2)
    expert_P = np.array([0, 1, 0, 2, 0, 3, 1, 2])

    def layer_s(split: Split, copies: CopyRule) -> float:
        using = building.constants(copies=copies).model_copy(update={"exchange_needs_dp": True})
        made = building.instance(of, machine, tokens=2000, windows=windows, using=using)
        moe = split_cost(made, split, 4).stages[0].moe
        return float(moe.layer(made.loads[0], expert_P).total_S[0])

    assert layer_s(alone, "nearest") == layer_s(alone, "even")
    assert layer_s(spread, "nearest") != layer_s(spread, "even")
