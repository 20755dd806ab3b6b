"""Unequal GPUs and links from topology file to plan, through the command line."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.building import EXAMPLES
from tests.cli.running import example, run

LINKS = """links:
  - {level: node, bandwidth: 450 GB/s, latency: 3 us}
  - {level: cluster, bandwidth: 50 GB/s, latency: 10 us}
"""
EIGHT = "gpu: h100-sxm\nnodes: 1\ngpus_per_node: 8\n"
CARDS = """gpus:
      - {name: small, memory: 12 GiB, hbm_bandwidth: 360 GB/s, compute: {bf16: 51 TFLOP/s}}
      - {name: large, memory: 16 GiB, hbm_bandwidth: 504 GB/s, compute: {bf16: 90 TFLOP/s}}"""


def solve(folder: Path, topology: str, model: str, tokens: int, *options: object) -> dict[str, Any]:
    """The plan of a deployment on this machine; `ep-plan check` agrees with it."""
    (folder / "topology.yaml").write_text(f"schema: ep-plan/topology/1\n{topology}")
    (folder / "deployment.yaml").write_text(
        f"schema: ep-plan/deployment/1\nmodel: {model}\ntopology: topology.yaml\n"
        f"workload: {{phase: decode, tokens_per_gpu: {tokens}, context_length: 4096}}\n"
    )
    result = run("solve", "deployment.yaml", "--json", *options, cwd=folder)
    assert result.code == 0, result.err
    checked = run("check", "plan.json", cwd=folder)
    assert checked.code == 0, checked.out
    return dict(result.json())


def slots(plan: dict[str, Any]) -> list[int]:
    """Filled slots of each EP rank in the first layer."""
    row, width = plan["placement"]["physical_to_logical"][0], plan["placement"]["slots_per_rank"]
    return [sum(expert >= 0 for expert in row[at : at + width]) for at in range(0, len(row), width)]


def two_kinds(first: str, second: str) -> str:
    """Four of each on a node of their own."""
    nodes = "".join(f"  - {{gpu: {gpu}, nodes: 1, gpus_per_node: 4}}\n" for gpu in (first, second))
    return f"groups:\n{nodes}{LINKS}"


def test_faster_gpus_hold_more_experts(tmp_path: Path) -> None:
    # Decode is bound by reading weights: 4.8 against 3.35 TB/s, so about 19 and 13 of 128 experts.
    pins = ("--split", "ep=8,pp=1")
    mixed = solve(tmp_path, two_kinds("h200-sxm", "h100-sxm"), "qwen3-30b-a3b", 64, *pins)
    assert slots(mixed) == [19] * 4 + [13] * 4
    shown = run("show", "plan.json", cwd=tmp_path).out
    assert "on 4 x h200-sxm + 4 x h100-sxm on 2 nodes" in shown
    assert "19 x4, 13 x4 slots on 8 EP ranks" in shown
    assert "on the fullest h200-sxm GPU (0, EP rank 0)" in shown
    assert "on the fullest h100-sxm GPU (4, EP rank 4)" in shown
    turned = solve(tmp_path, two_kinds("h100-sxm", "h200-sxm"), "qwen3-30b-a3b", 64, *pins)
    assert slots(turned) == [13] * 4 + [19] * 4
    assert turned["predicted"]["step_s"] == pytest.approx(mixed["predicted"]["step_s"], rel=1e-9)
    equal = solve(tmp_path, two_kinds("h100-sxm", "h100-sxm"), "qwen3-30b-a3b", 64, *pins)
    assert slots(equal) == [16] * 8


def test_faster_stages_run_more_layers(tmp_path: Path) -> None:
    plan = solve(tmp_path, two_kinds("h200-sxm", "h100-sxm"), "qwen3-30b-a3b", 64, "--split", "pp=2,tp=1,ep=4")
    layers = {len(range(*stage["layers"])): stage["gpus"] for stage in plan["stages"]}
    assert sum(layers) == 48
    assert layers[max(layers)] == [0, 1, 2, 3]  # the H200
    assert max(layers) >= 26


def test_a_stage_of_one_layer(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny-moe" / "config.json", tmp_path)
    solve(tmp_path, two_kinds("h200-sxm", "h100-sxm"), "config.json", 64, "--split", "pp=8,ep=1")
    assert "stage 0: 1 layer on 1 x h" in run("show", "plan.json", cwd=tmp_path).words


def test_a_model_that_fits_only_with_unequal_shares(tmp_path: Path) -> None:
    # Half of its weights, 219 GiB, is more than 4 H100 have.
    plan = solve(tmp_path, two_kinds("h200-sxm", "h100-sxm"), "qwen3-235b-a22b", 64, "--split", "ep=8,pp=1")
    assert slots(plan)[0] > 16 > slots(plan)[-1]
    memory = plan["predicted"]["memory_bytes"]
    assert max(memory[4:]) <= 79.65 * 2**30 < max(memory[:4])


def test_two_cards_of_12_and_16_gigabytes(tmp_path: Path) -> None:
    machine = f"groups:\n  - {CARDS}\nlinks: [{{level: node, fabric: pcie-4-x16}}]\n"
    plan = solve(tmp_path, machine, "gpt-oss-20b", 8)
    assert slots(plan)[0] < 16 < slots(plan)[1]
    assert plan["predicted"]["memory_bytes"][0] <= 12 * 2**30 < plan["predicted"]["memory_bytes"][1] <= 16 * 2**30
    piped = solve(tmp_path, machine, "gpt-oss-20b", 8, "--split", "pp=2")
    by_card = {stage["gpus"][0]: len(range(*stage["layers"])) for stage in piped["stages"]}
    assert by_card[0] < by_card[1]


def test_an_engine_that_spreads_experts_evenly_gets_even_slots(tmp_path: Path) -> None:
    (tmp_path / "topology.yaml").write_text(f"schema: ep-plan/topology/1\n{two_kinds('h200-sxm', 'h100-sxm')}")
    (tmp_path / "deployment.yaml").write_text(
        "schema: ep-plan/deployment/1\nmodel: gpt-oss-120b\ntopology: topology.yaml\nengine: vllm\n"
        "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
    )
    plan = run("solve", "deployment.yaml", "--split", "ep=8,pp=1", "--json", cwd=tmp_path).json()
    assert slots(plan) == [16] * 8


@pytest.mark.parametrize("name", ["mixtral-4gpu", "tiny-moe"])
def test_equal_groups_give_the_bytes_of_one(name: str, tmp_path: Path) -> None:
    plans = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        deployment = example(name, tmp_path / folder)
        topology = deployment.parent / "topology.yaml"
        text = topology.read_text()
        if folder == "two":
            values = dict(line.split("#")[0].split(":", 1) for line in text.splitlines() if line[:3] in ("gpu", "nod"))
            gpu, per_node, nodes = (values[key].strip() for key in ("gpu", "gpus_per_node", "nodes"))
            one = f"  - {{gpus: [{', '.join([gpu] * int(per_node))}]}}\n"
            rest = f"  - {{gpu: {gpu}, nodes: {int(nodes) - 1}, gpus_per_node: {per_node}}}\n" if nodes != "1" else ""
            kept = "".join(f"{line}\n" for line in text.splitlines() if line[:3] not in ("gpu", "nod"))
            topology.write_text(kept.replace("links:", f"groups:\n{one}{rest}links:", 1))
        assert run("solve", deployment, "-o", deployment.parent / "plan.json", cwd=tmp_path).code == 0
        plans.append((deployment.parent / "plan.json").read_bytes())
    assert plans[0] == plans[1]


def test_gpus_out_of_service_are_not_numbered(tmp_path: Path) -> None:
    machine = f"gpu: h100-sxm\nnodes: 2\ngpus_per_node: 2\n{LINKS}out_of_service: [{{node: 0, gpus: [0]}}]\n"
    plan = solve(tmp_path, machine, "mixtral-8x7b", 64, "--split", "ep=3")
    assert plan["stages"][0]["gpus"] == [0, 1, 2]
    assert Counter(slots(plan)) == {3: 2, 2: 1}
    assert len(plan["predicted"]["memory_bytes"]) == 3
    assert any("out of service: node 0 GPU 0" in note for note in plan["notes"])
    result = run("solve", "deployment.yaml", "--gpus", "4", cwd=tmp_path)
    assert (result.code, "4 GPUs asked for, 3 are there" in result.err) == (3, True)


def test_a_slow_link_changes_the_split(tmp_path: Path) -> None:
    machine = "gpu: h100-sxm\nnodes: 1\ngpus_per_node: 4\nlinks: [{level: node, bandwidth: 450 GB/s, latency: 3 us}]\n"
    assert solve(tmp_path, machine, "mixtral-8x7b", 64)["split"]["pp"] == 1
    slow = "overrides: [{between: [{node: 0, gpu: 0}, {node: 0, gpu: 1}], bandwidth: 500 MB/s}]\n"
    plan = solve(tmp_path, machine + slow, "mixtral-8x7b", 64)
    assert plan["split"]["pp"] > 1  # stages send little; collectives and exchanges would pass the slow pair
    forced = solve(tmp_path, machine + slow, "mixtral-8x7b", 64, "--split", "ep=4,pp=1,tp=1")
    assert forced["predicted"]["step_s"] > plan["predicted"]["step_s"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups: [{gpu: h100-sxm, nodes: 1000000000, gpus_per_node: 8}]", "less than or equal to 65536"),
        ("groups: [{gpu: h100-sxm, gpus_per_node: 0}]", "greater than or equal to 1"),
        ("groups: [{gpu: h100-sxm}]", "a group has gpu and gpus_per_node, or gpus"),
        ("gpu: h100-sxm\ngroups: [{gpu: h100-sxm, gpus_per_node: 8}]", "groups stand beside gpu"),
        ("nodes: 2", "gpu, gpus_per_node are missing"),
        ("groups: [{gpu: h100-sxx, gpus_per_node: 8}]", "t.yaml:2:16: groups[0].gpu: unknown GPU 'h100-sxx'"),
        ("gpu: h100-sxm\nnodes: 1\ngpus_per_node: 8\nout_of_service: [{node: 1}]", "no node 1"),
        ("gpu: h100-sxm\nnodes: 1\ngpus_per_node: 8\nout_of_service: [{node: 0}]", "no GPU is left"),
        (
            f"{EIGHT}overrides: [{{between: [{{node: 0}}, {{node: 0}}], bandwidth: 1 TB/s}}]",
            "1.00 TB/s is more than the 450 GB/s that the level node gives",
        ),
        (
            "groups: [{gpu: h100-sxm, gpus_per_node: 8, links: [{level: nod, bandwidth: 1 GB/s}]}]",
            "no level 'nod'",
        ),
    ],
)
def test_impossible_machines_are_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        f"schema: ep-plan/topology/1\n{text}\nlinks: [{{level: node, bandwidth: 450 GB/s, latency: 3 us}}]\n"
    )
    (tmp_path / "deployment.yaml").write_text(
        "schema: ep-plan/deployment/1\nmodel: mixtral-8x7b\ntopology: t.yaml\n"
        "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
    )
    result = run("solve", "deployment.yaml", "--json", cwd=tmp_path)
    assert result.code == 3
    (problem,) = result.problems()
    where = f"{problem['file']}:{problem['line']}:{problem['column']}: {problem['key']}"
    assert said in f"{where}: {problem['message']}\n{problem['hint']}"
