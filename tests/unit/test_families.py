"""Families of config.json: shapes and parameter counts, in the spellings of the hub and of transformers 5.

`tests/data/families.json` holds small configurations of every family as transformers 5.23.0 writes
them, and variants that switch biases, gates and lists, each with the parameters of the model which that
library builds from it on the meta device (`built` below makes a row's count). Where transformers is
installed the counts are taken anew.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.inputs.families import FAMILIES
from planner.inputs.huggingface import model_from_config
from planner.inputs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GroupedAttention,
    LatentAttention,
    Model,
    NoAttention,
    StateAttention,
)
from planner.inputs.parameters import count_parameters

Config = dict[str, Any]
DATA: dict[str, Config] = json.loads((Path(__file__).parent.parent / "data" / "families.json").read_text())
BASE: Config = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1000}
LATENT: Config = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


def read(config: Config) -> Model:
    return model_from_config(config, "config.json")


def messages(config: Config) -> str:
    with pytest.raises(InputError) as caught:
        read(config)
    return str(caught.value)


def attentions(model: Model) -> list[Attention]:
    return [run.attention for run in model.layer_list]


# --- counts of the library ------------------------------------------------------------------------


def unused_by(config: Config) -> int:
    """Weights that transformers allocates and no checkpoint has: LongCat's first matrices of zero experts."""
    zero = config.get("zero_expert_num", 0)
    return int(config["num_layers"] * zero * 2 * config["expert_ffn_hidden_size"] * 64) if zero else 0


@pytest.mark.parametrize("name", DATA)
def test_counts_what_transformers_builds(name: str) -> None:
    config = DATA[name]["config"]
    assert count_parameters(read(config)).total == DATA[name]["parameters"] - unused_by(config)


@pytest.mark.filterwarnings("ignore")
def test_recorded_counts_are_those_of_the_installed_transformers() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.23")
    for name, row in DATA.items():
        count, written = built(row["config"])
        assert count == row["parameters"], name
        # A file that the library writes itself carries defaults and other spellings.
        assert count_parameters(read(written)).total == count - unused_by(row["config"]), name


VISION: tuple[str, ...] = ("vision", "visual", "multi_modal_projector", "embed_vision", "embed_audio")
COMPOSITE: dict[str, Config] = {
    "llama4": {"num_local_experts": 4},
    "qwen3_vl_moe": {"num_experts": 8},
    "qwen3_5_moe": {"num_experts": 8},
    "glm4v_moe": {"n_routed_experts": 8},
    "gemma4": {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", COMPOSITE)
def test_composite_configs_give_the_language_model(family: str) -> None:
    """As transformers writes them, with every default of the library; the vision tower is not counted."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.23")
    count, written = built({"model_type": family, "text_config": {"num_hidden_layers": 6, **COMPOSITE[family]}}, VISION)
    assert count_parameters(read(written)).total == count


def built(config: Config, left_out: tuple[str, ...] = ()) -> tuple[int, Config]:
    """Parameters of the model that transformers builds, balance biases included, and its config.json.

    Those with a word of `left_out` in their name are not counted.
    """
    import torch
    import transformers

    values = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **config}
    made = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    is_causal = type(made) in transformers.AutoModelForCausalLM._model_mapping
    maker = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        model = maker.from_config(made)
    biases = [
        (key, tensor) for key, tensor in model.named_buffers() if key.endswith(("correction_bias", "expert_bias"))
    ]
    counted = [*model.named_parameters(), *biases]
    total = sum(tensor.numel() for key, tensor in counted if not any(word in key for word in left_out))
    return total, json.loads(made.to_json_string())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
def test_the_outer_config_says_whether_the_lm_head_is_tied(tied: bool) -> None:
    """Since transformers 5 the inner config of Qwen3-VL says true by default, whatever the model does."""
    inner = QWEN3 | {"model_type": "qwen3_vl_moe_text", "tie_word_embeddings": not tied}
    outer = {"model_type": "qwen3_vl_moe", "tie_word_embeddings": tied, "text_config": inner}
    assert read(outer).tie_word_embeddings is tied
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.23")
    small = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision: Config = small | {"deepstack_visual_indexes": []}
    with_vision, _ = built(outer | {"vision_config": vision})
    without_head, _ = built(outer | {"vision_config": vision, "tie_word_embeddings": True})
    assert with_vision - without_head == (0 if tied else 64 * 1000)


def test_every_family_is_compared_or_an_alias_of_one_that_is() -> None:
    compared = {FAMILIES[row["config"]["model_type"]] for row in DATA.values()}
    alone = {name for name, family in FAMILIES.items() if family not in compared}
    assert alone == set()


# --- which layers are what ------------------------------------------------------------------------


def test_first_dense_layers_and_shared_experts() -> None:
    model = read(
        BASE
        | LATENT
        | {"model_type": "deepseek_v3", "intermediate_size": 96, "moe_intermediate_size": 48, "n_routed_experts": 8}
        | {"num_experts_per_tok": 2, "n_shared_experts": 3, "first_k_dense_replace": 2, "n_group": 4, "topk_group": 2}
    )
    assert model.moe_layer_ids == (2, 3)
    assert model.moe.shared_intermediate_size == 3 * 48
    assert (model.moe.num_groups, model.moe.groups_per_token) == (4, 2)


QWEN3: Config = BASE | {
    "model_type": "qwen3_moe",
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}


def test_qwen_sparse_step_and_dense_layers_by_name() -> None:
    model = read(QWEN3 | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert model.moe_layer_ids == (1, 5)


def test_experts_under_the_name_of_transformers_5() -> None:
    renamed = {key: value for key, value in QWEN3.items() if key != "num_experts"} | {"num_local_experts": 8}
    assert read(renamed).layers == read(QWEN3).layers


def test_text_config_wins_over_the_outer_keys() -> None:
    inner = QWEN3 | {"model_type": "qwen3_vl_moe_text"}
    model = read({"model_type": "qwen3_vl_moe", "hidden_size": 1, "text_config": inner})
    assert model.family == "qwen3_vl_moe_text"
    assert model.layers == read(QWEN3).layers


def test_an_unknown_outer_family_with_a_known_inner_one() -> None:
    inner = BASE | LATENT | {"model_type": "deepseek_v3", "moe_intermediate_size": 48, "n_routed_experts": 8}
    model = read({"model_type": "kimi_k25", "text_config": inner | {"num_experts_per_tok": 2}})
    assert model.family == "deepseek_v3"


LLAMA4: Config = BASE | {
    "model_type": "llama4_text",
    "head_dim": 16,
    "num_hidden_layers": 8,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 64,
}


def test_llama_4_interleaves_experts_and_chunks() -> None:
    model = read(LLAMA4 | {"interleave_moe_layer_step": 2})
    assert model.moe_layer_ids == (1, 3, 5, 7)
    assert model.moe.shared_intermediate_size == 48
    assert [part.window for part in attentions(model) if isinstance(part, GroupedAttention)] == [64, 64, 64, None] * 2
    assert isinstance(model.layer_list[0].ffn, DenseFfn)
    assert model.layer_list[0].ffn.intermediate_size == 96


def test_llama_4_lists_win_over_steps() -> None:
    listed = {"moe_layers": [0, 7], "interleave_moe_layer_step": 2, "no_rope_layers": [0, 1] * 4}
    model = read(LLAMA4 | listed)
    assert model.moe_layer_ids == (0, 7)
    assert [part.window for part in attentions(model) if isinstance(part, GroupedAttention)] == [None, 64] * 4


def test_jamba_periods() -> None:
    config = BASE | {"model_type": "jamba", "num_hidden_layers": 8, "intermediate_size": 96, "num_experts": 4}
    model = read(config | {"num_experts_per_tok": 2, "attn_layer_period": 4, "attn_layer_offset": 1})
    assert model.moe_layer_ids == (1, 3, 5, 7)
    assert [isinstance(part, StateAttention) for part in attentions(model)] == [True, False, True, True] * 2


@pytest.mark.parametrize(("last", "expected"), [(-1, (3, 5)), (4, (3,))])
def test_ernie_bounds(last: int, expected: tuple[int, ...]) -> None:
    config = BASE | {"model_type": "ernie4_5_moe", "num_hidden_layers": 6, "intermediate_size": 96}
    config |= {"moe_intermediate_size": 48, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 0}
    bounds = {"moe_layer_start_index": 2, "moe_layer_end_index": last, "moe_layer_interval": 2}
    assert read(config | bounds).moe_layer_ids == expected


def test_minimax_in_its_own_spelling() -> None:
    config = BASE | {"head_dim": 16, "intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2}
    own = read(config | {"model_type": "minimax_m1", "attn_type_list": [0, 0, 1, 0]})
    kinds = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    assert own.layers == read(config | {"model_type": "minimax", "layer_types": kinds}).layers


def test_kimi_linear_in_its_own_spelling() -> None:
    row = DATA["kimi_linear"]["config"]
    own = {key: value for key, value in row.items() if not key.startswith(("linear_", "layer_types", "mlp_layer"))}
    own["linear_attn_config"] = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4, "full_attn_layers": [3]}
    assert read(own | {"first_k_dense_replace": 1}).layers == read(row).layers


def test_nemotron_pattern_and_list_are_the_same() -> None:
    row = DATA["nemotron_h"]["config"]
    pattern = {key: value for key, value in row.items() if key != "layers_block_type"}
    pattern |= {"hybrid_override_pattern": "ME*E-M", "num_hidden_layers": 6}
    assert read(pattern).layers == read(row).layers
    hub = row | {"layers_block_type": ["mamba", "moe", "attention", "moe", "mlp", "mamba"]}
    assert read(hub).layers == read(row).layers


def test_nemotron_layers_are_one_part_each() -> None:
    model = read(DATA["nemotron_h"]["config"])
    assert model.moe_layer_ids == (1, 3)
    kinds = [type(part) for part in attentions(model)]
    assert kinds == [StateAttention, NoAttention, GroupedAttention, NoAttention, NoAttention, StateAttention]
    widths = [run.ffn.intermediate_size for run in model.layer_list if isinstance(run.ffn, DenseFfn)]
    assert widths == [0, 0, 96, 0]
    assert not model.moe.gated


def test_longcat_counts_layers_not_blocks() -> None:
    config = DATA["longcat"]["config"]
    model = read(config)
    assert model.num_layers == 2
    assert all(isinstance(part, LatentAttention) and part.blocks == 2 for part in attentions(model))
    assert (model.moe.zero_experts, model.moe.top_k, model.moe.mean_choices) == (4, 3, 2.0)
    blocks = {key: value for key, value in config.items() if key != "num_layers"} | {"num_hidden_layers": 4}
    assert read(blocks).layers == model.layers


def test_hunyuan_lists_of_equal_numbers() -> None:
    config = BASE | {"model_type": "hunyuan_v1_moe", "intermediate_size": 48, "num_experts": 8}
    model = read(config | {"moe_topk": [2] * 4, "num_shared_expert": [1] * 4})
    assert (model.moe.top_k, model.moe.shared_intermediate_size) == (2, 48)
    assert "moe_topk: [1, 2, 2, 2] is not allowed" in messages(config | {"moe_topk": [1, 2, 2, 2]})


def test_gemma_per_layer_numbers_of_transformers_5_and_of_the_hub() -> None:
    row = DATA["gemma4"]["config"]
    hub = {key: value for key, value in row.items() if key != "per_layer_config"}
    hub |= {"global_head_dim": 32, "num_global_key_value_heads": 1}
    assert read(hub).layers == read(row).layers
    wide = attentions(read(row))[1]
    assert isinstance(wide, GroupedAttention)
    assert (wide.head_dim, wide.num_kv_heads, wide.value_from_key, wide.window) == (32, 1, True, None)


def test_sparse_attention_reuses_choices() -> None:
    parts = [part for part in attentions(read(DATA["glm_moe_dsa"]["config"])) if isinstance(part, LatentAttention)]
    assert [part.indexer.own for part in parts if part.indexer] == [True, True, False, False]


def test_hash_layers_have_no_bias_for_balance() -> None:
    """DeepSeek-V4's first layers choose experts by token id; by name, by number, else three of them."""

    def biased(config: Config) -> list[bool]:
        return [run.ffn.correction_bias for run in read(config).layer_list if not isinstance(run.ffn, DenseFfn)]

    row = DATA["deepseek_v4"]["config"]
    assert biased(row) == [True] * 4
    assert biased(row | {"mlp_layer_types": ["hash_moe", "moe", "moe", "moe"]}) == [False, True, True, True]
    plain = {key: value for key, value in row.items() if key != "mlp_layer_types"}
    assert biased(plain | {"num_hash_layers": 1}) == [False, True, True, True]
    assert biased(plain) == [False, False, False, True]


def test_compression_by_ratio_and_by_name() -> None:
    row = DATA["deepseek_v4"]["config"]
    by_ratio = {key: value for key, value in row.items() if key not in ("layer_types", "compress_rates")}
    by_ratio["compress_ratios"] = [0, 4, 128, 4, 0]  # the hub lists one more, of the next-token module
    model = read(by_ratio)
    assert model.layers == read(row).layers
    rates = [part.compress_rate for part in attentions(model) if isinstance(part, CompressedAttention)]
    assert rates == [None, 4, 128, 4]


def test_windows_by_list_by_period_and_switched_off() -> None:
    window = {"sliding_window": 32}

    def windows(config: Config) -> list[int | None]:
        return [part.window for part in attentions(read(config)) if isinstance(part, GroupedAttention)]

    listed = ["sliding_attention", "full_attention"] * 2
    assert windows(QWEN3 | window | {"layer_types": listed}) == [32, None] * 2
    assert windows(QWEN3 | window | {"sliding_window_pattern": 2}) == [32, None] * 2
    assert windows(QWEN3 | window | {"use_sliding_window": False}) == [None] * 4
    assert windows(QWEN3 | {"sliding_window": 0, "use_sliding_window": False}) == [None] * 4
    with pytest.raises(InputError, match="sliding_window: 0 is not allowed"):
        windows(QWEN3 | {"sliding_window": 0})


# --- what is wrong --------------------------------------------------------------------------------


def test_unknown_family_names_the_known_ones() -> None:
    text = messages({"model_type": "llama"})
    assert "'llama'" in text
    assert all(name in text for name in ("deepseek_v3", "qwen3_moe", "nemotron_h"))


def test_all_problems_at_once_with_their_keys() -> None:
    text = messages(QWEN3 | {"num_experts": "8", "num_experts_per_tok": 0, "vocab_size": None})
    assert "num_experts: '8' is not allowed" in text
    assert "num_experts_per_tok: 0 is not allowed" in text
    assert "vocab_size is missing" in text


def test_nested_keys_are_named_in_full() -> None:
    config = {"model_type": "dbrx", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 100}
    text = messages(config | {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"moe_num_experts": 4}})
    assert "ffn_config" in text
    assert "ffn_hidden_size is missing" in text


def test_unknown_kind_of_layer() -> None:
    text = messages(QWEN3 | {"sliding_window": 32, "layer_types": ["full_attention", "ring", "full_attention", 3]})
    assert "layer_types" in text
    assert "'ring'" in text
    assert "sliding_attention" in text


def test_variants_that_are_not_read_are_refused() -> None:
    config = DATA["gemma4"]["config"] | {"hidden_size_per_layer_input": 256}
    assert "hidden_size_per_layer_input: 256" in messages(config)
    assert "mlp_bias: True" in messages(DATA["deepseek_v2"]["config"] | {"mlp_bias": True})
    assert "mla_use_output_gate" in messages(DATA["kimi_linear"]["config"] | {"mla_use_output_gate": True})


def test_pattern_and_layer_count_must_agree() -> None:
    row = DATA["nemotron_h"]["config"]
    pattern = {key: value for key, value in row.items() if key != "layers_block_type"}
    text = messages(pattern | {"hybrid_override_pattern": "ME*E", "num_hidden_layers": 5})
    assert "5 layers, but the pattern has 4" in text
    assert "['X']" in messages(pattern | {"hybrid_override_pattern": "MEX"})


def test_unknown_compression() -> None:
    row = {key: value for key, value in DATA["deepseek_v4"]["config"].items() if key != "layer_types"}
    assert "7, [4] is not a known compression" in messages(row | {"compress_ratios": [0, 7, [4], 128]})


ODD: tuple[Any, ...] = (None, True, -1, 0, 10**12, 1.5, "x", [], [[]], [1, "a"], {}, {"a": 1}, {"0": {"head_dim": []}})


@pytest.mark.parametrize("name", DATA)
def test_whatever_a_key_holds_there_is_a_model_or_an_input_error(name: str) -> None:
    config = DATA[name]["config"]
    for key in [*config, "quantization_config", "dtype", "text_config", "sliding_window_pattern"]:
        for value in ODD:
            with contextlib.suppress(InputError):
                read(config | {key: value})


def test_a_dense_member_of_the_family() -> None:
    assert "no MoE layer" in messages(QWEN3 | {"mlp_only_layers": [0, 1, 2, 3]})


# --- quantisation ---------------------------------------------------------------------------------


def formats(quantisation: Config, **more: Any) -> tuple[str, str]:
    model = read(QWEN3 | {"dtype": "bfloat16", "quantization_config": quantisation} | more)
    return model.expert_weights, model.dense_weights


def group(bits: int, size: int | None, kind: str, *targets: str) -> Config:
    return {"weights": {"num_bits": bits, "group_size": size, "type": kind}, "targets": list(targets)}


def test_bare_methods() -> None:
    assert formats({"quant_method": "fp8", "weight_block_size": [128, 128]}) == ("fp8_block", "fp8_block")
    assert formats({"quant_method": "fbgemm_fp8"}) == ("fp8", "fp8")
    assert formats({"quant_method": "mxfp4"}) == ("mxfp4", "bf16")
    assert formats({"quant_method": "fp8", "weight_block_size": [128, 128]}, expert_dtype="fp4") == (
        "mxfp4",
        "fp8_block",
    )
    inside = {"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"}
    assert formats(inside) == ("mxfp4", "fp8_block")


def test_bits_and_group_size() -> None:
    assert formats({"quant_method": "gptq", "bits": 4, "group_size": 128}) == ("int4", "int4")
    assert formats({"quant_method": "awq", "bits": 4, "group_size": 32}) == ("int4_group32", "int4_group32")
    assert formats({"quant_method": "gptq", "bits": 8, "group_size": -1}) == ("int8", "int8")


def test_groups_and_modules_left_out() -> None:
    ignored = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]
    groups = {"group_0": group(4, 32, "int", "Linear")}
    kimi = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ignored}
    assert formats(kimi) == ("int4_group32", "bf16")
    assert formats({"quant_method": "compressed-tensors", "config_groups": groups}) == ("int4_group32",) * 2
    by_layer = ["model.layers.0.self_attn*", "model.layers.0.mlp.shared_experts*"]
    nvfp4 = {"group_0": group(4, 16, "float", "Linear")}
    assert formats({"quant_method": "modelopt", "config_groups": nvfp4, "ignore": by_layer}) == ("nvfp4", "bf16")
    norms = ["model.layers.0.self_attn.kv_a_layernorm", "model.layers.0.mlp.gate", "lm_head"]
    block = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": norms}
    assert formats(block) == ("fp8_block", "fp8_block")


def test_groups_that_name_modules() -> None:
    groups = {
        "group_0": group(8, None, "float", "model.layers.0.self_attn.q_proj"),
        "group_1": group(4, 16, "float", "model.layers.0.mlp.experts.0.up_proj"),
    }
    assert formats({"quant_method": "modelopt", "config_groups": groups}) == ("nvfp4", "fp8")


def test_algorithms_by_name_and_by_layer() -> None:
    assert formats({"quant_method": "modelopt", "quant_algo": "NVFP4"}) == ("nvfp4", "nvfp4")
    layers = {
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        "model.layers.0.mlp.experts.0.up_proj": {"quant_algo": "NVFP4"},
    }
    mixed = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    assert formats(mixed) == ("nvfp4", "fp8")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quant_method": "aqlm"}, "'aqlm' is not known"),
        ({"quant_method": "modelopt", "quant_algo": "W3A3"}, "'W3A3' is not known"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits in groups of 128"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": group(4, 64, "float")}}, "4-bit floats"),
        ({"quant_method": "modelopt", "config_groups": {"g": {"weights": {"num_bits": []}}}}, "None bits"),
        ("fp8", "expected a mapping"),
    ],
)
def test_unknown_quantisation_is_told_with_a_way_out(section: Any, said: str) -> None:
    text = messages(QWEN3 | {"quantization_config": section})
    assert said in text
    assert "quantization_config" in text
