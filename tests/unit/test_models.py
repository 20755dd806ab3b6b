"""Hugging Face configurations: shapes, published parameter counts, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.inputs import profiles
from planner.inputs.families import FAMILIES
from planner.inputs.huggingface import model_from_config
from planner.inputs.model import DenseFfn, GroupedAttention, LatentAttention, Model
from planner.inputs.model_files import read_model
from planner.inputs.parameters import count_parameters, expert_parameters

Config = dict[str, Any]

# Values of the public config.json of each model.
_LATENT: Config = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def _moe(experts: int, top_k: int, width: int, vocabulary: int, **more: Any) -> Config:
    shape = {"num_experts_per_tok": top_k, "moe_intermediate_size": width, "vocab_size": vocabulary}
    name = "n_routed_experts" if "n_shared_experts" in more else "num_experts"
    return {name: experts, **shape, **more}


def _heads(hidden: int, layers: int, heads: int, kv_heads: int | None = None, width: int = 0) -> Config:
    kv = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**shape, **kv, "intermediate_size": width}


OLMOE = {"model_type": "olmoe", **_heads(2048, 16, 16, 16, 1024), **_moe(64, 8, 0, 50304)}
QWEN_2 = {
    "model_type": "qwen2_moe",
    **_heads(2048, 24, 16, 16, 5632),
    **_moe(60, 4, 1408, 151936, shared_expert_intermediate_size=5632, decoder_sparse_step=1),
}
DEEPSEEK_V2 = {
    "model_type": "deepseek_v2",
    **_heads(5120, 60, 128, None, 12288),
    **_LATENT,
    **_moe(160, 6, 1536, 102400, n_shared_experts=2, first_k_dense_replace=1, n_group=8, topk_group=3),
    "q_lora_rank": 1536,
}
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    **_heads(2048, 27, 16, None, 10944),
    **_LATENT,
    **_moe(64, 6, 1408, 102400, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1),
    "q_lora_rank": None,
}
KIMI_K2 = {
    "model_type": "kimi_k2",
    **_heads(7168, 61, 64, None, 18432),
    **_LATENT,
    **_moe(384, 8, 2048, 163840, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1),
    "q_lora_rank": 1536,
}
GLM_AIR = {
    "model_type": "glm4_moe",
    **_heads(4096, 46, 96, 8, 10944),
    **_moe(128, 8, 1408, 151552, n_shared_experts=1, first_k_dense_replace=1),
    "head_dim": 128,
    "attention_bias": True,
}
SMALL = {
    "model_type": "mixtral",
    **_heads(64, 2, 4, 2, 96),
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}


def shipped(name: str) -> Model:
    """A shipped model."""
    return read_model(profiles.path_of("models", name))


# Sizes of the checkpoints on the Hugging Face hub (multi-token-prediction heads left out).
@pytest.mark.parametrize(
    ("config", "total"),
    [
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b", 235_093_634_560),
        (OLMOE, 6_919_161_856),
        (QWEN_2, 14_315_784_192),
        (DEEPSEEK_V2, 235_741_434_880),
        (DEEPSEEK_V2_LITE, 15_706_484_224),
    ],
)
def test_totals_equal_the_checkpoints(config: str | Config, total: int) -> None:
    model = shipped(config) if isinstance(config, str) else model_from_config(config, "config.json")
    assert count_parameters(model).total == total


# Billions as the model cards say: total, activated. Cards round, and differ in what they call
# activated (embedding or LM head or neither); arXiv 2508.10925 counts all but the embedding, as here.
@pytest.mark.parametrize(
    ("config", "total", "active", "tolerance"),
    [
        ("deepseek-v3", 671, 37, 0.02),
        ("gpt-oss-20b", 20.91, 3.61, 0.001),
        ("gpt-oss-120b", 116.83, 5.13, 0.001),
        ("mixtral-8x7b", 46.7, 12.9, 0.02),
        ("mixtral-8x22b", 141, 39, 0.01),
        ("qwen3-235b-a22b", 235, 22, 0.02),
        (DEEPSEEK_V2, 236, 21, 0.01),
        (KIMI_K2, 1000, 32, 0.03),
        (GLM_AIR, 106, 12, 0.07),
    ],
)
def test_totals_and_activated_agree_with_the_model_cards(
    config: str | Config, total: float, active: float, tolerance: float
) -> None:
    model = shipped(config) if isinstance(config, str) else model_from_config(config, "config.json")
    count = count_parameters(model)
    assert count.total / 1e9 == pytest.approx(total, rel=tolerance)
    assert count.active / 1e9 == pytest.approx(active, rel=tolerance)


def test_the_families_read_here_are_known() -> None:
    # That no family goes unread is asserted in test_families.
    models = [shipped(name).family for name in profiles.names("models")]
    configs = [OLMOE, QWEN_2, DEEPSEEK_V2, KIMI_K2, GLM_AIR]
    assert {*models, *(str(config["model_type"]) for config in configs)} <= set(FAMILIES)


def test_deepseek_v3_layer_by_layer() -> None:
    model = shipped("deepseek-v3")
    assert model.moe_layer_ids == tuple(range(3, 61))
    dense = model.layer_list[0].ffn
    assert isinstance(dense, DenseFfn)
    assert dense.intermediate_size == 18432
    moe = model.moe
    assert (moe.num_experts, moe.top_k, moe.shared_intermediate_size) == (256, 8, 2048)
    assert (moe.num_groups, moe.groups_per_token, moe.correction_bias) == (8, 4, True)
    assert expert_parameters(moe, 7168) == 44_040_192  # 3 * 7168 * 2048
    assert isinstance(model.layer_list[5].attention, LatentAttention)
    assert model.expert_weights == "fp8_block"


def test_gpt_oss_alternates_windows_and_keeps_its_biases() -> None:
    model = shipped("gpt-oss-20b")
    attention = [run.attention for run in model.layer_list]
    assert [part.window for part in attention if isinstance(part, GroupedAttention)] == [128, None] * 12
    assert all(isinstance(part, GroupedAttention) and part.sinks and part.output_bias for part in attention)
    # gate, up and down of 2880 x 2880, and biases of 2 * 2880 and 2880
    assert expert_parameters(model.moe, 2880) == 3 * 2880**2 + 3 * 2880
    assert (model.expert_weights, model.dense_weights) == ("mxfp4", "bf16")


def test_shared_experts_are_counted_or_wide() -> None:
    assert model_from_config(DEEPSEEK_V2, "c").moe.shared_intermediate_size == 2 * 1536
    qwen = model_from_config(QWEN_2, "c").moe
    assert (qwen.shared_intermediate_size, qwen.shared_gate) == (5632, True)


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        ({**GLM_AIR, "num_hidden_layers": 4}, [0]),
        ({**DEEPSEEK_V2_LITE, "num_hidden_layers": 6, "moe_layer_freq": 2}, [0, 1, 3, 5]),
        ({**GLM_AIR, "num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "dense"]}, [0, 2]),
        ({**QWEN_2, "num_hidden_layers": 4, "decoder_sparse_step": 2}, [0, 2]),
        ({**QWEN_2, "num_hidden_layers": 4, "mlp_only_layers": [0, 3]}, [0, 3]),
    ],
)
def test_which_layers_are_dense(config: Config, dense: list[int]) -> None:
    model = model_from_config(config, "config.json")
    assert [index for index, run in enumerate(model.layer_list) if isinstance(run.ffn, DenseFfn)] == dense


def test_text_config_and_aliases() -> None:
    inner = {key: value for key, value in SMALL.items() if key != "num_local_experts"}
    outer = {"model_type": "a_vision_model", "text_config": {**inner, "num_experts": 4}}
    assert model_from_config(outer, "config.json").moe.num_experts == 4


@pytest.mark.parametrize(
    ("section", "experts", "dense"),
    [
        (None, "bf16", "bf16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", "fp8_block"),
        ({"quant_method": "fp8"}, "fp8", "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4", "bf16"),
    ],
)
def test_quantisation(section: Config | None, experts: str, dense: str) -> None:
    model = model_from_config({**SMALL, "quantization_config": section}, "config.json")
    assert (model.expert_weights, model.dense_weights) == (experts, dense)


def test_the_name_is_that_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "my-moe").mkdir()
    path = tmp_path / "my-moe" / "config.json"
    path.write_text(json.dumps(SMALL))
    assert read_model(path).name == "my-moe"
