"""What cannot run is refused with its arithmetic and with a repair that holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.running import Result, deployment_file, files_in, run

DEEPSEEK = (
    "model: deepseek-v3\n"
    "topology: 1 x hgx-h100\n"
    "precision: {weights: fp8}\n"
    "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
)
SIZES = {"GiB": 1.0, "MiB": 1 / 1024, "KiB": 1 / 1024**2, "B": 1 / 1024**3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the deployment and an older plan."""
    made = tmp_path_factory.mktemp("infeasible")
    deployment_file(made, DEEPSEEK)
    (made / "plan.json").write_text("older")
    return made


@pytest.fixture(scope="module")
def refused(folder: Path) -> Result:
    """DeepSeek-V3 in fp8 on 8 GPUs of 80 GB."""
    return run("solve", "deployment.yaml", "--json", cwd=folder)


def gib(text: str) -> float:
    """A size as it is printed."""
    number, unit = text.split()
    return float(number) * SIZES[unit]


def test_exits_with_4_and_writes_nothing(refused: Result, folder: Path) -> None:
    assert refused.code == 4
    assert files_in(folder) == {"deployment.yaml", "plan.json"}
    assert (folder / "plan.json").read_text() == "older"
    (problem,) = refused.problems()
    assert "no split of 8 GPUs fits" in problem["message"]
    assert problem["message"] in refused.err


def test_shows_memory_that_adds_up(refused: Result) -> None:
    hint = refused.problems()[0]["hint"]
    _, _, arithmetic = hint.partition(", the fullest, with")
    lines = re.findall(r"^ +(\S.*?) +([\d.]+ [KMG]?i?B)(?:, has ([\d.]+ GiB)|  \w+)?$", arithmetic, re.MULTILINE)
    parts = {name: gib(size) for name, size, _ in lines}
    (capacity,) = [gib(has) for _, _, has in lines if has]
    needs = parts.pop("needs")
    assert {"expert slots", "KV cache, latent attention"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(needs, rel=0.01)
    assert needs > capacity
    assert 74 < capacity < 80


def test_names_the_rule_for_every_split_shown(refused: Result) -> None:
    table = refused.problems()[0]["hint"].partition(", the fullest, with")[0].splitlines()
    rows = [line for line in table if line.startswith("tp=")]
    assert len(rows) >= 2
    for row in rows:
        assert re.search(r"memory .*needs [\d.]+ GiB, has [\d.]+ GiB", row)


def test_the_repair_holds(refused: Result, folder: Path, tmp_path: Path) -> None:
    found = re.search(r"try: (\d+) nodes", refused.problems()[0]["hint"])
    assert found, refused.err
    nodes = int(found[1])
    pins = ["--split", "tp=1,pp=1", "-o", tmp_path / "plan.json"]
    repaired = run("solve", "deployment.yaml", "--topology", f"{nodes} x hgx-h100", "-q", *pins, cwd=folder)
    assert repaired.code == 0, repaired.err


NODE = (
    "schema: ep-plan/topology/1\ngpu: {{memory: {} GiB, hbm_bandwidth: 3.35 TB/s, compute: {{bf16: 989 TFLOP/s}}}}\n"
    "nodes: 1\ngpus_per_node: 8\nlinks: [{{level: node, bandwidth: 450 GB/s, latency: 3 us}}]\n"
)


def test_larger_gpus_are_a_repair_where_no_link_to_a_second_node_is_known(tmp_path: Path) -> None:
    deployment_file(tmp_path, DEEPSEEK.replace("1 x hgx-h100", "node.yaml"))
    (tmp_path / "node.yaml").write_text(NODE.format(80))
    refused = run("solve", "deployment.yaml", cwd=tmp_path)
    assert refused.code == 4
    found = re.search(r"try: GPUs of (\d+) GiB", refused.err)
    assert found, refused.err
    assert "nodes" not in refused.err
    for gib, code in ((int(found[1]), 0), (int(found[1]) - 1, 4)):
        (tmp_path / "node.yaml").write_text(NODE.format(gib))
        assert run("solve", "deployment.yaml", "--split", "pp=4", "-q", cwd=tmp_path).code == code


def test_as_many_rows_as_are_said_to_be_tried(tmp_path: Path) -> None:
    deployment_file(tmp_path, DEEPSEEK)
    (problem,) = run("solve", "deployment.yaml", "--json", cwd=tmp_path).problems()
    tried = re.search(r"\((\d+) tried\)", problem["message"])
    more = re.search(r"^and (\d+) more", problem["hint"], re.MULTILINE)
    assert tried
    assert more
    rows = [line for line in problem["hint"].splitlines() if line.startswith("tp=")]
    assert int(tried[1]) == len(rows) + int(more[1])


def test_pins_that_no_split_has_come_with_those_that_some_have(tmp_path: Path) -> None:
    """Of 8 GPUs in one stage: ep=3 divides nothing, 1, 2, 4 and 8 do."""
    deployment_file(tmp_path, DEEPSEEK)
    result = run("solve", "deployment.yaml", "--split", "pp=1,ep=3", cwd=tmp_path)
    assert result.code == 4
    assert "try: instead of ep=3, one of 1, 2, 4, 8" in result.err
    assert "instead of pp=1" not in result.err


def test_too_many_copies_name_the_slots(tmp_path: Path) -> None:
    deployment_file(tmp_path, DEEPSEEK.replace("deepseek-v3", "mixtral-8x7b"))
    options = ["--split", "ep=8", "--redundant-experts", "100", "--json"]
    result = run("solve", "deployment.yaml", *options, cwd=tmp_path)
    assert result.code == 4
    hint = result.problems()[0]["hint"]
    assert "slots" in hint
    assert "try: no redundant experts" in hint


def test_the_share_of_memory_to_type_is_told(tmp_path: Path) -> None:
    """SemiAnalysisAI/InferenceX#2128: the share was below the weights; a later build prints the least that holds."""
    text = (
        "model: mixtral-8x7b\ntopology: 1 x hgx-h100\nengine: vllm\nmemory_share: {}%\n"
        "workload: {{phase: decode, tokens_per_gpu: 4, context_length: 1024}}\n"
    )
    options = ["--split", "tp=1,ep=8,pp=1", "--json", "-q"]
    deployment_file(tmp_path, text.format(10))
    refused = run("solve", "deployment.yaml", *options, cwd=tmp_path)
    assert refused.code == 4
    assert re.search(r"needs [\d.]+ GiB, has 7.96 GiB, 10 % of all", refused.problems()[0]["hint"])
    found = re.search(r"try: memory_share: (\d+)%", refused.problems()[0]["hint"])
    assert found, refused.err
    for share, code in ((int(found[1]), 0), (int(found[1]) - 1, 4)):
        deployment_file(tmp_path, text.format(share))
        assert run("solve", "deployment.yaml", *options, cwd=tmp_path).code == code


def test_another_library_is_offered_where_only_the_kernel_refuses(tmp_path: Path) -> None:
    """deepseek-ai/DeepEP#50: nodes of 4 GPUs."""
    (tmp_path / "topology.yaml").write_text(
        "schema: ep-plan/topology/1\ngpu: h100-sxm\nnodes: 2\ngpus_per_node: 4\nlinks:\n"
        "  - {level: node, bandwidth: 450 GB/s, latency: 3 us}\n"
        "  - {level: cluster, bandwidth: 50 GB/s, latency: 10 us}\n"
    )
    text = (
        "model: mixtral-8x7b\ntopology: topology.yaml\nengine: vllm\n"
        "workload: {phase: prefill, tokens_per_gpu: 1024, context_length: 1024}\n"
    )
    deployment_file(tmp_path, text)
    options = ["--split", "tp=1,ep=8,pp=1", "--json", "-q"]
    refused = run("solve", "deployment.yaml", *options, cwd=tmp_path)
    assert refused.code == 4
    hint = refused.problems()[0]["hint"]
    assert "deepep-normal nodes" in hint
    assert "try: communication: {kernel: all-to-all}" in hint
    deployment_file(tmp_path, text + "communication: {kernel: all-to-all}\n")
    assert run("solve", "deployment.yaml", *options, cwd=tmp_path).code == 0
