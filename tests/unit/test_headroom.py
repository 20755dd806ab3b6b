"""How much more a split could hold: exact to one sequence, one token of context, one KV token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.check import check
from planner.cost.instance import Instance
from planner.inputs import profiles
from planner.inputs.deployment import load_kernel
from planner.inputs.engines import EngineMemory
from planner.inputs.model import GroupedAttention, StateAttention
from planner.inputs.model_files import read_model
from planner.inputs.topology import topology_of_nodes
from planner.plan.split import Split
from planner.rules import Limits
from planner.rules.headroom import excess, headroom
from planner.rules.ruled import RuledSplit, ruled
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building

LIMITS = Limits(building.FREE, "engine", keep_groups=False)
SPLITS = [
    Split(tp=1, dp=4, pp=1, ep=4),
    Split(tp=2, dp=2, pp=1, ep=4),
    Split(tp=4, dp=1, pp=1, ep=2, etp=2),
    Split(tp=1, dp=2, pp=2, ep=2, micro_batches=2),
    Split(tp=2, dp=1, pp=2, ep=1, etp=2, micro_batches=4),
    Split(tp=1, dp=1, pp=4, ep=1, micro_batches=4),
]


def tight(phase: str = "decode", **change: int) -> Instance:
    """A small model on 4 GPUs of 2 GiB, which its KV cache can fill."""
    on = building.topology(1, 4, of=building.gpu(memory="2 GiB"))
    model = building.model(layers=5, dense_layers=1, **change)
    return building.instance(model, on, phase=phase, tokens=16, context=512)  # type: ignore[arg-type]  # a phase


def feasible(instance: Instance, split: Split, redundant: int = 0) -> RuledSplit:
    """A split that fits."""
    candidate = ruled(instance, split, redundant, LIMITS)
    assert candidate.is_feasible, candidate.reasons
    return candidate


def with_workload(instance: Instance, **change: int) -> Instance:
    """The same with another workload."""
    return replace(instance, workload=instance.workload.model_copy(update=change))


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_one_sequence_more_does_not_fit(split: Split, phase: str) -> None:
    instance = tight(phase)
    candidate = feasible(instance, split)
    most = headroom(candidate).most_sequences
    assert most is not None
    assert most >= instance.step_tokens
    context = instance.workload.context_length
    assert candidate.held is not None
    assert excess(candidate.held, most, context) <= 0 < excess(candidate.held, most + 1, context)
    # and as a user would meet it: the workload speaks of whole tokens per GPU
    per_gpu = most // 4
    assert ruled(with_workload(instance, tokens_per_gpu=per_gpu), split, 0, LIMITS).is_feasible
    (reason,) = ruled(with_workload(instance, tokens_per_gpu=per_gpu + 1), split, 0, LIMITS).reasons
    assert reason.rule.startswith("memory of GPU")


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_one_token_of_context_more_does_not_fit(split: Split) -> None:
    instance = tight()
    longest = headroom(feasible(instance, split)).longest_context
    assert longest is not None
    assert ruled(with_workload(instance, context_length=longest), split, 0, LIMITS).is_feasible
    (reason,) = ruled(with_workload(instance, context_length=longest + 1), split, 0, LIMITS).reasons
    assert reason.rule.startswith("memory of GPU")


def test_spare_kv_tokens_by_hand() -> None:
    """One token of 2 KV heads of 16 in bf16 takes 2 x 2 x 16 x 2 = 128 bytes in each of 6 layers."""
    instance = tight()
    candidate = feasible(instance, SPLITS[0])
    assert headroom(candidate).spare_kv_tokens == candidate.free_bytes // (6 * 128)


def test_spare_kv_tokens_of_deepseek_v3() -> None:
    """61 layers x (512 + 64) x 2 bytes = 70,272 per token; 16 tokens per GPU of 4,096: 65,536 tokens now."""
    model = read_model(profiles.path_of("models", "deepseek-v3"))
    instance = building.instance(model, topology_of_nodes(2, "hgx-h200", None), tokens=16, context=4096)
    precision = instance.constants.precision.model_copy(update={"experts": "fp8", "dense": "fp8"})
    instance = replace(instance, constants=instance.constants.model_copy(update={"precision": precision}))
    candidate = feasible(instance, Split(tp=1, dp=16, pp=1, ep=16))
    room = headroom(candidate)
    assert room.spare_kv_tokens == candidate.free_bytes // 70_272
    assert room.longest_context == 4096 + room.spare_kv_tokens // 16  # shared by 16 sequences
    # With tp 8 the latent cache is whole on every GPU: 8 times the tokens of a data-parallel rank.
    wide = feasible(instance, Split(tp=8, dp=2, pp=1, ep=16))
    assert headroom(wide).spare_kv_tokens == wide.free_bytes // 70_272


def test_more_slots_leave_fewer_tokens() -> None:
    """One more slot on each rank takes 3 x 64 x 96 x 2 bytes in each of 5 MoE layers."""
    instance = tight()
    plain, copies = (feasible(instance, SPLITS[0], redundant) for redundant in (0, 4))
    lost = 5 * 3 * 64 * 96 * 2
    assert plain.free_bytes - copies.free_bytes == lost
    found = [headroom(candidate).spare_kv_tokens for candidate in (plain, copies)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] - found[1] == pytest.approx(lost / (6 * 128), abs=1)


def test_an_engine_that_takes_a_part_of_the_rest_leaves_fewer_tokens() -> None:
    """With 90 % of what is left for the cache, every token also takes a ninth of itself (TensorRT-LLM)."""
    instance = tight()
    memory = instance.constants.engine_memory
    part = EngineMemory.model_validate({**memory.model_dump(), "cache_share": {"value": "90%"}})
    less = replace(instance, constants=instance.constants.model_copy(update={"engine_memory": part}))
    candidate = feasible(less, SPLITS[0])
    assert candidate.free_bytes == feasible(instance, SPLITS[0]).free_bytes - 6 * -(-16 * 512 * 128 // 9)
    assert headroom(candidate).spare_kv_tokens == candidate.free_bytes * 9 // (10 * 6 * 128)


def test_the_library_limits_the_batch_too() -> None:
    """1024 tokens per rank (sgl-project/sglang#28994), though memory would hold more."""
    instance = building.instance(on=building.topology(1, 4, of=building.gpu(memory="200 GiB")), context=1)
    kernel = load_kernel("deepep-low-latency")
    instance = replace(instance, constants=instance.constants.model_copy(update={"kernel": kernel}))
    assert headroom(feasible(instance, SPLITS[0])).most_sequences == 4 * 1024
    assert headroom(feasible(instance, SPLITS[1])).most_sequences == 4 * 1024  # two GPUs share a rank's
    more = with_workload(instance, tokens_per_gpu=1025)
    assert [reason.rule for reason in ruled(more, SPLITS[0], 0, LIMITS).reasons] == ["all-to-all tokens"]


@pytest.mark.parametrize(
    "attention",
    [
        GroupedAttention(num_heads=4, num_kv_heads=2, head_dim=16, window=64),
        StateAttention(mixer="mamba2", num_heads=4, sharded_parameters=1000, state_elements=4096),
    ],
    ids=["window", "state"],
)
def test_what_does_not_grow_sets_no_limit(attention: GroupedAttention | StateAttention) -> None:
    instance = tight()
    runs = tuple(run.model_copy(update={"attention": attention}) for run in instance.model.layers)
    instance = replace(instance, model=instance.model.model_copy(update={"layers": runs}))
    room = headroom(feasible(instance, SPLITS[0]))
    assert (room.spare_kv_tokens, room.longest_context) == (None, None)
    assert room.most_sequences is not None


class Impatient(NoWatch):
    """Presses Ctrl-C once the search is over."""

    def begin(self, what: str, total: int) -> None:
        if what == "finding what else fits":
            raise KeyboardInterrupt


@pytest.mark.parametrize("watch", [NoWatch(), Impatient()], ids=["patient", "impatient"])
def test_an_interrupt_leaves_the_room_of_the_chosen_split(watch: NoWatch) -> None:
    instance = building.instance()
    with Workers(cores=1) as workers:
        space = building.space()
        plan = solve(instance, space, Options(), building.inputs_of(instance, space), workers, watch).plan
    assert plan is not None
    known = {one.outcome: one.most_sequences is not None for one in plan.candidates if one.outcome != "rejected"}
    assert known == {"chosen": True, "bounded": type(watch) is NoWatch}
    assert plan.solver.stopped_by == ("proof" if type(watch) is NoWatch else "interrupt")
    assert check(plan, instance) == []
