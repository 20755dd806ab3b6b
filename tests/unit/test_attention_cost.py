"""Time and memory of attention kinds beyond the grouped one, against arithmetic by hand.

`light_s` is the larger of work at the peak rate and bytes at the full bandwidth: on the test machine
10 TFLOP/s and 100 GB/s. 64 tokens per GPU on 4 GPUs with tp = 2 are 128 tokens on each of dp = 2 ranks.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.dense import DenseCost
from planner.cost.grid import stages_of
from planner.cost.kv_cache import cache_name
from planner.cost.memory import stage_memories
from planner.cost.products import attention_products, ffn_products, shared_products
from planner.inputs import profiles
from planner.inputs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GroupedAttention,
    Indexer,
    LatentAttention,
    LayerRun,
    Model,
    MoeFfn,
    NoAttention,
    StateAttention,
)
from planner.inputs.model_files import read_model
from planner.inputs.parameters import (
    attention_parameters,
    count_parameters,
    dense_parameters,
    shared_parameters,
)
from planner.inputs.workload import Phase
from planner.plan.split import Split
from planner.rules import Limits, broken_rules
from tests import building

SPLIT = Split(tp=2, dp=2, pp=1, ep=4, etp=1, edp=1)
MOE = MoeFfn(num_experts=8, top_k=2, intermediate_size=96)
STATE = StateAttention(
    mixer="mamba2",
    num_heads=4,
    sharded_parameters=10_000,
    replicated_parameters=30,
    state_elements=4 * 1024,
    conv_elements=600,
)
LATENT = LatentAttention(
    num_heads=4, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16
)


def model(*parts: Attention, norms: int = 2) -> Model:
    runs = tuple(LayerRun(count=1, attention=part, ffn=MOE, norms=norms) for part in parts)
    return Model(name="test", family="test", hidden_size=64, vocab_size=512, layers=runs)


def terms(part: Attention, phase: Phase = "decode", context: int = 128) -> dict[str, float]:
    made = building.instance(model(part), phase=phase, context=context)
    cost = DenseCost(made, stages_of(SPLIT, made.topology)[0], kind=0)
    return {term.name: term.light_s for term in cost.run_terms[made.model.layers[0]]}


def seconds(part: Attention, phase: Phase, context: int, tokens: int = 64) -> dict[str, float]:
    made = building.instance(model(part), phase=phase, context=context, tokens=tokens)
    cost = DenseCost(made, stages_of(SPLIT, made.topology)[0], kind=0)
    return {term.name: term.seconds for term in cost.run_terms[made.model.layers[0]]}


def memory(part: Attention, phase: Phase = "decode", context: int = 128) -> int:
    made = building.instance(model(part), phase=phase, context=context)
    stage = stage_memories(made, stages_of(SPLIT, made.topology), MOE.num_experts)[0]
    lines = {line.name: line.num_bytes for line in stage.cache_lines[made.model.layers[0]]}
    return lines.get(cache_name(part), 0)


def test_state_is_read_and_written_once_per_token_in_decode() -> None:
    """128 sequences x 2 x (4096 x 4 + 600 x 2) / 2 bytes at 100 GB/s; 6 FLOP per number are less."""
    assert terms(STATE)["recurrent state"] == pytest.approx(128 * 2 * 8792 / 1e11)
    assert terms(STATE, context=4096)["recurrent state"] == terms(STATE)["recurrent state"]


def test_state_is_read_and_written_once_per_chunk_in_prefill() -> None:
    """Chunks of 64 tokens."""
    assert terms(STATE, "prefill")["recurrent state"] == pytest.approx(128 * 2 * 8792 / 64 / 1e11)


def test_state_memory_is_that_of_the_sequences() -> None:
    """Decode: 128 sequences a rank. Prefill: its 128 tokens are one sequence of 128."""
    assert memory(STATE) == memory(STATE, context=4096) == 128 * 8792
    assert memory(STATE, "prefill") == 8792


def test_weights_of_a_state_layer_are_cut_by_heads() -> None:
    assert attention_parameters(STATE, 64) == 10_030
    assert attention_parameters(STATE, 64, tp=2) == 5_030
    assert terms(STATE)["attention projections"] == pytest.approx(2 * 5_030 * 128 / 1e13)


def test_heads_of_a_state_must_divide() -> None:
    odd = STATE.model_copy(update={"num_heads": 3})
    limits = Limits(building.FREE, "any", keep_groups=False)
    broken = broken_rules(building.instance(model(odd)), SPLIT, 0, limits)
    assert [str(rule) for rule in broken] == ["attention heads: 3 mod tp 2 = 1"]


def test_layers_without_attention_or_feed_forward_part() -> None:
    """A norm each; no projections, no cache, no all-reduce."""
    assert set(terms(NoAttention())) == {"norms and residuals", "router"}
    assert memory(NoAttention()) == 0
    empty = LayerRun(count=1, attention=STATE, ffn=DenseFfn(intermediate_size=0), norms=1)
    made = building.instance(model(NoAttention(), norms=1).model_copy(update={"layers": (empty,)}))
    cost = DenseCost(made, stages_of(SPLIT, made.topology)[0], kind=0)
    names = {term.name for term in cost.run_terms[empty]}
    assert names == {"attention projections", "recurrent state", "attention all-reduce", "norms and residuals"}


def test_sparse_attention_reads_what_its_indexer_picks() -> None:
    """Of 1024 tokens 100: 128 x 100 x (32 + 8) x 2 bytes; the indexer reads 1024 keys of 16."""
    sparse = LATENT.model_copy(update={"indexer": Indexer(num_heads=2, head_dim=16, top_k=100)})
    found = terms(sparse, context=1024)
    assert found["attention"] == pytest.approx(128 * 100 * 40 * 2 / 1e11)
    assert found["attention indexer"] == pytest.approx(128 * 1024 * 16 * 2 / 1e11)
    assert memory(sparse, context=1024) == 128 * 1024 * (40 + 16) * 2
    reused = sparse.model_copy(update={"indexer": Indexer(num_heads=2, head_dim=16, top_k=100, own=False)})
    assert "attention indexer" not in terms(reused, context=1024)
    assert memory(reused, context=1024) == 128 * 1024 * 40 * 2


def test_two_blocks_are_twice_one() -> None:
    double = LATENT.model_copy(update={"blocks": 2})
    assert attention_parameters(double, 64, 2) == 2 * attention_parameters(LATENT, 64, 2)
    assert memory(double) == 2 * memory(LATENT)
    one, two = terms(LATENT), terms(double)
    for name in ("attention", "attention projections", "attention all-reduce"):
        assert two[name] == pytest.approx(2 * one[name])


def test_compressed_attention_reads_window_and_entries() -> None:
    """Window of 64 and 1024 / 8 entries of 32 numbers, whole on both GPUs of the group."""
    part = CompressedAttention(
        num_heads=4, head_dim=32, q_lora_rank=16, output_groups=2, output_lora_rank=8, window=64, compress_rate=8
    )
    assert terms(part, context=1024)["attention"] == pytest.approx(128 * (64 + 128) * 32 * 2 / 1e11)
    assert memory(part, context=1024) == 128 * (64 + 128) * 32 * 2
    alone = part.model_copy(update={"compress_rate": None})
    assert memory(alone, context=1024) == 128 * 64 * 32 * 2


def test_latent_experts_work_in_their_own_width() -> None:
    """Routed experts of 3 x 16 x 96, and two shared projections of 64 x 16."""
    narrow = MOE.model_copy(update={"latent_size": 16})
    layer = LayerRun(count=1, attention=NoAttention(), ffn=narrow)
    whole = Model(name="test", family="test", hidden_size=64, vocab_size=512, layers=(layer,))
    count = count_parameters(whole)
    assert (count.experts, count.shared) == (8 * 3 * 16 * 96, 2 * 64 * 16)


def test_zero_experts_take_their_share_of_choices() -> None:
    """4 of 12 choices do nothing: of top 3 two reach an expert."""
    zero = MOE.model_copy(update={"zero_experts": 4, "top_k": 3})
    layer = LayerRun(count=1, attention=NoAttention(), ffn=zero)
    made = building.instance(Model(name="test", family="test", hidden_size=64, vocab_size=512, layers=(layer,)))
    assert made.loads[0].choices_S.tolist() == [2.0]
    assert count_parameters(made.model).routers == 12 * 64


GROUPED = GroupedAttention(num_heads=4, num_kv_heads=2, head_dim=16)
SPARSE = LATENT.model_copy(update={"indexer": Indexer(num_heads=2, head_dim=16, top_k=100)})
KINDS: tuple[Attention, ...] = (
    GROUPED,
    GROUPED.model_copy(update={"window": 64}),
    LATENT,
    SPARSE,
    CompressedAttention(
        num_heads=4, head_dim=32, q_lora_rank=16, output_groups=2, output_lora_rank=8, window=64, compress_rate=8
    ),
    STATE,
)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 1 << 17), st.integers(1, 1 << 17), st.integers(1, 4096))
def test_time_never_falls_with_longer_context_or_more_tokens(
    phase: Phase, part: Attention, context: int, more: int, tokens: int
) -> None:
    first, longer = seconds(part, phase, context, tokens), seconds(part, phase, context + more, tokens)
    fuller = seconds(part, phase, context, tokens + more)
    for name, value in first.items():
        # In prefill a longer prompt means fewer chunks with which a recurrent state is read and written.
        if not (phase == "prefill" and name == "recurrent state"):
            assert longer[name] >= value * (1 - 1e-12)
        assert fuller[name] >= value * (1 - 1e-12)


def test_decode_core_by_hand() -> None:
    """128 sequences of 1024 tokens; per GPU 2 query heads and 1 KV head of 16: 64 bytes an entry, and of q and out."""
    made = building.instance(model(GROUPED), context=1024)
    [r] = (curve.value for curve in made.curves(0, "attention_decode", "gqa"))
    assert r.activation is not None
    flop, read = 2 * 128 * 2 * 1024 * 2 * 16, 128 * 1024 * 64
    moved = 128 * 2 * 2 * 2 * 16 + 128 * 64 * 64
    parts = (flop / (r.compute * 1e13), read / (r.memory * 1e11), r.serial * math.sqrt(1024))
    busy = sum(part**r.exponent for part in parts) ** (1 / r.exponent)
    assert seconds(GROUPED, "decode", 1024)["attention"] == pytest.approx(r.base + busy + moved / (r.activation * 1e11))


def test_prefill_core_by_hand() -> None:
    """128 tokens in prompts of 1024: 512.5 keys on average and 63.5 more, because tiles on the diagonal are whole."""
    made = building.instance(model(GROUPED), phase="prefill", context=1024)
    [r] = (curve.value for curve in made.curves(0, "attention_prefill", "gqa"))
    flop, moved = 2 * 128 * 2 * 576 * 2 * 16, 128 * (2 * 2 * 2 * 16 + 64)
    busy = ((flop / (r.compute * 1e13)) ** r.exponent + (r.serial * 1024) ** r.exponent) ** (1 / r.exponent)
    assert seconds(GROUPED, "prefill", 1024)["attention"] == pytest.approx(r.base + busy + moved / (r.memory * 1e11))


@pytest.mark.parametrize("name", profiles.names("models"))
@pytest.mark.parametrize("tp", [1, 2])
def test_products_are_the_weights_of_a_layer(name: str, tp: int) -> None:
    """Up to norms, biases and gates of one column: 1 %."""
    described = read_model(profiles.path_of("models", name))
    hidden = described.hidden_size
    for run in described.layer_kinds:
        blocks = run.attention.blocks if isinstance(run.attention, LatentAttention) else 1
        counted = attention_parameters(run.attention, hidden, tp)
        made = blocks * sum(one.inner * one.outer for one in attention_products(run.attention, hidden, tp))
        assert made == pytest.approx(counted, rel=0.01)
        if isinstance(run.ffn, DenseFfn):
            counted = dense_parameters(run.ffn, hidden, tp)
            width = run.ffn.intermediate_size // tp
            products = ffn_products(gated=run.ffn.gated, hidden_size=hidden, width=width)
        else:
            counted, products = shared_parameters(run.ffn, hidden, tp), shared_products(run.ffn, hidden, tp)
        assert sum(one.inner * one.outer for one in products) == pytest.approx(counted, rel=0.01)
