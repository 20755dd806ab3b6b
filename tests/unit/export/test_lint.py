"""Flags that engines refuse, ignore or change: the cases that users met, and commands in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import UsageError
from planner.export.lint.run import Linted
from planner.review.lint_launch import lint_launch

QWEN = "qwen3-235b-a22b"
V3 = "deepseek-v3"


def told(command: str, model: str | None = None, topology: str | None = None, version: str | None = None) -> list[str]:
    return [
        f"{remark.level} {remark.flag}: {remark.message}"
        for remark in linted(command, model, topology, version).remarks
    ]


def linted(command: str, model: str | None = None, topology: str | None = None, version: str | None = None) -> Linted:
    return lint_launch([command], model, topology, version)


@pytest.fixture
def fp8_qwen(tmp_path: Path) -> str:
    """Qwen3-235B with 128-wide fp8 blocks, as vllm-project/vllm#17569 met it."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, '
        '"num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, '
        '"moe_intermediate_size": 1536, "intermediate_size": 12288, "vocab_size": 151936, "decoder_sparse_step": 1, '
        '"mlp_only_layers": [], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], '
        '"activation_scheme": "dynamic", "fmt": "e4m3"}}'
    )
    return str(tmp_path / "config.json")


def test_widths_that_cut_a_quantisation_block(fp8_qwen: str) -> None:
    """vllm#17569: 1536/8 = 192 is no multiple of 128; with expert parallelism nothing is cut."""
    (remark,) = told("vllm serve m -tp 8", fp8_qwen)
    assert remark.startswith("fatal --enable-expert-parallel: expert width 1536/8 = 192, not a multiple of")
    assert not any("expert width" in one for one in told("vllm serve m -tp 8 --enable-expert-parallel", fp8_qwen))
    assert not told("vllm serve m -tp 4", fp8_qwen)


def test_all_rules_at_once() -> None:
    """vllm#52435: 3 GPUs; the heads block it, whatever the message says about redundant experts."""
    found = told("vllm serve m -tp 3 --enable-expert-parallel --enable-eplb", V3)
    assert any("128 attention heads mod tp 3 = 2" in one for one in found)
    assert any("256 experts + 0 redundant mod EP size 3 = 1; 2 redundant would do" in one for one in found)


def test_round_robin_falls_back() -> None:
    """vllm#41046: honoured with groups, without copies, without EPLB, and with the right backend only."""
    base = "vllm serve m -dp 8 --enable-expert-parallel --expert-placement-strategy round_robin"
    assert any("one routing group" in one for one in told(base + " --all2all-backend deepep_low_latency", QWEN))
    assert any("all-to-all backend is the default" in one for one in told(base, V3))
    assert not any("falls back" in one for one in told(base + " --all2all-backend deepep_low_latency", V3))
    assert any("EPLB is on" in one for one in told(base + " --all2all-backend deepep_low_latency --enable-eplb", V3))
    assert any(
        "expert parallelism is off" in one for one in told("vllm serve m --expert-placement-strategy=round_robin")
    )


def test_a_balancer_that_tensorrt_llm_ignores(tmp_path: Path) -> None:
    """TensorRT-LLM#18626: EP > 1 and attention data parallelism, or nothing happens."""
    config = tmp_path / "config.yaml"
    config.write_text("moe_config: {load_balancer: {num_slots: 288}}\n")
    (remark,) = told(f"trtllm-serve m --tp_size 8 --ep_size 8 --config {config}", V3)
    assert remark.startswith(
        "ignored moe_config.load_balancer: without a word, because enable_attention_dp is not true"
    )
    config.write_text("enable_attention_dp: true\nmoe_config: {load_balancer: {num_slots: 288}}\n")
    assert told(f"trtllm-serve m --tp_size 8 --ep_size 8 --extra_llm_api_options {config}", V3) == []
    assert any("EP is 1" in one for one in told(f"trtllm-serve m --tp_size 8 --config {config}", V3))
    assert any(
        "288 mod EP size 7 = 1" in one for one in told(f"trtllm-serve m --tp_size 7 --ep_size 7 --config {config}")
    )
    assert any(
        "architectures" in one
        for one in told(f"trtllm-serve m --tp_size 8 --ep_size 8 --config {config}", "gpt-oss-20b")
    )


@pytest.mark.parametrize(
    ("command", "model", "topology", "expected"),
    [
        # vLLM: the flags of expert parallelism
        ("vllm serve m --enable-expert-parallel", None, None, "ignored --enable-expert-parallel: one GPU per stage"),
        ("vllm serve m --expert-parallel-size 4", None, None, "fatal --expert-parallel-size: no such flag"),
        ("vllm serve m --expert-placement-file f.json", None, None, "fatal --expert-placement-file: no such flag"),
        ("vllm serve m -tp 8 --enable-eplb", None, None, "fatal --enable-eplb: needs --enable-expert-parallel"),
        ("vllm serve m -ep --enable-eplb", None, None, "fatal --enable-eplb: needs more than one GPU"),
        ("vllm serve m -dp 8 -ep --eplb-config.num_redundant_experts 8", None, None, "num_redundant_experts without"),
        (
            "vllm serve m --eplb-config '{\"window_size\": 5}'",
            None,
            None,
            "ignored --eplb-config: without --enable-eplb",
        ),
        ("vllm serve m --eplb-config '{bad'", None, None, "fatal --eplb-config: not JSON"),
        ("vllm serve m --eplb-config '{\"windows\": 5}'", None, None, "fatal --eplb-config: windows is not known"),
        ("vllm serve m --eplb-config.initial_mapping_path x", None, None, "is in no release: pull request 41141"),
        ("vllm serve m -dp 8 -ep --enable-eplb --eplb-config.communicator pynccl", None, None, "use_async"),
        ("vllm serve m -dp 8 -ep --enable-eplb --eplb-config.policy flash", None, None, "policy 'flash'"),
        ("vllm serve m -dp 6 -ep --enable-eplb", None, "4 x hgx-h100", "6 GPUs on 4 nodes do not divide"),
        ("vllm serve m -dp 16 -ep --enable-eplb", QWEN, "2 x hgx-h100", "1 routing group on 2 nodes"),
        (
            "vllm serve m -tp 8 --all2all-backend deepep_low_latency",
            None,
            None,
            "ignored --all2all-backend: not used without expert",
        ),
        ("vllm serve m -tp 8 -ep --all2all-backend naive", None, None, "not used without data parallelism"),
        (
            "vllm serve m -dp 20 -ep --all2all-backend deepep_high_throughput",
            None,
            None,
            "EP size 20; the library is built",
        ),
        (
            "vllm serve m -tp 8 -dp 4",
            None,
            "2 x hgx-h100",
            "fatal --tensor-parallel-size: 32 GPUs are needed, the topology has 16",
        ),
        ("vllm serve m -tp 8", None, "2 x hgx-h100", "note --tensor-parallel-size: 8 of 16 GPUs stay idle"),
        ("vllm serve m --tensor_parallel_size=0", None, None, "'0' is not a positive whole number"),
        ("vllm serve m -dp 4 --data-parallel-size-local 2", None, None, "fatal --data-parallel-address: is missing"),
        (
            "vllm serve m -dp 4 --data-parallel-size-local 2 --data-parallel-start-rank 3 --data-parallel-address h",
            None,
            None,
            "replicas 3..4",
        ),
        # SGLang
        (
            "python -m sglang.launch_server --tp 8 --ep 4 --moe-a2a-backend deepep",
            None,
            None,
            "coerced --ep-size: 4 becomes 8",
        ),
        (
            "python -m sglang.launch_server --tp 8 --ep 8 --ep-dispatch-algorithm static",
            None,
            None,
            "static needs an all-to-all",
        ),
        (
            "python -m sglang.launch_server --tp 8 --ep 8 --ep-num-redundant-experts 32",
            V3,
            None,
            "risk --ep-num-redundant-experts",
        ),
        (
            "python -m sglang.launch_server --tp 8 --ep-num-redundant-experts 32",
            V3,
            None,
            "ignored --ep-num-redundant-experts",
        ),
        (
            "python -m sglang.launch_server --tp 6 --ep 6 --moe-a2a-backend deepep --enable-eplb",
            V3,
            None,
            "mod EP size 6 = 4",
        ),
        (
            "python -m sglang.launch_server --tp 4 --ep 8",
            None,
            None,
            "fatal --ep-size: ep 8 x moe_dp 1 must be at most 4",
        ),
        ("python -m sglang.launch_server --tp 8 --ep 2 --moe-dp-size 2", None, None, "must be all 8"),
        ("python -m sglang.launch_server --tp 8 --ep 3", None, None, "tp 8 mod ep 3"),
        (
            "python -m sglang.launch_server --tp 8 --dp 2",
            None,
            None,
            "coerced --dp-size: without --enable-dp-attention",
        ),
        ("python -m sglang.launch_server --tp 8 --dp 3 --enable-dp-attention", None, None, "tp 8 mod dp 3"),
        ("python -m sglang.launch_server --tp 8 --enable-dp-attention", None, None, "ignored --enable-dp-attention"),
        (
            "python -m sglang.launch_server --tp 8 --ep 8 --enable-eplb --nnodes 3",
            None,
            None,
            "EP size 8 mod 3 nodes: a bare assert",
        ),
        ("python -m sglang.launch_server --tp 16 --ep 16 --enable-eplb --nnodes 3", V3, None, "a bare assert"),
        (
            "python -m sglang.launch_server --tp 8 --ep 8 --expert-distribution-recorder-mode per_token",
            "qwen3-next-80b-a3b",
            None,
            "records 8",
        ),
        (
            "python -m sglang.launch_server --tp 8 --init-expert-location nowhere.json",
            None,
            None,
            "note --init-expert-location",
        ),
        # TensorRT-LLM
        ("trtllm-serve m --tp_size 8 --ep_size 3", None, None, "moe_tp 2 x moe_ep 3 = 6, but tp is 8"),
        ("trtllm-serve m --tp_size 6 --ep_size 6", QWEN, None, "mod EP size 6 = 2"),
        ("trtllm-serve m --config nowhere.yaml", None, None, "note --config"),
    ],
)
def test_what_users_met(command: str, model: str | None, topology: str | None, expected: str) -> None:
    found = told(command, model, topology)
    assert any(expected in one for one in found), found


@pytest.mark.parametrize(
    ("command", "model", "topology"),
    [
        ("vllm serve m -tp 1 -dp 16 --enable-expert-parallel --all2all-backend deepep_low_latency", V3, "2 x hgx-h100"),
        ("VLLM_X=1 /usr/bin/vllm serve m --tensor-parallel-size=8", QWEN, "1 x hgx-h100"),
        (
            "sglang serve --model-path m --tp 16 --dp 16 --enable-dp-attention --ep 16 --moe-a2a-backend deepep",
            V3,
            "2 x hgx-h100",
        ),
        ("mpirun -np 8 trtllm-llmapi-launch trtllm-serve m --tp_size 8 --ep_size 8", V3, "1 x hgx-h100"),
    ],
)
def test_commands_in_order(command: str, model: str, topology: str) -> None:
    assert linted(command, model, topology).is_good


def test_a_map_is_read_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"physical_to_logical_map": [[0, 1], [1, 0]], "note": 1}')
    base = f"python -m sglang.launch_server --tp 8 --ep 8 --init-expert-location {path}"
    assert any("'note' is not allowed" in one for one in told(base, V3))
    path.write_text('{"physical_to_logical_map": [[0, 1], [1, 0]]}')
    found = told(base, V3)
    assert any("rows of [2] slots, but experts and redundant experts are 256" in one for one in found)
    assert any("2 rows, but the model has 61 layers" in one for one in found)


def test_a_build_with_a_pull_request_knows_its_keys() -> None:
    command = "vllm serve m -dp 8 -ep --enable-eplb --eplb-config.initial_mapping_path map.jsonl"
    assert any("no release" in one for one in told(command))
    assert told(command, version="pr-41141") == []
    with pytest.raises(UsageError, match="known for other versions"):
        linted(command, version="0.9")


def test_what_is_not_examined_is_said() -> None:
    found = linted("vllm serve m --max-model-len 4096 --port 80")
    assert found.not_examined[:2] == ("--max-model-len", "--port")
    assert "heads" in " ".join(found.not_examined)


def test_no_engine_in_the_line() -> None:
    for text in ("ls -l", "", "vllm", "vllm 'serve"):
        with pytest.raises(UsageError):
            linted(text)


def test_the_last_flag_counts() -> None:
    assert linted("vllm serve m -tp 2 --tensor-parallel-size 4").grid.tp == 4


def test_words_are_taken_as_they_are() -> None:
    assert lint_launch(["vllm", "serve", "a b", "-tp", "2"], None, None, None).grid.tp == 2
