"""Configurations that cannot be planned: each fault named with its key, all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.inputs.huggingface import model_from_config
from planner.inputs.model_files import read_model

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "vocab_size": 100,
}
FP8_GROUPS = {"group_0": {"weights": {"type": "float", "num_bits": 8}, "targets": ["Linear"]}}
FFN = {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2}
ABSENT = object()


def faults(config: object) -> list[str]:
    """What reading this config reports."""
    with pytest.raises(InputError) as caught:
        model_from_config(config, "config.json")
    assert caught.value.exit_code == 3
    return [str(problem).removeprefix("error: config.json: ") for problem in caught.value.problems]


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The base with some keys changed or (ABSENT) left out."""
    return {key: value for key, value in {**base, **changes}.items() if value is not ABSENT}


def test_the_bases_are_good() -> None:
    assert model_from_config(MIXTRAL, "c").num_layers == 2
    assert model_from_config(DEEPSEEK, "c").num_layers == 4


@pytest.mark.parametrize("key", sorted(set(MIXTRAL) - {"num_key_value_heads", "model_type"}))
def test_a_missing_key_is_named(key: str) -> None:
    (only,) = faults(changed(MIXTRAL, **{key: ABSENT}))
    generic = {"num_local_experts": "num_experts (or", "num_experts_per_tok": "num_experts_per_tok (or"}
    assert only.startswith(generic.get(key, key))
    assert "is missing" in only


@pytest.mark.parametrize("key", sorted(set(MIXTRAL) - {"model_type"}))
@pytest.mark.parametrize("value", [8.0, "8", True, 0, -8, [8], 10**12])
def test_a_value_of_the_wrong_type_or_size_is_named(key: str, value: object) -> None:
    (only,) = faults(changed(MIXTRAL, **{key: value}))
    most = ", at most 1,000,000,000" if value == 10**12 else ""
    assert only == f"{key}: {value!r} is not allowed\n  expected a whole number, 1 or more{most}"


def test_all_faults_at_once() -> None:
    found = faults(changed(MIXTRAL, hidden_size=ABSENT, vocab_size="big", num_local_experts=8.0, torch_dtype="int3"))
    assert [text.split("\n")[0] for text in found] == [
        "hidden_size (or d_model) is missing",
        "vocab_size: 'big' is not allowed",
        "torch_dtype: 'int3' is not a known number format",
        "num_local_experts: 8.0 is not allowed",
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(MIXTRAL, num_experts_per_tok=9), "top_k 9 is more than the 8 experts"),
        (changed(MIXTRAL, num_key_value_heads=3), "4 attention heads do not share 3 KV heads evenly"),
        (changed(MIXTRAL, num_hidden_layers=20_000), "num_hidden_layers: 20,000 layers\n  at most 10,000 are read"),
        (changed(MIXTRAL, layer_types=["full_attention"]), "layer_types: 1 entries\n  expected a list with one entry"),
        (
            changed(MIXTRAL, layer_types=["full_attention", "linear_attention"]),
            "layer_types: 'linear_attention' is not a known",
        ),
        (changed(MIXTRAL, tie_word_embeddings="yes"), "tie_word_embeddings: 'yes' is not allowed"),
        (
            changed(MIXTRAL, quantization_config="fp8"),
            "quantization_config: 'fp8' is not allowed\n  expected a mapping",
        ),
        (
            changed(MIXTRAL, quantization_config={"quant_method": "int3"}),
            "quantization_config.quant_method: quantisation method 'int3' is not known\n  known: fp8, fbgemm_fp8",
        ),
        (
            # What an unknown method means by its groups is not guessed.
            changed(MIXTRAL, quantization_config={"quant_method": "int3", "config_groups": FP8_GROUPS}),
            "quantization_config.quant_method: quantisation method 'int3' is not known",
        ),
        (
            changed(MIXTRAL, quantization_config={"quant_method": "modelopt"}),
            "quantization_config.quant_method: quantisation method 'modelopt' names neither",
        ),
        (
            changed(MIXTRAL, quantization_config={"quant_method": "compressed-tensors", "config_groups": {"a": 8}}),
            "quantization_config.config_groups: no group says how weights are stored",
        ),
        (changed(MIXTRAL, torch_dtype="int3"), "torch_dtype: 'int3' is not a known number format"),
        (changed(MIXTRAL, model_type="dbrx", attn_config=5, ffn_config=FFN), "attn_config: 5 is not allowed"),
        (changed(DEEPSEEK, n_group=3), "8 experts do not divide into 3 groups"),
        (changed(DEEPSEEK, topk_group=3), "groups_per_token 3 is more than num_groups 2"),
        (changed(DEEPSEEK, first_k_dense_replace=4), "the model has no MoE layer: there is nothing to place"),
        (changed(DEEPSEEK, kv_lora_rank=ABSENT), "kv_lora_rank is missing"),
        (changed(DEEPSEEK, mlp_layer_types=["dense", "moe", "moe", "moe"]), "mlp_layer_types: 'moe' is not a known"),
        (changed(DEEPSEEK, intermediate_size=ABSENT), "intermediate_size is missing"),
    ],
)
def test_what_does_not_fit_together(config: dict[str, Any], message: str) -> None:
    (only,) = faults(config)
    assert only.startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "model_type: unknown model family 'llama'"),
        ({"model_type": 5}, "model_type: unknown model family '5'"),
        ({}, "model_type is missing"),
    ],
)
def test_unknown_families_are_refused_by_name(config: object, message: str) -> None:
    (only,) = faults(config)
    assert only.startswith(message)
    known = only.split("known families: ")[1].split("\n")[0].split(", ")
    assert {"deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"} <= set(known)


@pytest.mark.parametrize("config", [[], "mixtral", None, 5])
def test_what_is_no_object(config: object) -> None:
    assert faults(config) == ["a config.json is a JSON object"]


def test_a_model_yaml_with_faults(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(
        "schema: ep-plan/model/1\n"
        "name: mine\n"
        "family: mine\n"
        "hidden_size: 64\n"
        "vocab_size: 100\n"
        "layers:\n"
        "  - count: 2\n"
        "    attention: {kind: gqa, num_heads: 4, num_kv_head: 2, head_dim: 16}\n"
        "    ffn: {kind: moe, num_experts: 4, top_k: 8, intermediate_size: 96}\n"
    )
    with pytest.raises(InputError) as caught:
        read_model(path)
    found = [str(problem).replace(f"error: {path}:", "").split("\n")[0] for problem in caught.value.problems]
    assert found == [
        "8:16: layers[0].attention: num_kv_heads is missing",
        "8:42: layers[0].attention.num_kv_head: unknown key",
        "9:10: layers[0].ffn: top_k 8 is more than the 4 experts",
    ]
    assert caught.value.problems[1].hint == "did you mean num_kv_heads?"
