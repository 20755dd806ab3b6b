"""`export`, `check --format`, `compare --map`, `lint-launch` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.export.table import FORMATS
from tests.cli.running import files_in, plan_of, run
from tests.unit.export import weights


@pytest.fixture
def folder(tiny_plan: Path, tmp_path: Path) -> Path:
    """A folder with the plan of the tiny example and its trace."""
    for name in ("plan.json", "trace.npz"):
        (tmp_path / name).write_bytes((tiny_plan.parent / name).read_bytes())
    return tmp_path


def test_a_map_comes_back_through_compare_and_check(folder: Path) -> None:
    written = run("export", "plan.json", "--to", "sglang", "-o", "map.json", cwd=folder)
    assert written.code == 0, written.err
    assert written.out.startswith("load: --ep-size 8 --init-expert-location map.json --ep-num-redundant-experts 8")
    assert "wrote map.json" in written.err
    compared = run("compare", "plan.json", "--map", "sglang", "map.json", "--trace", "trace.npz", "--json", cwd=folder)
    scores = {score["name"]: score for score in compared.json()["plans"][0]["scores"]}
    assert {**scores["map.json"], "name": ""} == {**scores["plan"], "name": ""}
    checked = run(
        "check", "map.json", "--format", "sglang", "--plan", "plan.json", "--trace", "trace.npz", "--json", cwd=folder
    )
    assert checked.code == 0, checked.err
    (file,) = checked.json()["files"]
    assert file["good"]
    assert file["balance"]["max_mean"] < file["balance"]["linear_max_mean"]


def test_a_map_that_differs_from_the_plan_is_found(folder: Path) -> None:
    run("export", "plan.json", "--to", "vllm-pr49572", "-o", "map.json", cwd=folder)
    rows = json.loads((folder / "map.json").read_text())
    slots = plan_of(folder / "plan.json").placement.slots_per_rank
    rows[0] = rows[0][slots:] + rows[0][:slots]  # every rank holds what its neighbour should
    (folder / "map.json").write_text(json.dumps(rows))
    checked = run("check", "map.json", "--format", "vllm-pr49572", "--plan", "plan.json", cwd=folder)
    assert checked.code == 6
    assert "hold other experts than the plan says" in checked.words


def test_a_map_without_an_expert_is_not_scored(folder: Path) -> None:
    plan = plan_of(folder / "plan.json")
    rows = [[0] * len(row) for row in plan.placement.physical_to_logical]
    (folder / "map.json").write_text(json.dumps(rows))
    done = run("compare", "plan.json", "--map", "vllm-pr49572", "map.json", "--trace", "trace.npz", cwd=folder)
    assert done.code == 6
    assert "placed nowhere" in done.err
    assert "ep-plan check map.json --format vllm-pr49572" in done.err


def test_refusals_name_everything_and_write_nothing(folder: Path) -> None:
    done = run("export", "plan.json", "--to", "megatron", "-o", "groups.json", "--json", cwd=folder)
    assert done.code == 3
    told = [problem["message"] for problem in done.problems()]
    assert any("8 redundant experts per layer, which megatron cannot say" in one for one in told)
    assert any("not laid out in order" in one for one in told)
    assert files_in(folder) == {"plan.json", "trace.npz"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "slang", "-o", "x"], "unknown format"),
        (["--to", "sglang", "-o", "x", "--engine-version", "0.1"], "nobody has compared"),
        (["--to", "sglang"], "-o PATH is needed"),
        (["--to", "sglang", "-o", "x", "--weights", "."], "--weights: without meaning"),
        (["--to", "sglang", "-o", "x", "--model", "m"], "without meaning for --to sglang"),
        (["--to", "slurm", "-o", "x", "--model", "m", "--host", "a"], "--model: without meaning for --to slurm"),
        (["--to", "slurm", "-o", "x", "--model", "m", "--host", "a"], "--host: without meaning for --to slurm"),
        (["--to", "torchrun", "-o", "x", "--map", "m"], "--map: without meaning"),
        (["--to", "launch-vllm", "-o", "x", "--image", "i"], "--image: without meaning"),
        (["--to", "launch-vllm", "-o", "x", "--program", "p"], "--program: without meaning"),
        (["--to", "kubernetes", "-o", "x", "--host", "a"], "--host: without meaning"),
        (["--to", "launch-tensorrt-llm", "-o", "x", "--port", "1"], "--port: without meaning"),
        (["--list"], "PLAN: --list names the formats"),
        (["--to", "checkpoint", "-o", "x"], "--weights DIR is needed"),
        (["--to", "launch-sglang", "-o", "x", "--model", "m", "--map", "m.json"], "--host: 0 hosts given"),
        (["--to", "launch-sglang", "-o", "x"], "--model is needed"),
        (["--to", "launch-sglang", "-o", "x"], "--map is needed"),
        (["--to", "kubernetes", "-o", "x", "--program", "'"], "--program"),
        (["--to", "sglang", "-o", "plan.json"], "would be overwritten"),
        (["--to", "sglang", "-o", "."], "is a directory"),
        ([], "give PLAN and --to FORMAT"),
    ],
)
def test_wrong_usage(folder: Path, options: list[str], message: str) -> None:
    before = (folder / "plan.json").read_bytes()
    done = run("export", "plan.json", *options, cwd=folder)
    assert done.code == 2
    assert message in done.err
    assert (folder / "plan.json").read_bytes() == before
    assert files_in(folder) == {"plan.json", "trace.npz"}


def test_options_that_one_node_or_a_linear_layout_has_no_use_for_are_told(mixtral_plan: Path, tmp_path: Path) -> None:
    names = ("--model", "m", "--host", "a", "--map", "m.json")
    done = run("export", mixtral_plan, "--to", "launch-sglang", "-o", "x.sh", *names, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "--map is not used: the placement is linear" in done.err
    assert "--host and --port are not used: the plan runs on one node" in done.err


def test_a_plan_whose_slots_are_wrong_is_not_exported(folder: Path) -> None:
    data = json.loads((folder / "plan.json").read_text())
    data["placement"]["physical_to_logical"][0][0] = data["placement"]["physical_to_logical"][0][1]
    (folder / "plan.json").write_text(json.dumps(data))
    done = run("export", "plan.json", "--to", "sglang", "-o", "map.json", cwd=folder)
    assert done.code == 6
    assert "ep-plan check plan.json" in done.err


def test_the_list_names_every_format(tmp_path: Path) -> None:
    listed = run("export", "--list", cwd=tmp_path)
    assert listed.code == 0
    assert all(name in listed.out for name in FORMATS)
    data = run("export", "--list", "--json", cwd=tmp_path).json()
    assert [one["name"] for one in data["formats"]] == list(FORMATS)
    assert "0.5.23" in data["formats"][0]["versions"]


def test_launches_go_to_stdout_too(folder: Path) -> None:
    options = ["--model", "m", "--map", "map.json", "--host", "a", "--host", "b"]
    done = run("export", "plan.json", "--to", "launch-sglang", "-o", "/dev/stdout", "-q", *options, cwd=folder)
    assert done.code == 0, done.err
    assert done.out.startswith("#!/usr/bin/env bash\n")
    assert "--ep-num-redundant-experts 8" in done.out


CHECKPOINT = """\
schema: ep-plan/deployment/1
model: weights/config.json
topology: topology.yaml
traces: [trace.npz]
workload: {phase: prefill, tokens_per_gpu: 64, context_length: 64}
solve: {target: checkpoint, split: {tp: 1, pp: 1, ep: 2}, gap: 0%}
"""
TOPOLOGY = """\
schema: ep-plan/topology/1
gpu: {memory: 8 GiB, hbm_bandwidth: 100 GB/s, compute: {fp8: 0.001 TFLOP/s, bf16: 0.001 TFLOP/s}}
nodes: 1
gpus_per_node: 2
links: [{level: node, bandwidth: 1 GB/s, latency: 3 us}]
"""


@pytest.fixture
def permutable(tmp_path: Path) -> Path:
    """A plan for a checkpoint, made from its config.json and a trace with skew."""
    config = {**weights.DEEPSEEK, "n_group": 1, "topk_group": 1}  # ranks can be balanced
    weights.write_checkpoint(tmp_path / "weights", config, weights.deepseek())
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    (tmp_path / "deployment.yaml").write_text(CHECKPOINT)
    counts = np.array([[[9, 1, 5, 1], [2, 6, 1, 7]], [[8, 2, 5, 1], [2, 6, 2, 6]]]) * 50
    np.savez(tmp_path / "trace.npz", counts=counts, num_experts=4, topk=2, layer_ids=np.array([1, 2]))
    solved = run("solve", "deployment.yaml", cwd=tmp_path)
    assert solved.code == 0, solved.err
    return tmp_path


def test_a_checkpoint_is_permuted(permutable: Path) -> None:
    plan, before = plan_of(permutable / "plan.json"), files_of(permutable / "weights")
    assert plan.inputs.target == "checkpoint"
    assert plan.placement.physical_to_logical[0] != (0, 1, 2, 3)
    assert run("check", "plan.json", cwd=permutable).code == 0
    command = ["export", "plan.json", "--to", "checkpoint", "--weights", "weights"]
    dry = run(*command, "--dry-run", cwd=permutable)
    assert dry.code == 0, dry.err
    assert "original expert at each position" in dry.out
    assert "left out: original/" in dry.err
    assert not (permutable / "out").exists()
    done = run(*command, "-o", "out", "--json", cwd=permutable)
    assert done.code == 0, done.err
    experts = {int(layer): row for layer, row in done.json()["experts"].items()}
    planned = zip(plan.placement.layer_ids, plan.placement.physical_to_logical, strict=True)
    assert experts == {layer: list(row) for layer, row in planned}
    assert run(*command, "-o", "out", cwd=permutable).code == 0  # finished: verified again, nothing to do
    assert run(*command, "-o", "weights", cwd=permutable).code == 2
    assert files_of(permutable / "weights") == before
    assert run("export", "plan.json", "--to", "megatron", "-o", "groups.json", cwd=permutable).code == 0


def files_of(path: Path) -> dict[str, Any]:
    return weights.files_of(path)


def test_other_plans_are_not_permuted(folder: Path, tmp_path: Path) -> None:
    weights.write_checkpoint(tmp_path / "weights", weights.DEEPSEEK, weights.deepseek())
    done = run("export", "plan.json", "--to", "checkpoint", "--weights", "weights", "-o", "out", cwd=folder)
    assert done.code == 3
    assert "target: checkpoint" in done.err
    assert not (folder / "out").exists()


def test_check_of_maps_has_its_own_options(folder: Path) -> None:
    assert run("check", "plan.json", "--ep", "8", cwd=folder).code == 2
    assert run("check", "plan.json", "--model", "gpt-oss-20b", cwd=folder).code == 2
    both = run("check", "plan.json", "--format", "sglang", "--plan", "plan.json", "--ep", "8", cwd=folder)
    assert both.code == 2
    assert "leave out --model and --ep" in both.err
    not_a_map = run("check", "plan.json", "--format", "sglang", cwd=folder)
    assert not_a_map.code == 3
    assert run("check", "nowhere.json", "--format", "sglang", cwd=folder).code == 2
    assert run("check", "plan.json", "--format", "slang", cwd=folder).code == 2


def test_lint_launch(tmp_path: Path) -> None:
    bad = run("lint-launch", "vllm serve m -tp 3 --enable-eplb", "--model", "deepseek-v3", cwd=tmp_path)
    assert bad.code == 6
    assert "needs --enable-expert-parallel" in bad.words
    assert "128 attention heads mod tp 3 = 2" in bad.words
    good = run(
        "lint-launch",
        "vllm serve m -tp 8",
        "--model",
        "deepseek-v3",
        "--topology",
        "1 x hgx-h200",
        "--json",
        cwd=tmp_path,
    )
    assert good.code == 0
    assert good.json()["grid"]["gpus"] == 8
    assert run("lint-launch", "ls", cwd=tmp_path).code == 2
    assert run("lint-launch", "vllm serve m", "--topology", "1 x nothing", cwd=tmp_path).code == 2
    assert run("lint-launch", "vllm serve m", "--model", "nothing", cwd=tmp_path).code == 2
    words = run("lint-launch", "--json", "--", "vllm", "serve", "m", "-tp", "2", cwd=tmp_path)
    assert words.json()["grid"]["tp"] == 2
