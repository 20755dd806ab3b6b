"""Downloaded checkpoints: headers are read safely, and sizes are compared with the config."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.inputs.checkpoint import INDEX_NAME, checkpoint_bytes, expected_bytes, tensor_bytes, weight_warnings
from planner.inputs.deployment import load_deployment
from planner.inputs.model_files import read_model

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "dtype": "bfloat16",
}


def write_tensors(path: Path, *sizes: int, header: bytes | None = None, length: int | None = None) -> None:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    tensors = {
        f"tensor.{i}": {"dtype": "U8", "shape": [size], "data_offsets": [end - size, end]}
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    text = header if header is not None else json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(sum(sizes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_sizes_come_from_headers(folder: Path) -> None:
    assert checkpoint_bytes(folder) is None
    write_tensors(folder / "a.safetensors", 10, 20)
    write_tensors(folder / "b.safetensors", 5)
    assert checkpoint_bytes(folder) == 35


def test_agreement_is_silent_and_disagreement_a_warning(folder: Path) -> None:
    model = read_model(folder / "config.json")
    assert weight_warnings(folder, model) == ()
    write_tensors(folder / "model.safetensors", expected_bytes(model))
    assert weight_warnings(folder, model) == ()
    write_tensors(folder / "model.safetensors", expected_bytes(model) // 2)
    (text,) = weight_warnings(folder, model)
    assert "GB" in text
    assert "experts in bf16" in text


def test_a_folder_or_an_index_as_model_of_a_deployment(folder: Path) -> None:
    index = {"metadata": {"total_size": 12}, "weight_map": {"x": "model-1.safetensors"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    deployment = folder / "deployment.yaml"
    for name in ("./", INDEX_NAME):
        deployment.write_text(
            f"schema: ep-plan/deployment/1\nmodel: {name}\ntopology: hgx-h100\n"
            "workload: {phase: decode, tokens_per_gpu: 8, context_length: 16}\n"
        )
        loaded = load_deployment(deployment)
        assert loaded.model.moe.num_experts == 8
        assert len(loaded.warnings) == 1


def test_an_index_names_files_of_its_folder(folder: Path) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(InputError, match="secret"):
        checkpoint_bytes(folder)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(InputError, match="missing"):
        checkpoint_bytes(folder)


@pytest.mark.parametrize(
    ("header", "length", "said"),
    [
        (b"{}", 1 << 60, "header of"),
        (b"", 0, "header of"),
        (b"[1, 2]", None, "not a JSON object"),
        (b"\xff\xfe{}", None, "UTF-8"),
        (b'{"x": {"data_offsets": [0, 99]}}', None, "data_offsets"),
        (b'{"x": {"data_offsets": [8, 4]}}', None, "data_offsets"),
        (b'{"x": {"data_offsets": "ab"}}', None, "data_offsets"),
        (b'{"x": ', None, "not valid JSON"),
    ],
)
def test_damaged_files_are_errors_with_their_name(tmp_path: Path, header: bytes, length: int | None, said: str) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, 16, header=header, length=length)
    with pytest.raises(InputError) as caught:
        tensor_bytes(path)
    assert said in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_file_too_short_for_a_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match="not a safetensors file"):
        tensor_bytes(path)


def test_quantisation_in_a_file_of_its_own(folder: Path) -> None:
    """ModelOpt writes hf_quant_config.json; a section in config.json itself wins."""
    left_out = ["lm_head", "model.layers.0.self_attn.q_a_proj"]
    section = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": left_out}}
    (folder / "hf_quant_config.json").write_text(json.dumps(section))
    model = read_model(folder / "config.json")
    assert (model.expert_weights, model.dense_weights) == ("nvfp4", "bf16")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "fp8"}}))
    assert read_model(folder / "config.json").expert_weights == "fp8"
