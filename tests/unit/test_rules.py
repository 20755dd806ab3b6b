"""Which splits are legal: every broken rule is named with its figures, not only the first."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.instance import Instance
from planner.inputs import profiles
from planner.inputs.constants import Constants
from planner.inputs.documents import validated
from planner.inputs.engines import EngineRules, load_engine
from planner.inputs.model import Model
from planner.inputs.model_files import read_model
from planner.inputs.topology import resolve, topology_of_nodes
from planner.inputs.topology_file import TopologyFile
from planner.plan.placement import slots_of_ranks
from planner.plan.split import Split
from planner.rules import Limits, broken_rules, groups_fit
from planner.rules.ruled import ruled
from tests import building


def broken(
    split: Split,
    redundant: int = 0,
    *,
    of: Instance | None = None,
    rules: EngineRules = building.FREE,
    keep_groups: bool = False,
) -> list[str]:
    """The broken rules as text."""
    instance = of or building.instance()
    return [str(rule) for rule in broken_rules(instance, split, redundant, Limits(rules, "engine", keep_groups))]


def with_weights(weights: str, model: Model) -> Instance:
    """An instance whose experts and dense weights have this format."""
    constants: Constants = building.constants()
    precision = constants.precision.model_copy(update={"experts": weights, "dense": weights})
    return building.instance(model, using=constants.model_copy(update={"precision": precision}))


def test_a_legal_split_breaks_nothing() -> None:
    assert broken(Split(tp=2, dp=2, pp=1, ep=4)) == []
    assert broken(Split(tp=1, dp=2, pp=2, ep=2, micro_batches=2)) == []


def test_everything_that_a_split_breaks_is_told() -> None:
    # 4 heads, 2 KV heads, 8 experts of width 96, shared experts of 160, dense layers of 256.
    model = building.model(dense_layers=1, shared=160)
    split = Split(tp=3, dp=1, pp=4, ep=9, etp=5, micro_batches=2)
    rules = EngineRules(
        expert_grid="all_or_none", attention="all_or_none", uneven_experts="never", redundant_experts=False
    )
    assert broken(split, 2, of=building.instance(model, tokens=1), rules=rules) == [
        "attention heads: 4 mod tp 3 = 1",
        "KV heads: 2 neither divides by tp 3 nor divides it",
        "expert width: 96 mod etp 5 = 1",
        "dense width: 256 mod tp 3 = 1",
        "shared expert width: 160 mod tp 3 = 1",
        "experts: 10 mod ep 9 = 1; 1 redundant experts would fill the ranks",
        "engine grid: ep = 3 (all GPUs of a stage) or every expert sharded over all 3",
        "engine copies: an expert cannot have several copies",
        "stages: pp 4 is more than the 3 layers",
        "micro-batches: 2 are fewer than pp 4",
    ]


@pytest.mark.parametrize(
    ("width", "etp", "found"),
    [
        (1536, 4, []),
        (1536, 8, ["expert width: 1536/8 = 192 mod 128 = 64 (quantisation block)"]),
        (768, 4, ["expert width: 768/4 = 192 mod 128 = 64 (quantisation block)"]),
        (1536, 5, ["expert width: 1536 mod etp 5 = 1"]),
    ],
)
def test_quantisation_blocks_are_never_cut(width: int, etp: int, found: list[str]) -> None:
    # The case of Qwen3-235B and Qwen3-30B in fp8 on 8 and 4 GPUs.
    instance = with_weights("fp8_block", building.model(width=width))
    assert broken(Split(tp=1, dp=etp, pp=1, ep=1, etp=etp), of=instance) == found
    assert broken(Split(tp=1, dp=4, pp=1, ep=1, etp=4), of=with_weights("bf16", building.model(width=768))) == []


def test_kv_heads_may_be_replicated() -> None:
    assert broken(Split(tp=4, dp=1, pp=1, ep=4)) == []  # 2 KV heads on 4 GPUs: each held twice


@pytest.mark.parametrize(
    ("uneven", "redundant", "is_legal"),
    [
        ("always", 0, True),
        ("always", 2, True),
        ("without_copies", 0, True),
        ("without_copies", 2, False),
        ("without_copies", 4, True),  # 12 slots on 3 ranks are even
        ("never", 0, False),
        ("never", 1, True),
    ],
)
def test_uneven_ranks(uneven: str, redundant: int, is_legal: bool) -> None:
    rules = building.FREE.model_copy(update={"uneven_experts": uneven})
    instance = building.instance(building.model(), building.topology(1, 3))
    found = broken(Split(tp=1, dp=3, pp=1, ep=3), redundant, of=instance, rules=rules)
    assert (found == []) is is_legal


def test_slots_without_enough_experts_and_experts_without_slots() -> None:
    four = building.model(experts=4)
    assert broken(Split(tp=1, dp=4, pp=1, ep=2, edp=2), 8, of=building.instance(four)) == [
        "slots: 6 per rank, but there are only 4 experts"
    ]
    many = building.instance(four, building.topology(2, 4))
    assert broken(Split(tp=1, dp=8, pp=1, ep=8), 2, of=many) == ["slots: 6 leave some of ep 8 ranks empty"]


def test_a_batch_needs_a_token_for_every_rank() -> None:
    instance = building.instance(tokens=1)
    split = Split(tp=1, dp=2, pp=2, ep=2, micro_batches=4)
    assert broken(split, of=instance) == ["batch: 0.5 tokens per data-parallel rank and micro-batch"]


@pytest.mark.parametrize(
    ("engine", "split", "found"),
    [
        ("vllm", Split(tp=2, dp=2, pp=1, ep=4), []),
        ("vllm", Split(tp=2, dp=2, pp=1, ep=1, etp=4), []),
        ("vllm", Split(tp=2, dp=2, pp=1, ep=2, etp=2), ["engine grid"]),
        ("megatron", Split(tp=1, dp=4, pp=1, ep=2, etp=1, edp=2), []),
        ("any", Split(tp=1, dp=4, pp=1, ep=2, etp=1, edp=2), []),
    ],
)
def test_engines_limit_the_grid(engine: str, split: Split, found: list[str]) -> None:
    rules = load_engine(engine).rules
    assert [text.split(":")[0] for text in broken(split, rules=rules)] == found


def test_megatron_has_no_copies_of_experts() -> None:
    rules = load_engine("megatron").rules
    assert broken(Split(tp=1, dp=4, pp=1, ep=4), 4, rules=rules) == [
        "engine copies: an expert cannot have several copies"
    ]


def test_tensorrt_llm_gives_neighbours_different_experts() -> None:
    """Two shards of an expert would lie two GPUs apart, on two nodes; among GPUs all alike it makes no difference."""
    rules, split = load_engine("tensorrt-llm").rules, Split(tp=1, dp=4, pp=1, ep=2, etp=2)
    apart = building.instance(on=building.topology(2, 2))
    assert broken(split, rules=rules, of=apart) == [
        "engine order: neighbours hold different experts, so the 2 shards of one lie 2 GPUs apart"
    ]
    assert broken(split, rules=rules, of=building.instance(on=building.topology(1, 4))) == []
    card = {"memory": "80 GiB", "hbm_bandwidth": "1 TB/s", "compute": {"bf16": "100 TFLOP/s"}}
    link = {"level": "node", "bandwidth": "100 GB/s", "latency": "1 us"}
    node: dict[str, object] = {"gpu": card, "nodes": 1, "gpus_per_node": 4}
    slow = {"between": [{"node": 0, "gpu": 0}, {"node": 0, "gpu": 1}], "bandwidth": "1 GB/s"}
    for more in ({"links": [{**link, "shared_by": 2}]}, {"links": [link], "overrides": [slow]}):
        one_node = building.instance(on=resolve(validated(TopologyFile, node | more)))
        assert len(broken(split, rules=rules, of=one_node)) == 1  # one node, and yet not all joined alike
    for degrees in ({"ep": 4}, {"ep": 1, "etp": 4}):
        assert broken(Split(tp=1, dp=4, pp=1, **degrees), rules=rules, of=apart) == []
    assert broken(split, rules=load_engine("sglang").rules, of=apart) == []


@pytest.mark.parametrize(
    ("experts", "ranks", "slots"),
    [(128, 6, [22, 22, 21, 21, 21, 21]), (256, 32, [8] * 32), (288, 32, [9] * 32), (8, 3, [3, 3, 2])],
)
def test_uneven_experts_are_spread_as_evenly_as_possible(experts: int, ranks: int, slots: list[int]) -> None:
    assert slots_of_ranks(experts, ranks).tolist() == slots


@pytest.mark.parametrize(
    ("slots", "nodes", "fits"),
    [
        ([2] * 8, [0, 0, 0, 0, 1, 1, 1, 1], True),  # 8 slots per node hold 2 groups of 3
        ([2] * 6, [0, 0, 0, 1, 1, 1], True),  # 6 slots hold exactly 2 groups
        ([2, 2, 2, 2, 2, 1], [0, 0, 0, 1, 1, 1], False),  # 5 slots hold only one
        ([3] * 5, [0, 1, 2, 3, 4], False),  # five nodes, four groups: a node would stay empty
        ([6, 3, 3], [0, 1, 2], True),
        ([10, 2], [0, 1], False),  # no group fits into the second node
        ([4, 5, 5], [0, 1, 1], False),  # one group on the first node, and a rank of four slots for its 3 experts
        ([3, 5, 5], [0, 1, 1], True),  # one group there, three groups on the second
    ],
)
def test_whether_groups_can_stay_on_nodes(slots: list[int], nodes: list[int], fits: bool) -> None:
    assert groups_fit(12, 4, np.array(slots), np.array(nodes)) is fits


def test_groups_that_cannot_be_kept_are_named() -> None:
    model = building.model(experts=9, groups=3)
    instance = building.instance(model, building.topology(2, 2))
    assert broken(Split(tp=1, dp=4, pp=1, ep=4), 0, of=instance, keep_groups=True) == [
        "keep_groups: 3 groups of 3 cannot be kept on 2 nodes"  # 5 and 4 slots: one group each
    ]
    # One more slot, 3 + 3 and 2 + 2, makes room for a second group on the first node.
    assert broken(Split(tp=1, dp=4, pp=1, ep=4), 1, of=instance, keep_groups=True) == []


def test_deepseek_v3_in_fp8_needs_sixteen_gpus_of_80_gb() -> None:
    model = read_model(profiles.path_of("models", "deepseek-v3"))
    instance = building.instance(model, topology_of_nodes(2, "hgx-h100", None), tokens=16, context=4096)
    precision = instance.constants.precision.model_copy(update={"experts": "fp8", "dense": "fp8"})
    instance = Instance(
        model,
        instance.topology,
        instance.workload,
        instance.constants.model_copy(update={"precision": precision}),
        None,
    )
    limits = Limits(building.FREE, "engine", keep_groups=False)
    kept = ruled(instance, Split(tp=1, dp=16, pp=1, ep=16), 0, limits)
    assert (kept.is_feasible, kept.free_bytes > 0) == (True, True)
    rejected = ruled(instance, Split(tp=1, dp=16, pp=1, ep=8, edp=2), 0, limits)
    (reason,) = rejected.reasons
    assert reason.rule == "memory of GPU 0"
    assert reason.detail.endswith("has 79.6 GiB")  # 81 559 MiB
    assert rejected.free_bytes < 0


def test_memory_is_told_beside_other_rules() -> None:
    tiny = building.topology(of=building.gpu(memory="1 MiB"))
    rejected = ruled(
        building.instance(building.model(heads=3, kv_heads=1), tiny),
        Split(tp=2, dp=1, pp=2, ep=2, micro_batches=1),
        0,
        Limits(building.FREE, "engine", keep_groups=False),
    )
    assert [reason.rule for reason in rejected.reasons] == [
        "attention heads",
        "micro-batches",
        "memory of GPU 2, stage 1",
    ]
