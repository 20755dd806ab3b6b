"""`ep-plan what-if`: a full solve of edited inputs, told as what changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.inputs.units import format_bytes
from planner.plan.plan_file import read_plan
from tests.cli.running import example, files_in, plan_of, run
from tests.golden_box import set_deployment, write_box

SETTINGS = {
    "workload.tokens_per_gpu": "16",
    "precision.kv_cache": "fp8",
    "links.node.bandwidth": "100 GB/s",
    "solve.gap": "2%",
}
SET = [word for path, value in SETTINGS.items() for word in ("--set", f"{path}={value}")]


def edited_by_hand(folder: Path) -> Path:
    """The example with the same values written into its files."""
    deployment = example("mixtral-4gpu", folder)
    text = deployment.read_text()
    assert "tokens_per_gpu: 64" in text
    text = text.replace("tokens_per_gpu: 64", "tokens_per_gpu: 16").replace(
        "split: {ep: 4}", "split: {ep: 4}\n  gap: 2%"
    )
    deployment.write_text(text + "precision: {kv_cache: fp8}\n")
    topology = deployment.with_name("topology.yaml")
    assert "bandwidth: 300 GB/s" in topology.read_text()
    topology.write_text(topology.read_text().replace("bandwidth: 300 GB/s", "bandwidth: 100 GB/s"))
    return deployment


@pytest.mark.parametrize("start", ["plan", "deployment"])
def test_equals_a_full_solve_of_the_edited_files(start: str, mixtral_plan: Path, tmp_path: Path) -> None:
    given = mixtral_plan if start == "plan" else mixtral_plan.with_name("deployment.yaml")
    asked = run("what-if", given, *SET, "-o", tmp_path / "asked.json", "--json", cwd=tmp_path)
    assert asked.code == 0, asked.err
    solved = run("solve", edited_by_hand(tmp_path), "-o", tmp_path / "solved.json", "-q", cwd=tmp_path)
    assert solved.code == 0, solved.err
    assert (tmp_path / "asked.json").read_bytes() == (tmp_path / "solved.json").read_bytes()

    told, before, after = asked.json(), plan_of(mixtral_plan), plan_of(tmp_path / "solved.json")
    assert told["before"]["step_s"] == before.predicted.step_s
    assert told["after"]["step_s"] == after.predicted.step_s
    changed = {change["name"]: (change["before"], change["after"]) for change in told["changes"]}
    assert changed["step_s"] == (before.predicted.step_s, after.predicted.step_s)
    assert "gpus" not in changed
    terms = sum(change["after"] - change["before"] for change in told["terms"])
    assert terms == pytest.approx(after.predicted.step_s - before.predicted.step_s)


def test_what_does_not_matter_changes_nothing(mixtral_plan: Path, tmp_path: Path) -> None:
    told = run("what-if", mixtral_plan, "--set", "workload.tokens_per_gpu=64", cwd=tmp_path)
    assert (told.code, told.err) == (0, "")
    assert "nothing changes" in told.out
    assert files_in(tmp_path) == set()


def test_all_wrong_values_are_told_at_once(mixtral_plan: Path, tmp_path: Path) -> None:
    wrong = ("--set", "solve.gap=1", "--set", "workload.tokens_per_gpu=x", "--set", "nodes=0")
    told = run("what-if", mixtral_plan, *wrong, "--json", cwd=tmp_path)
    assert told.code == 2
    assert len(told.problems()) == 3


def test_nothing_fits_any_more(mixtral_plan: Path, tmp_path: Path) -> None:
    told = run("what-if", mixtral_plan, "--set", "workload.tokens_per_gpu=4096", "-o", "new.json", cwd=tmp_path)
    assert told.code == 4
    assert "no split of 4 GPUs fits" in told.err
    assert files_in(tmp_path) == set()


def test_options_that_do_not_go_together(mixtral_plan: Path, tmp_path: Path) -> None:
    assert run("what-if", mixtral_plan, cwd=tmp_path).code == 2
    assert run("what-if", mixtral_plan, "--set", "nodes=1", "--plot", "a.svg", cwd=tmp_path).code == 2
    assert run("what-if", mixtral_plan, "--sweep", "nodes=1", "-o", "a.json", cwd=tmp_path).code == 2
    assert run("what-if", mixtral_plan, "--sweep", "nodes=1", "--plot", "a.txt", cwd=tmp_path).code == 2
    assert run("what-if", mixtral_plan, "--set", "nodes=1", "--repaired", "a.json", cwd=tmp_path).code == 2
    one_file = ("--lose", "n0", "-o", "a.json", "--repaired", "./a.json")
    assert "both name a.json" in run("what-if", mixtral_plan, *one_file, cwd=tmp_path).err
    twice = ("--set", "solve.seed=1", "--sweep", "solve.seed=2,3")
    assert "solve.seed: given more than once" in run("what-if", mixtral_plan, *twice, cwd=tmp_path).err


def test_a_sweep_is_one_solve_for_each_point(mixtral_plan: Path, tmp_path: Path) -> None:
    axes = ("--sweep", "workload.tokens_per_gpu=16,32,4096", "--sweep", "precision.kv_cache=bf16,fp8")
    told = run("what-if", mixtral_plan, *axes, "--json", cwd=tmp_path)
    assert told.code == 0, told.err
    points = told.json()["points"]
    values = [point["values"] for point in points]
    assert values == [[n, kv] for n in (16, 32, 4096) for kv in ("bf16", "fp8")]
    assert [point["figures"] is None for point in points] == [False] * 4 + [True] * 2
    assert "fits" in points[-1]["why_not"]
    alone = ("--set", "workload.tokens_per_gpu=32", "--set", "precision.kv_cache=fp8")
    single = run("what-if", mixtral_plan, *alone, "--json", cwd=tmp_path).json()
    assert points[3]["figures"] == single["after"]


def test_a_sweep_is_drawn(mixtral_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    axis = ("--sweep", "links.node.bandwidth=100 GB/s,300 GB/s")
    for name in ("a.svg", "b.svg"):
        told = run("what-if", mixtral_plan, *axis, "--plot", name, cwd=tmp_path)
        assert told.code == 0, told.err
        assert "links.node.bandwidth [GB/s]" in told.out
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan over two nodes with copies of some experts, ep pinned."""
    deployment = example("mixtral-4gpu", tmp_path_factory.mktemp("two"))
    topology = deployment.with_name("topology.yaml")
    text = topology.read_text().replace("gpus_per_node: 4", "gpus_per_node: 2").replace("nodes: 1", "nodes: 2")
    topology.write_text(text + "  - {level: cluster, bandwidth: 25 GB/s, latency: 10 us}\n")
    plan = deployment.with_name("plan.json")
    options = ("--split", "ep=4,tp=1", "--redundant-experts", 4, "-q")
    done = run("solve", deployment, "-o", plan, *options, cwd=deployment.parent)
    assert done.code == 0, done.err
    return plan


def test_a_lost_node(two_nodes: Path, tmp_path: Path) -> None:
    """Last copies counted by hand: experts that stand on ranks 2 and 3 only."""
    settings = ("--set", "workload.tokens_per_gpu=8", "--repaired", "left.json", "--json")
    told = run("what-if", two_nodes, "--lose", "n1", *settings, cwd=tmp_path)
    assert told.code == 0, told.err
    document, plan = told.json(), json.loads(two_nodes.read_text())
    slots, lost = plan["placement"]["slots_per_rank"], document["loss"]
    for layer, row in zip(plan["placement"]["layer_ids"], plan["placement"]["physical_to_logical"], strict=True):
        kept, gone = set(row[: 2 * slots]), set(row[2 * slots :])
        assert set(lost["last_copies"].get(str(layer), [])) == gone - kept - {-1}
    assert lost["gpus"] == [2, 3]
    assert lost["sequences"] == 2 * 64
    assert document["after"]["gpus"] == 2
    assert "ep=4 becomes 2: 2 GPUs are left" in document["settings"]

    cheapest, last = document["repair"]["cheapest"], sum(map(len, lost["last_copies"].values()))
    assert cheapest["loads"]["storage_bytes"] == cheapest["total_bytes"] == lost["reload_bytes"]
    assert len(cheapest["loads"]["experts"]) == last
    left = read_plan(tmp_path / "left.json")
    assert left.predicted.step_s == cheapest["step_s"]
    for row, (before, after) in enumerate(
        zip(plan["placement"]["physical_to_logical"], left.placement.physical_to_logical, strict=True)
    ):
        held = [set(before[gpu * slots : gpu * slots + slots]) for gpu in (0, 1)]
        brought = [set(after[gpu * 4 : gpu * 4 + 4]) - held[gpu] for gpu in (0, 1)]
        assert {(one["expert"], one["target"]) for one in cheapest["loads"]["experts"] if one["layer"] == row} == {
            (expert, gpu) for gpu in (0, 1) for expert in brought[gpu]
        }
    assert run("check", "left.json", cwd=tmp_path).code == 0
    words = run("what-if", two_nodes, "--lose", "n1", *settings[:2], cwd=tmp_path).words
    assert f"cheapest repair {cheapest['split']} {format_bytes(cheapest['total_bytes'])}" in words
    assert f"experts: {format_bytes(lost['reload_bytes'])} from storage" in words
    assert "0 ns" not in words


def test_where_nothing_is_lost_nothing_is_said_of_storage(tmp_path: Path) -> None:
    """Each node holds all experts: the one that is left serves on, and nothing is brought to it."""
    deployment = set_deployment(write_box(tmp_path).parent, solve="{split: {tp: 1, ep: 2, etp: 1, pp: 1}}")
    done = run("solve", deployment, "-o", "box/twice.json", "-q", cwd=tmp_path)
    assert done.code == 0, done.err
    told = run("what-if", "box/twice.json", "--lose", "n1", cwd=tmp_path)
    assert told.code == 0, told.err
    assert "no expert is brought anywhere" in told.out
    assert "cheapest repair tp=1 dp=2 ep=2 -" in told.words
    assert not [text for text in ("storage", "0 B", "0 ns") if text in told.words]


def test_losing_a_node_that_is_not_there(two_nodes: Path, tmp_path: Path) -> None:
    told = run("what-if", two_nodes, "--lose", "n2", cwd=tmp_path)
    assert told.code == 2
    assert "n0, n1" in told.err


def test_a_changed_trace_is_refused(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(tiny_plan.read_text())
    told = run("what-if", "plan.json", "--set", "nodes=1", cwd=tmp_path)
    assert told.code == 3
    assert "trace.npz: no such file" in told.err


def test_on_a_dask_cluster(mixtral_plan: Path, tmp_path: Path) -> None:
    """A scheduler with two workers on this machine gives what the cores of this machine give."""
    distributed = pytest.importorskip("dask.distributed")
    axis = ("--sweep", "workload.tokens_per_gpu=16,64", "--json")
    here: Any = run("what-if", mixtral_plan, *axis, cwd=tmp_path)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        there = run("what-if", mixtral_plan, *axis, "--dask", cluster.scheduler_address, cwd=tmp_path)
    assert there.code == 0, there.err
    assert there.out == here.out


def test_auto_shows_the_curve_of_copies(tmp_path: Path) -> None:
    """Mixtral in decode gains nothing from copies: every number but 0 is bounded above the plan, and costs KV cache."""
    deployment = example("mixtral-4gpu", tmp_path)
    told = run("solve", deployment, "--redundant-experts", "auto", "-o", "auto.json", cwd=tmp_path)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.lstrip().startswith("copies  "))
    assert lines[first + 1].split()[0] == "0"
    assert "at best" in lines[first + 2]
    assert "copies gain nothing" in told.out
