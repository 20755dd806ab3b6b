"""Verdicts that are known beforehand, as a user meets them: tables, plans and `--json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import deployment_file, run

DEEPSEEK = """\
model: deepseek-v3
topology: 2 x hgx-h100
precision: {weights: fp8}
workload: {phase: decode, tokens_per_gpu: 16, context_length: 4096}
solve: {split: {tp: 1, pp: 1, etp: 1}}
"""
QWEN = """\
model: qwen3-235b-a22b
topology: 1 x hgx-h200
precision: {weights: fp8_block}
workload: {phase: decode, tokens_per_gpu: 8, context_length: 4096}
"""


def of(candidates: list[dict[str, Any]], **degrees: int) -> dict[str, Any]:
    """The one candidate with these degrees."""
    (found,) = (c for c in candidates if all(c["split"][name] == value for name, value in degrees.items()))
    return found


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek-V3 in fp8 on 2 x 8 GPUs of 80 GB, solved."""
    folder = tmp_path_factory.mktemp("known")
    deployment_file(folder, DEEPSEEK)
    result = run("solve", "deployment.yaml", cwd=folder)
    assert result.code == 0, result.err
    (folder / "report.txt").write_text(result.out, encoding="utf-8")
    return folder


def test_deepseek_v3_needs_sixteen_ranks(planned: Path) -> None:
    """76.1 GiB of routed weights per rank at EP 8 leave nothing of 79.6 GiB; 38.1 at EP 16 do."""
    candidates = json.loads((planned / "plan.json").read_text())["candidates"]
    eight = of(candidates, tp=1, dp=16, ep=8, edp=2, pp=1)
    assert eight["outcome"] == "rejected"
    (rule,) = eight["rules"]
    assert (rule["rule"], rule["holds"]) == ("memory of GPU 0", False)
    assert re.fullmatch(r"needs [\d.]+ GiB, has 79.6 GiB", rule["detail"])
    sixteen = of(candidates, tp=1, dp=16, ep=16, pp=1)
    assert sixteen["outcome"] == "chosen"
    assert all(rule["holds"] for rule in sixteen["rules"])
    assert sixteen["spare_kv_tokens"] == sixteen["free_bytes"] // 70_272


def test_report_names_the_room_and_the_fullest_gpu(planned: Path) -> None:
    chosen = of(json.loads((planned / "plan.json").read_text())["candidates"], ep=16)
    report = " ".join((planned / "report.txt").read_text(encoding="utf-8").split())
    assert f"room for {chosen['spare_kv_tokens']:,} more KV tokens per data-parallel rank" in report
    assert f"at most {chosen['most_sequences']:,} sequences of 4,096 tokens" in report
    assert f"or 256 of {chosen['longest_context']:,}" in report
    assert "on the fullest GPU (0, EP rank 0)" in report
    verbose = run("show", "plan.json", "-v", cwd=planned).out
    for row in (r"experts +256 +mod ep 16 +✓ 256 mod ep 16 = 0", r"memory of GPU 0 .*✗ needs"):
        assert re.search(row, verbose), verbose
    assert "memory of the fullest GPU (0, EP rank 0)" in verbose


@pytest.mark.parametrize(
    ("figure", "workload"),
    [
        ("most_sequences", "workload: {{phase: decode, tokens_per_gpu: {}, context_length: 4096}}"),
        ("longest_context", "workload: {{phase: decode, tokens_per_gpu: 16, context_length: {}}}"),
    ],
)
def test_the_limits_are_exact(planned: Path, tmp_path: Path, figure: str, workload: str) -> None:
    """At the limit a plan is found; with one sequence per GPU, or one token of context, more: proved infeasible."""
    chosen = of(json.loads((planned / "plan.json").read_text())["candidates"], ep=16)
    limit = chosen[figure] // (16 if figure == "most_sequences" else 1)
    for value, code in ((limit, 0), (limit + 1, 4)):
        text = re.sub(r"workload: .*", workload.format(value), DEEPSEEK)
        deployment_file(tmp_path, text)
        result = run("solve", "deployment.yaml", "--split", "ep=16", "-q", cwd=tmp_path)
        assert result.code == code, (value, result.err)


def test_qwen3_235b_cannot_be_cut_in_eight(tmp_path: Path) -> None:
    """vllm-project/vllm#17569: 1536/8 = 192, and blocks have 128."""
    deployment_file(tmp_path, QWEN)
    result = run("solve", "deployment.yaml", "--split", "tp=8,ep=1,etp=8", "--json", cwd=tmp_path)
    assert result.code == 4
    assert "1536/8 = 192 mod 128" in result.err
    (candidate,) = json.loads(result.out)["candidates"]
    (rule,) = candidate["rules"]
    assert rule == {
        "rule": "expert width",
        "value": "1536/8 = 192",
        "limit": "mod 128",
        "holds": False,
        "detail": "1536/8 = 192 mod 128 = 64 (quantisation block)",
        "source": "vllm-project/vllm#17569, #25292",
    }


def test_three_gpus_break_rules_in_one_message(tmp_path: Path) -> None:
    """vllm-project/vllm#52435: 64 heads and 128 experts on 3 GPUs, both told."""
    deployment_file(tmp_path, "engine: sglang\n" + QWEN)
    result = run("solve", "deployment.yaml", "--gpus", "3", "--split", "tp=3,ep=3", cwd=tmp_path)
    assert result.code == 4
    table = result.err.partition("verdict")[2]
    assert re.search(r"attention heads +64 +mod tp 3 +✗ 64 mod tp 3 = 1", table)
    assert re.search(r"experts +128 +mod ep 3 +✗ 128 mod ep 3 = 2; 1 redundant experts would fill", table)


def test_uneven_ranks_where_the_engine_allows_them(tmp_path: Path) -> None:
    """vllm-project/vllm-ascend#16384: 128 experts on 6 ranks are 22, 22, 21, 21, 21, 21."""
    topology = tmp_path / "topology.yaml"
    topology.write_text(
        "schema: ep-plan/topology/1\ngpu: ascend-910b\nnodes: 1\ngpus_per_node: 6\n"
        "links: [{level: node, bandwidth: 196 GB/s, latency: 3 us}]\n"
    )
    text = QWEN.replace("1 x hgx-h200", "topology.yaml").replace("qwen3-235b-a22b", "qwen3-30b-a3b")
    deployment_file(tmp_path, "engine: vllm-ascend\n" + text.replace("fp8_block", "bf16"))
    result = run("solve", "deployment.yaml", "--split", "tp=2,ep=6", cwd=tmp_path)
    assert result.code == 0, result.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    for row in plan["placement"]["physical_to_logical"]:
        ranks = [row[rank * 22 : rank * 22 + 22] for rank in range(6)]
        assert [sum(slot >= 0 for slot in rank) for rank in ranks] == [22, 22, 21, 21, 21, 21]
