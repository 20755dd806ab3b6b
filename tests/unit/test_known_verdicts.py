"""Rules of engines and libraries, each on the case in which users met it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.cost.instance import Instance
from planner.inputs import profiles
from planner.inputs.deployment import load_kernel
from planner.inputs.engines import load_engine
from planner.inputs.model import Model
from planner.inputs.model_files import read_model
from planner.inputs.topology import Topology
from planner.plan.split import Split
from planner.rules import Limits, Verdict, broken_rules, verdicts
from planner.rules.ruled import ruled
from tests import building


def shipped(name: str) -> Model:
    """A shipped model."""
    return read_model(profiles.path_of("models", name))


def made_with(
    model: Model, on: Topology, *, kernel: str = "all-to-all", tokens: int = 64, fp8: str | None = None
) -> Instance:
    """An instance with a shipped kernel; all weights in this 8-bit format, if any."""
    constants = building.constants()
    update: dict[str, object] = {
        "kernel": load_kernel(kernel),
        "communication": constants.communication.model_copy(update={"kernel": kernel}),
    }
    if fp8:
        update["precision"] = constants.precision.model_copy(update={"experts": fp8, "dense": fp8})
    return building.instance(model, on, tokens=tokens, using=constants.model_copy(update=update))


def limits(engine: str) -> Limits:
    """What an engine allows."""
    return Limits(load_engine(engine).rules, engine, keep_groups=False)


def broken(instance: Instance, split: Split, engine: str, redundant: int = 0) -> dict[str, str]:
    """Broken rules with their arithmetic."""
    return {one.rule: one.detail for one in broken_rules(instance, split, redundant, limits(engine))}


# --- shapes -------------------------------------------------------------------------------------------


def test_three_gpus_and_64_heads_break_two_rules_at_once() -> None:
    """vllm-project/vllm#52435: the engine only spoke of 256 experts on 3 ranks; 64 heads come first."""
    instance = made_with(building.model(experts=256, heads=64, kv_heads=4), building.topology(1, 3))
    found = broken(instance, Split(tp=3, dp=1, pp=1, ep=3), "sglang")
    assert found["attention heads"] == "64 mod tp 3 = 1"
    assert found["experts"] == "256 mod ep 3 = 1; 2 redundant experts would fill the ranks"
    assert "KV heads" in found


@pytest.mark.parametrize(
    ("name", "tp", "is_legal"),
    [("qwen3-235b-a22b", 8, False), ("qwen3-235b-a22b", 4, True), ("qwen3-30b-a3b", 4, False)],
)
def test_fp8_blocks_are_cut_by_tensor_parallel_experts(name: str, tp: int, is_legal: bool) -> None:
    """vllm-project/vllm#17569: Qwen3-235B, 1536/8 = 192 mod 128 = 64; #25292: Qwen3-30B, 768/4 = 192."""
    instance = made_with(shipped(name), building.topology(1, 8), fp8="fp8_block")
    split = Split(tp=tp, dp=8 // tp, pp=1, ep=1, etp=tp, edp=8 // tp)
    found = broken(instance, split, "megatron")
    assert ("expert width" not in found) is is_legal
    if not is_legal:
        width = shipped(name).moe.intermediate_size
        assert found["expert width"] == f"{width}/{tp} = 192 mod 128 = 64 (quantisation block)"


def test_expert_parallelism_cuts_no_expert() -> None:
    instance = made_with(shipped("qwen3-235b-a22b"), building.topology(1, 8), fp8="fp8_block")
    assert (
        broken(instance, Split(tp=8, dp=1, pp=1, ep=8), "vllm")
        == {
            # 4 KV heads on 8 GPUs are held twice, and shards of attention have no block of their own.
        }
    )


def test_padded_vocabularies_divide() -> None:
    """DeepSeek's 129280 is a multiple of 64 that 3 does not divide: 129280 mod 3 = 1."""
    model = building.model(heads=3, kv_heads=3, experts=9, width=96).model_copy(update={"vocab_size": 129_280})
    instance = made_with(model, building.topology(1, 3))
    split = Split(tp=3, dp=1, pp=1, ep=3)
    assert broken(instance, split, "vllm") == {"vocabulary": "129280 padded to 129280 mod tp 3 = 1"}
    assert broken(instance, split, "any") == {}  # padded as needed
    odd = model.model_copy(update={"vocab_size": 129_217})  # padded to 129280
    assert "vocabulary" in broken(made_with(odd, building.topology(1, 3)), split, "vllm")


def test_uneven_experts_where_the_engine_allows_them() -> None:
    """vllm-project/vllm-ascend#16384: 128 experts on DP 3 x TP 2; 22, 22, 21, 21, 21, 21."""
    instance = made_with(building.model(experts=128), building.topology(1, 6))
    split = Split(tp=2, dp=3, pp=1, ep=6)
    assert broken(instance, split, "vllm-ascend") == {}
    (row,) = (one for one in verdicts(instance, split, 0, limits("vllm-ascend")) if one.rule == "experts")
    assert row.detail == "128 mod ep 6 = 2: 2 ranks hold 22, 4 hold 21"
    assert ruled(instance, split, 0, limits("vllm-ascend")).is_feasible
    assert broken(instance, split, "sglang") == {
        "experts": "128 mod ep 6 = 2; 4 redundant experts would fill the ranks"
    }
    assert "experts" in broken(instance, split, "vllm-ascend", redundant=2)  # with copies: even
    assert broken(instance, split, "vllm-ascend", redundant=4) == {}


# --- engines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "is_legal"),
    [
        (Split(tp=4, dp=2, pp=1, ep=8), True),
        (Split(tp=4, dp=2, pp=1, ep=1, etp=8), True),
        (Split(tp=4, dp=2, pp=1, ep=4, edp=2), False),
        (Split(tp=4, dp=2, pp=1, ep=2, etp=4), False),
    ],
)
def test_vllm_spreads_experts_over_all_or_none(split: Split, is_legal: bool) -> None:
    """vllm-project/vllm#28889: EP 4 on 8 GPUs is faster for few users, and cannot be had."""
    instance = made_with(building.model(kv_heads=4), building.topology(1, 8))
    found = broken(instance, split, "vllm")
    assert found == (
        {} if is_legal else {"vllm grid": "ep = 8 (all GPUs of a stage) or every expert sharded over all 8"}
    )


@pytest.mark.parametrize(
    ("split", "is_legal"),
    [
        (Split(tp=8, dp=1, pp=1, ep=4, etp=2), True),  # ep 4, MoE TP = 8 / 4
        (Split(tp=8, dp=1, pp=1, ep=4, edp=2), True),  # ep 4 x moe_dp 2 = 8
        (Split(tp=8, dp=1, pp=1, ep=1, etp=4, edp=2), True),
        (Split(tp=8, dp=1, pp=1, ep=2, etp=2, edp=2), False),
    ],
)
def test_sglang_leaves_no_remainder_beside_ep_and_moe_dp(split: Split, is_legal: bool) -> None:
    """sgl-project/sglang#26692 asks where experts are if ep < tp."""
    instance = made_with(building.model(heads=8, kv_heads=8), building.topology(1, 8))
    assert ("sglang grid" not in broken(instance, split, "sglang")) is is_legal


def test_sglang_runs_deepep_over_the_whole_stage() -> None:
    instance = made_with(
        building.model(heads=8, kv_heads=8, experts=64), building.topology(1, 8), kernel="deepep-normal"
    )
    half = Split(tp=8, dp=1, pp=1, ep=4, etp=2)
    assert broken(instance, half, "sglang") == {
        "deepep-normal grid": "the engine runs it with ep = 8, all GPUs of a stage"
    }
    assert broken(instance, half, "any") == {}
    assert broken(instance, Split(tp=8, dp=1, pp=1, ep=8), "sglang") == {}


@pytest.mark.parametrize(
    ("split", "found"),
    [
        (Split(tp=8, dp=1, pp=1, ep=2, etp=4), set()),
        (Split(tp=1, dp=8, pp=1, ep=8), set()),
        (Split(tp=2, dp=4, pp=1, ep=8), {"tensorrt-llm attention"}),
        (Split(tp=8, dp=1, pp=1, ep=4, edp=2), {"tensorrt-llm grid"}),
    ],
)
def test_tensorrt_llm_divides_tp_among_experts(split: Split, found: set[str]) -> None:
    """moe_tp x moe_ep = tp; attention data parallelism is a switch (NVIDIA/TensorRT-LLM#2331)."""
    instance = made_with(building.model(heads=8, kv_heads=8), building.topology(1, 8))
    assert set(broken(instance, split, "tensorrt-llm")) == found


def test_tensorrt_llm_ignores_copies_without_attention_dp() -> None:
    """NVIDIA/TensorRT-LLM#18626: the load balancer is dropped in silence unless attention is data parallel."""
    instance = made_with(building.model(heads=8, kv_heads=8, experts=64), building.topology(1, 8))
    found = broken(instance, Split(tp=8, dp=1, pp=1, ep=8), "tensorrt-llm", redundant=8)
    assert found == {"tensorrt-llm copies": "copies are ignored without data-parallel attention"}
    assert broken(instance, Split(tp=1, dp=8, pp=1, ep=8), "tensorrt-llm", redundant=8) == {}


def test_megatron_lets_ep_exceed_dp() -> None:
    """Parallel folding (NVIDIA-NeMo/Speech#14838 computes 4 where the library says 8): TP 4 x DP 8, EP 32."""
    instance = made_with(building.model(experts=64), building.topology(4, 8))
    assert broken(instance, Split(tp=4, dp=8, pp=1, ep=32), "megatron") == {}
    grid = Split(tp=4, dp=8, pp=1, ep=16)  # 16 of 32 GPUs
    assert broken(instance, grid, "megatron") == {"megatron grid": "tp 4 x dp 8 = 32, experts 16"}
    assert "megatron copies" in broken(instance, Split(tp=4, dp=8, pp=1, ep=32), "megatron", redundant=32)


# --- libraries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "is_legal"), [(1, True), (2, True), (3, True), (5, False), (20, True), (24, False)])
def test_deepep_knows_few_ep_sizes(nodes: int, is_legal: bool) -> None:
    """deepseek-ai/DeepEP#90 names them; #464 asks for 24 nodes, which is above 160 ranks."""
    gpus = 8 * nodes
    model = building.model(experts=960, top_k=8)
    instance = made_with(model, building.topology(nodes, 8), kernel="deepep-normal")
    found = broken(instance, Split(tp=1, dp=gpus, pp=1, ep=gpus), "any")
    assert ("deepep-normal EP size" not in found) is is_legal


@pytest.mark.parametrize(
    ("nodes", "per_node", "split", "is_legal"),
    [
        (2, 8, Split(tp=1, dp=16, pp=1, ep=16), True),
        (2, 4, Split(tp=1, dp=8, pp=1, ep=8), False),  # deepseek-ai/DeepEP#50: nodes of 4 GPUs
        (4, 4, Split(tp=1, dp=16, pp=1, ep=16), False),
        (1, 16, Split(tp=1, dp=16, pp=1, ep=16), False),  # one NVLink domain of 16 (#392: NVL72)
        (2, 4, Split(tp=1, dp=8, pp=1, ep=4, edp=2), True),
        (2, 8, Split(tp=1, dp=16, pp=1, ep=8, etp=2), False),  # ranks 0, 2, .., 14 lie on both nodes
    ],
)
def test_deepep_expects_eight_ranks_on_every_node(nodes: int, per_node: int, split: Split, is_legal: bool) -> None:
    """vllm-project/vllm#23849: ranks 0 to 7 that do not share a node fail when the buffer is made."""
    instance = made_with(building.model(experts=64), building.topology(nodes, per_node), kernel="deepep-normal")
    assert ("deepep-normal nodes" not in broken(instance, split, "any")) is is_legal


def test_deepep_needs_equal_ranks() -> None:
    instance = made_with(building.model(experts=12), building.topology(1, 8), kernel="deepep-low-latency")
    found = broken(instance, Split(tp=1, dp=8, pp=1, ep=8), "vllm")
    assert found == {"deepep-low-latency experts": "12 mod ep 8 = 4"}  # vLLM alone would allow it


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"hidden": 8192 + 64}, "deepep-low-latency width"),
        ({"top_k": 12, "experts": 64}, "deepep-low-latency top-k"),  # deepseek-ai/DeepEP#731: 16 for Kimi-K3
    ],
)
def test_low_latency_kernels_are_built_for_sizes(change: dict[str, int], rule: str) -> None:
    instance = made_with(building.model(**change), building.topology(1, 8), kernel="deepep-low-latency")
    assert set(broken(instance, Split(tp=1, dp=8, pp=1, ep=8), "any")) == {rule}


def test_low_latency_kernels_limit_the_tokens_of_a_rank() -> None:
    """1024 (sgl-project/sglang#28994); with tp 2 each GPU sends half of its rank's tokens."""
    at_most = made_with(building.model(), building.topology(1, 8), kernel="deepep-low-latency", tokens=1024)
    split = Split(tp=1, dp=8, pp=1, ep=8)
    assert broken(at_most, split, "any") == {}
    more = replace(at_most, workload=at_most.workload.model_copy(update={"tokens_per_gpu": 1025}))
    found = broken(more, split, "any")
    assert found == {"deepep-low-latency tokens": "1025 per rank and micro-batch; at most 1024"}
    assert broken(more, Split(tp=2, dp=4, pp=1, ep=8), "any").keys() == found.keys()


def test_redundant_experts_outgrow_the_low_latency_buffer() -> None:
    """vllm-project/vllm#57894: width 5120, EP 16, 384 experts: 1840 tokens per rank fit with 64 copies, 1856 not.

    The kernel's own limit of 1024 tokens is lifted here, as in that report.
    """
    model = building.model(experts=384, top_k=6, hidden=5120)
    split = Split(tp=1, dp=16, pp=1, ep=16)
    for tokens, redundant, is_legal in ((1840, 64, True), (1856, 64, False), (2048, 0, True), (2048, 64, False)):
        instance = made_with(model, building.topology(2, 8), kernel="deepep-low-latency", tokens=tokens)
        kernel = instance.constants.kernel
        lifted = kernel.model_copy(update={"limits": kernel.limits.model_copy(update={"most_tokens": None})})
        instance = replace(instance, constants=instance.constants.model_copy(update={"kernel": lifted}))
        found = broken(instance, split, "any", redundant)
        assert ("deepep-low-latency buffer" not in found) is is_legal, (tokens, redundant, found)


def test_without_expert_parallelism_no_library_has_a_say() -> None:
    instance = made_with(
        building.model(heads=12, kv_heads=12, width=96), building.topology(1, 12), kernel="deepep-normal"
    )
    assert broken(instance, Split(tp=12, dp=1, pp=1, ep=1, etp=12), "any") == {}


# --- what every verdict carries -----------------------------------------------------------------------


def test_every_rule_is_listed_whether_it_holds_or_not() -> None:
    model = building.model(experts=64, dense_layers=1, shared=160)
    instance = made_with(model, building.topology(2, 8), kernel="deepep-low-latency")
    split = Split(tp=2, dp=4, pp=2, ep=8, micro_batches=2)
    found: list[Verdict] = verdicts(instance, split, 8, limits("sglang"))
    assert all(one.holds for one in found)
    assert [one.rule for one in found] == [
        "attention heads", "KV heads", "vocabulary", "dense width", "shared expert width",
        "experts", "slots", "sglang grid", "sglang copies", "deepep-low-latency grid", "deepep-low-latency experts",
        "deepep-low-latency width", "deepep-low-latency top-k", "deepep-low-latency tokens",
        "deepep-low-latency buffer", "stages", "batch", "micro-batches",
    ]  # fmt: skip
    assert all(one.value and one.limit and one.detail for one in found)
