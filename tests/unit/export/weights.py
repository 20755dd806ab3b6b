"""Small checkpoints without torch: safetensors files written by hand, in every layout of experts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from planner.export.layout import Layout
from planner.inputs.checkpoint import INDEX_NAME
from planner.inputs.huggingface import model_from_config
from planner.plan.placement import Placement
from planner.plan.split import Split
from tests import building

Tensors = dict[str, tuple[str, list[int], bytes]]
EXPERTS = 4

DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 2,
    "qk_nope_head_dim": 2,
    "v_head_dim": 2,
    "num_nextn_predict_layers": 1,
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 16,
    "intermediate_size": 64,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "layer_types": ["full_attention"],
    "sliding_window": 128,
}


def noise(name: str, dtype: str, shape: list[int], bits: int) -> tuple[str, list[int], bytes]:
    """Random bytes that only this tensor has."""
    size = int(np.prod(shape)) * bits // 8
    return dtype, shape, np.random.default_rng(list(name.encode())).bytes(size)


def deepseek() -> Tensors:
    """Single experts in fp8 with scales; a next-token layer with experts of its own that must stay."""
    found: Tensors = {"model.embed_tokens.weight": noise("embed", "BF16", [16, 8], 16)}
    for layer in range(4):
        block = f"model.layers.{layer}.mlp"
        if layer == 0:
            found[f"{block}.up_proj.weight"] = noise(f"{layer}up", "F8_E4M3", [16, 8], 8)
            continue
        found[f"{block}.gate.weight"] = noise(f"{layer}gate", "BF16", [EXPERTS, 8], 16)
        found[f"{block}.gate.e_score_correction_bias"] = noise(f"{layer}bias", "F32", [EXPERTS], 32)
        found[f"{block}.shared_experts.up_proj.weight"] = noise(f"{layer}shared", "F8_E4M3", [8, 8], 8)
        for expert in range(EXPERTS):
            for part in ("gate_proj", "up_proj", "down_proj"):
                name = f"{block}.experts.{expert}.{part}"
                found[f"{name}.weight"] = noise(name, "F8_E4M3", [8, 8], 8)
                found[f"{name}.weight_scale_inv"] = noise(name + "s", "F32", [1, 1], 32)
    return found


def gpt_oss() -> Tensors:
    """Stacked experts in mxfp4: blocks, scales and biases."""
    block = "model.layers.0.mlp"
    return {
        f"{block}.router.weight": noise("router", "BF16", [EXPERTS, 64], 16),
        f"{block}.router.bias": noise("rbias", "BF16", [EXPERTS], 16),
        f"{block}.experts.gate_up_proj_blocks": noise("gub", "U8", [EXPERTS, 128, 2, 16], 8),
        f"{block}.experts.gate_up_proj_scales": noise("gus", "U8", [EXPERTS, 128, 2], 8),
        f"{block}.experts.gate_up_proj_bias": noise("gubias", "BF16", [EXPERTS, 128], 16),
        f"{block}.experts.down_proj_blocks": noise("db", "U8", [EXPERTS, 64, 2, 16], 8),
        f"{block}.experts.down_proj_scales": noise("ds", "U8", [EXPERTS, 64, 2], 8),
        f"{block}.experts.down_proj_bias": noise("dbias", "BF16", [EXPERTS, 64], 16),
        "lm_head.weight": noise("head", "BF16", [16, 64], 16),
    }


def write_file(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))


def read_file(path: Path) -> Tensors:
    """The tensors of a file, read without the project's code."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    found: Tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            found[name] = entry["dtype"], entry["shape"], data[first:last]
    return found


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 3) -> None:
    """A folder as it is downloaded; tensors are dealt to the files, so that an expert lies in several."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / "original").mkdir()
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard::shards]
        write_file(folder / file, {name: tensors[name] for name in own}, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": sum(len(raw) for _, _, raw in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))


def layout(config: dict[str, Any], order: list[list[int]], **changes: Any) -> Layout:
    """A plan for a checkpoint: the original expert at each position, for each MoE layer."""
    model = model_from_config(config, "config.json")
    split = Split(1, 2, 1, 2)
    placement = Placement(model.moe_layer_ids, EXPERTS // 2, np.array(order, dtype=np.int64))
    given = {
        "split": split,
        "cuts": (range(model.num_layers),),
        "gpus": ((0, 1),),
        "model": model,
        "topology": building.topology(1, 2),
        "placement": placement,
        "redundant_experts": 0,
        "for_checkpoint": True,
    }
    return Layout(**{**given, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
