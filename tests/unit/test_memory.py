"""Memory of a GPU by hand arithmetic, and of DeepSeek-V3 by published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.cost.booking import memory_G
from planner.cost.grid import stages_of
from planner.cost.instance import Instance
from planner.cost.kv_cache import kept_tokens, kv_bytes_per_sequence, kv_bytes_per_token
from planner.cost.memory import StageMemory, stage_memories
from planner.cost.step import split_cost
from planner.inputs import profiles
from planner.inputs.model import GroupedAttention, LatentAttention
from planner.inputs.model_files import read_model
from planner.inputs.precision import stored_bytes
from planner.inputs.topology import topology_of_nodes
from planner.plan.placement import Placement, from_ranks
from planner.plan.split import Split
from tests import building

GIB = 2**30
FOUR = Split(tp=1, dp=4, pp=1, ep=4)


def stage(instance: Instance, split: Split, number: int = 0) -> StageMemory:
    """Memory of one stage."""
    return stage_memories(instance, stages_of(split, instance.topology), instance.model.moe.num_experts)[number]


def lines(memory: StageMemory, layers: range, slots: int) -> dict[str, int]:
    """Bytes by name of line."""
    return {line.name: line.num_bytes for line in memory.lines(layers, slots)}


# The small model: hidden 64, 4 heads and 2 KV heads of 16, 8 experts of width 96, top-2, 2 layers,
# vocabulary 128, all in bf16 (2 bytes). 4 GPUs with 64 sequences of 128 tokens each.
BY_HAND = {
    "expert slots": 4 * (3 * 64 * 96) * 2,  # 2 slots in each of 2 layers
    "attention weights": 2 * (64 * (4 + 2 * 2) * 16 + 4 * 16 * 64) * 2,
    "routers": 2 * (8 * 64) * 2,
    "norms and small weights": 2 * (2 * 64) * 2 + 64 * 2,  # two in each layer, and the last one
    "KV cache": 2 * 64 * 128 * (2 * 2 * 16) * 2,  # layers, sequences, tokens, K and V of 2 heads of 16
    "embedding": 128 * 64 * 2,
    "LM head": 128 * 64 * 2,
    "activations": 2 * (64 * 8 * 64),  # 8 hidden states of 64 tokens
    # 2 * (256 tokens * top-2 / 4 ranks) rows of two hidden states and three widths
    "expert workspace": 2 * 256 * (2 * 64 + 3 * 96),
    "logits": 4 * 64 * 128,  # fp32, of 64 tokens
    "communication buffers": 512 * 2**20,
    "engine reserve": 2**20,
}


def test_every_line_by_hand() -> None:
    memory = stage(building.instance(), FOUR)
    assert lines(memory, range(2), 4) == BY_HAND
    assert memory.total(range(2), 4) == sum(BY_HAND.values())


def test_every_line_says_where_it_is_from() -> None:
    memory = stage(building.instance(), FOUR)
    assert all(line.source for line in memory.lines(range(2), 4) if line.name != "engine reserve")


def test_tensor_parallel_shards_by_heads() -> None:
    # tp 4: one query head each, and one of the 2 KV heads, which is therefore held twice.
    found = lines(stage(building.instance(), Split(tp=4, dp=1, pp=1, ep=4)), range(2), 4)
    assert found["attention weights"] == 2 * (64 * (1 + 2 * 1) * 16 + 1 * 16 * 64) * 2
    assert found["KV cache"] == 2 * 256 * 128 * (2 * 1 * 16) * 2  # all 256 sequences
    assert found["embedding"] == 128 // 4 * 64 * 2
    for name in ("routers", "norms and small weights"):
        assert found[name] == BY_HAND[name]  # replicated


def test_expert_tensor_parallel_shards_every_expert() -> None:
    found = lines(stage(building.instance(), Split(tp=1, dp=4, pp=1, ep=1, etp=4)), range(2), 16)
    assert found["expert slots"] == 16 * (3 * 64 * 96 // 4) * 2
    assert "communication buffers" not in found  # ep = 1: nothing to exchange


def test_shared_experts_and_dense_layers() -> None:
    model = building.model(dense_layers=1, shared=192)
    memory = stage(building.instance(model), Split(tp=2, dp=2, pp=1, ep=4))
    found = lines(memory, range(3), 4)
    assert found["dense feed-forward weights"] == 3 * 64 * (4 * 64 // 2) * 2
    assert found["shared expert weights"] == 2 * 3 * 64 * (192 // 2) * 2


def test_prefill_holds_the_tokens_of_the_step() -> None:
    found = lines(stage(building.instance(phase="prefill"), FOUR), range(2), 4)
    assert found["KV cache"] == 2 * 64 * (2 * 2 * 16) * 2
    # logits only for the last token of ceil(64 / 128) = 1 prompt
    assert found["activations"] == BY_HAND["activations"]
    assert found["logits"] == 4 * 128


def test_pipeline_stages_hold_what_is_theirs() -> None:
    instance = building.instance(building.model(layers=4))
    split = Split(tp=1, dp=2, pp=2, ep=2, micro_batches=2)
    first, last = (lines(stage(instance, split, number), range(2), 8) for number in (0, 1))
    assert "embedding" in first
    assert "LM head" not in first
    assert "embedding" not in last
    assert "LM head" in last
    # 128 sequences per data-parallel rank, whatever the micro-batches
    assert first["KV cache"] == 2 * 128 * 128 * (2 * 2 * 16) * 2


def test_a_tied_head_is_held_once_where_embedding_and_head_are_together() -> None:
    tied = building.model().model_copy(update={"tie_word_embeddings": True})
    together = lines(stage(building.instance(tied), FOUR), range(2), 4)
    assert "LM head" not in together
    assert together["embedding"] == BY_HAND["embedding"]
    apart = stage(building.instance(tied), Split(tp=1, dp=2, pp=2, ep=2, micro_batches=2), 1)
    assert lines(apart, range(1, 2), 4)["LM head"] == BY_HAND["LM head"]


def test_memory_by_gpu_follows_the_slots_that_are_filled() -> None:
    # 9 slots over 4 ranks: 3, 2, 2, 2. etp and edp ranks of the same EP rank hold the same.
    model = building.model(layers=1)
    cost = split_cost(building.instance(model), FOUR, 1)
    slots = from_ranks([[0, 1, 2], [3, 4], [5, 6], [0, 7]], 3)
    found = memory_G(cost, (range(1),), Placement((0,), 3, slots[None])).tolist()
    assert found[0] - found[1] == 3 * 64 * 96 * 2
    assert found[1] == found[2] == found[3]
    copies = split_cost(building.instance(model), Split(tp=1, dp=4, pp=1, ep=2, edp=2), 1)
    slots = from_ranks([[0, 1, 2, 3, 4], [4, 5, 6, 7]], 5)
    found = memory_G(copies, (range(1),), Placement((0,), 5, slots[None])).tolist()
    assert found[0] == found[2] == found[1] + 3 * 64 * 96 * 2 == found[3] + 3 * 64 * 96 * 2


# --- published figures --------------------------------------------------------------------------------


def test_deepseek_v3_on_expert_parallel_ranks() -> None:
    """An expert has 3 x 7168 x 2048 = 44,040,192 weights, one byte each.

    One slot in each of 58 MoE layers: 58 x 44,040,192 = 2,554,331,136 bytes = 2.379 GiB. All 256 experts
    on 8, 16 and 32 ranks: 32, 16 and 8 times that, 76.1, 38.1 and 19.0 GiB.
    """
    model = read_model(profiles.path_of("models", "deepseek-v3"))
    constants = building.constants()
    fp8 = constants.precision.model_copy(update={"experts": "fp8", "dense": "fp8"})
    instance = building.instance(
        model, topology_of_nodes(4, "hgx-h100", None), using=constants.model_copy(update={"precision": fp8})
    )
    memory = stage(instance, Split(tp=1, dp=32, pp=1, ep=32))
    assert memory.slot_bytes == 44_040_192  # one byte for each of 3 * 7168 * 2048 weights
    assert 58 * memory.slot_bytes / GIB == pytest.approx(2.379, abs=5e-4)  # one slot in each MoE layer
    for ep, published in ((8, 76.1), (16, 38.1), (32, 19.0)):
        assert 58 * memory.slot_bytes * 256 / ep / GIB == pytest.approx(published, abs=0.05)


def test_deepseek_v3_caches_70272_bytes_per_token() -> None:
    """61 layers x (512 compressed + 64 rotary) x 2 bytes = 70,272, whole on every GPU of a tensor-parallel group."""
    attention = read_model(profiles.path_of("models", "deepseek-v3")).layers[0].attention
    assert 61 * kv_bytes_per_token(attention, 1, "bf16") == 70_272
    assert kv_bytes_per_token(attention, 8, "bf16") == kv_bytes_per_token(attention, 1, "bf16")  # whole on every GPU


def test_sliding_windows_limit_what_is_kept() -> None:
    sliding = GroupedAttention(num_heads=64, num_kv_heads=8, head_dim=64, window=128)
    assert (kept_tokens(sliding, 4096), kept_tokens(sliding, 100)) == (128, 100)
    assert kv_bytes_per_sequence(sliding, 1, "bf16", 4096) == 128 * 2 * 8 * 64 * 2
    assert kv_bytes_per_sequence(sliding, 1, "fp8", 4096) == 128 * 2 * 8 * 64
    latent = LatentAttention(
        num_heads=1, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=1, qk_rope_head_dim=64, v_head_dim=1
    )
    assert kept_tokens(latent, 4096) == 4096


@pytest.mark.parametrize(
    ("parameters", "weights", "num_bytes"),
    [
        (1000, "bf16", 2000),
        (128 * 128, "fp8_block", 128 * 128 + 4),  # one fp32 scale per block
        (128, "int4", 64 + 2),  # one 16-bit scale per 128
        (32, "mxfp4", 16 + 1),  # one byte of scale per 32
        (16, "nvfp4", 8 + 1),  # one byte of scale per 16
        (1, "mxfp4", 1),  # 4.25 bits, rounded up
    ],
)
def test_stored_weights_carry_their_scales(parameters: int, weights: str, num_bytes: int) -> None:
    assert stored_bytes(parameters, weights) == num_bytes  # type: ignore[arg-type]  # a name from the table


def test_more_context_needs_more_memory() -> None:
    short = building.instance(context=128)
    long = replace(short, workload=short.workload.model_copy(update={"context_length": 129}))
    per_token = 2 * 64 * (2 * 2 * 16) * 2  # layers, sequences, K and V, bytes
    assert stage(long, FOUR).total(range(2), 4) - stage(short, FOUR).total(range(2), 4) == per_token
