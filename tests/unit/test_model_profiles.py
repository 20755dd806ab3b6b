"""Shipped models: their sizes against what their authors publish, and golden figures of DeepSeek-V3."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cost.kv_cache import kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from planner.inputs import documents, profiles
from planner.inputs.model import CompressedAttention, LatentAttention, Model, StateAttention
from planner.inputs.model_files import ConfigFile, PublishedSize, read_model
from planner.inputs.parameters import (
    count_parameters,
    expert_parameters,
    router_parameters,
    shared_parameters,
)
from planner.inputs.precision import stored_bytes

GIB = 1 << 30
NAMES = profiles.names("models")


def shipped(name: str) -> Model:
    return read_model(profiles.path_of("models", name))


def published(name: str) -> PublishedSize:
    file, _ = documents.load(profiles.path_of("models", name), ConfigFile, "config")
    assert file.published is not None
    return file.published


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_sources_are_addresses(name: str) -> None:
    assert shipped(name).source.startswith("https://")
    assert published(name).source.startswith("https://")


@pytest.mark.parametrize("name", NAMES)
def test_total_is_within_one_per_cent_of_the_published_size(name: str) -> None:
    """Total: embedding, LM head, attention, norms, dense parts, routers, shared and routed experts.

    Next-token modules and vision towers are not counted.
    """
    size = published(name)
    total = count_parameters(shipped(name)).total
    wanted = (size.total_billion - size.other_billion) * 1e9
    assert abs(total - wanted) <= 0.01 * wanted, (total, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_active_is_the_published_one_in_some_way_of_counting(name: str) -> None:
    """Authors leave out embedding and LM head, count the head alone, or both; and they round."""
    size, count = published(name), count_parameters(shipped(name))
    digits = len(f"{size.active_billion}".rstrip("0").partition(".")[2])
    unit = 10.0**-digits
    least = (count.active - count.embedding) / 1e9
    most = (count.active + (count.embedding if count.lm_head else 0)) / 1e9
    assert least - unit / 2 <= size.active_billion <= most + unit / 2, (least, most)


def test_kimi_k2_would_have_the_size_in_its_report_with_experts_in_its_first_layer() -> None:
    """1026.4e9 + (384 + 1 experts, a router) less a dense part of 3 x 7168 x 18432 = 1043.0e9; the report says 1.04e12.

    The checkpoint has a dense first layer, and 1026.5e9 tensor elements, block scales included.
    """
    model = shipped("kimi-k2")
    assert model.moe_layer_ids == tuple(range(1, 61))
    one = expert_parameters(model.moe, model.hidden_size)
    more = 384 * one + shared_parameters(model.moe, model.hidden_size) + router_parameters(model.moe, 7168)
    total = count_parameters(model).total + more - 3 * 7168 * 18432
    assert round(total / 1e9) == 1043


# --- DeepSeek-V3 ----------------------------------------------------------------------------------


def test_deepseek_v3_in_all_and_active() -> None:
    """671.0e9 in all: 653.9e9 routed (58 x 256 x 44,040,192), 2 x 0.927e9 embedding and LM head, ...

    Active without the embedding, which is one row looked up, 36.6e9; with it 37.6e9; published: 37e9.
    """
    count = count_parameters(shipped("deepseek-v3"))
    assert count.experts == 58 * 256 * 44_040_192 == 653_908_770_816
    assert count.embedding == count.lm_head == 129_280 * 7168
    assert round(count.total / 1e9, 1) == 671.0
    assert round(count.active / 1e9, 1) == 36.6
    assert round((count.active + count.embedding) / 1e9, 1) == 37.6


def test_one_expert_of_deepseek_v3() -> None:
    """Gate, up and down of 7168 x 2048 each."""
    model = shipped("deepseek-v3")
    assert expert_parameters(model.moe, model.hidden_size) == 3 * 7168 * 2048 == 44_040_192


def test_one_more_slot_per_rank() -> None:
    """58 layers x 44,040,192 weights in fp8 are 2.379 GiB; block scales add 4 bytes per 128 x 128 weights.

    44,040,192 / 16,384 = 2,688 scales, 10,752 bytes per expert, 0.6 MiB over 58 layers.
    """
    one = stored_bytes(44_040_192, "fp8_block")
    assert one == 44_040_192 + 4 * 2_688
    assert round(58 * stored_bytes(44_040_192, "fp8") / GIB, 3) == 2.379
    assert round(58 * one / GIB, 4) == 2.3795


@pytest.mark.parametrize(("ranks", "gib"), [(8, 76.1), (16, 38.1), (32, 19.0)])
def test_routed_weights_per_rank(ranks: int, gib: float) -> None:
    """256 / ranks slots x 58 layers x 44,040,192 weights in fp8, block scales included."""
    slots = 58 * 256 // ranks
    assert round(slots * stored_bytes(44_040_192, "fp8_block") / GIB, 1) == gib


def test_latent_cache_per_token() -> None:
    """61 layers x (512 + 64) numbers x 2 bytes = 70,272 bytes, whole on every GPU of a tensor-parallel group."""
    for tp in (1, 8):
        layers = shipped("deepseek-v3").layer_list
        assert sum(kv_bytes_per_token(run.attention, tp, "bf16") for run in layers) == 70_272


# --- other kinds of memory per sequence -------------------------------------------------------------


def test_states_do_not_grow_with_the_context() -> None:
    """Nemotron 3 Nano, Mamba-2: 64 x 64 x 128 numbers in fp32 and 3 x 6144 inputs in bf16 per layer."""
    states = [run.attention for run in shipped("nemotron-3-nano-30b-a3b").layer_list if _is_state(run.attention)]
    assert len(states) == 23
    one = states[0]
    assert state_bytes_per_sequence(one, 1) == 64 * 64 * 128 * 4 + 3 * 6144 * 2 == 2_134_016
    assert kv_bytes_per_sequence(one, 1, "fp8", 10) == kv_bytes_per_sequence(one, 1, "bf16", 10**6) == 2_134_016
    assert state_bytes_per_sequence(one, 4) == 2_134_016 // 4


def _is_state(attention: object) -> bool:
    return isinstance(attention, StateAttention)


def test_qwen3_next_keeps_matrices_in_36_of_48_layers() -> None:
    """32 value heads x 128 x 128 in fp32 and 3 x (2 x 2048 + 4096) inputs in bf16: 2,146,304 bytes a layer."""
    layers = shipped("qwen3-next-80b-a3b").layer_list
    assert sum(state_bytes_per_sequence(run.attention, 1) for run in layers) == 36 * 2_146_304
    assert sum(kv_bytes_per_token(run.attention, 1, "bf16") for run in layers) == 12 * 2 * 2 * 256 * 2


def test_sparse_attention_keeps_the_keys_of_its_indexer() -> None:
    """DeepSeek-V3.2: 512 + 64 + 128 numbers per token and layer."""
    attention = shipped("deepseek-v3.2").layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert kv_bytes_per_token(attention, 1, "bf16") == 2 * (512 + 64 + 128)


def test_compressed_attention_keeps_a_window_and_entries() -> None:
    """DeepSeek-V4-Flash, one entry per 4 tokens: 128 x 512 + (512 + 128) x 8192 / 4 numbers."""
    layers = shipped("deepseek-v4-flash").layer_list
    sparse = next(run.attention for run in layers if _rate(run.attention) == 4)
    assert kv_bytes_per_sequence(sparse, 1, "bf16", 8192) == 2 * (128 * 512 + 640 * 2048)


def _rate(attention: object) -> int | None:
    return attention.compress_rate if isinstance(attention, CompressedAttention) else None


# --- real files -------------------------------------------------------------------------------------


def test_infinity_in_a_config_of_a_mamba_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    text = profiles.path_of("models", "mixtral-8x7b").read_text()
    values = {key.strip(): value.strip() for key, value in _scalars(text)}
    lines = [
        f'"{key}": {value if value.isdigit() or value in ("true", "false") else repr(value)}'
        for key, value in values.items()
    ]
    path.write_text("{" + ", ".join([*lines, '"time_step_limit": [0.0, Infinity]']).replace("'", '"') + "}")
    assert read_model(path).layers == shipped("mixtral-8x7b").layers


def _scalars(text: str) -> list[tuple[str, str]]:
    body = text.split("config:\n", 1)[1]
    pairs = [line.partition(":") for line in body.splitlines()]
    return [(key, value) for key, _, value in pairs]
