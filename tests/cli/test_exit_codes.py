"""Exit codes of the contract, what goes to which stream, and errors as data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import deployment_file, example, files_in, run, solved

GOOD = "model: mixtral-8x7b\ntopology: 1 x hgx-h100\nworkload: {phase: decode, tokens_per_gpu: 8, context_length: 64}\n"
COMMANDS = ["solve", "check", "compare", "show", "profiles", "env"]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], *([name, "-h"] for name in COMMANDS)])
def test_asking_for_help_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert result.out.strip()


def test_the_help_names_every_command(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert all(f"\n  {name} " in result.out for name in COMMANDS)


WRONG_USAGE = {
    "unknown command": ["plan"],
    "unknown option": ["solve", "deployment.yaml", "--gpu", "4"],
    "no deployment": ["solve"],
    "no such deployment": ["solve", "nowhere.yaml"],
    "deployment is a folder": ["solve", "."],
    "no such model file": ["solve", "deployment.yaml", "--model", "nowhere.json"],
    "no such topology file": ["solve", "deployment.yaml", "--topology", "nowhere.yaml"],
    "no such trace": ["solve", "deployment.yaml", "--trace", "nowhere.npz"],
    "trace is a folder": ["solve", "deployment.yaml", "--trace", "."],
    "no such model": ["solve", "deployment.yaml", "--model", "mixtral-8x7c"],
    "no such node": ["solve", "deployment.yaml", "--topology", "2 x hgx-h1000"],
    "no nodes": ["solve", "deployment.yaml", "--topology", "0 x hgx-h100"],
    "time limit without unit": ["solve", "deployment.yaml", "--time-limit", "60"],
    "gap without unit": ["solve", "deployment.yaml", "--gap", "2"],
    "risk of no window": ["solve", "deployment.yaml", "--risk", "0%"],
    "risk of more than all": ["solve", "deployment.yaml", "--risk", "120%"],
    "negative time limit": ["solve", "deployment.yaml", "--time-limit=-1 s"],
    "no such degree": ["solve", "deployment.yaml", "--split", "xp=4"],
    "a degree of 0": ["solve", "deployment.yaml", "--split", "ep=0"],
    "a degree twice": ["solve", "deployment.yaml", "--split", "ep=4,ep=2"],
    "no degree": ["solve", "deployment.yaml", "--split", "ep"],
    "a degree that is none": ["solve", "deployment.yaml", "--split", "foo=3"],
    "a huge degree": ["solve", "deployment.yaml", "--split", "ep=1000000"],
    "too many copies": ["solve", "deployment.yaml", "--redundant-experts", "1000000"],
    "negative copies": ["solve", "deployment.yaml", "--redundant-experts=-1"],
    "no GPUs": ["solve", "deployment.yaml", "--gpus", "0"],
    "no such plan": ["show", "nowhere.json"],
    "no such file to check": ["check", "nowhere.json"],
    "nothing to check": ["check", "empty"],
    "comparison without trace": ["compare", "deployment.yaml"],
    "no such profile": ["profiles", "h1000"],
}


@pytest.mark.parametrize("arguments", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_is_2(arguments: list[str], tmp_path: Path) -> None:
    deployment_file(tmp_path, GOOD)
    (tmp_path / "empty").mkdir()
    result = run(*arguments, cwd=tmp_path)
    assert result.code == 2, result.out + result.err
    assert result.out == ""
    assert "error" in result.err.lower()
    assert not any(words in result.err for words in ("extra inputs", "input should be"))
    assert files_in(tmp_path) == {"deployment.yaml", "empty"}


OPTIONS = {
    "--model": ("mixtral-8x7c", "mixtral-8x7b"),
    "--topology": ("hgx-h1000", "hgx-h100"),
    "--trace": (".", "directory"),
}


def test_wrong_options_are_named_with_value_and_repair_all_at_once(tmp_path: Path) -> None:
    """The file itself is right; it is not blamed."""
    deployment_file(tmp_path, GOOD)
    options = [word for option, (value, _) in OPTIONS.items() for word in (option, value)]
    result = run("solve", "deployment.yaml", *options, "--json", cwd=tmp_path)
    assert result.code == 2
    assert "deployment.yaml" not in result.err
    told = {problem["file"]: problem for problem in result.problems()}
    assert set(told) == set(OPTIONS)
    for option, (value, repair) in OPTIONS.items():
        assert value in told[option]["message"]
        assert repair in told[option]["message"] + told[option]["hint"]


@pytest.mark.parametrize(("old", "new"), [("mixtral-8x7b", "mixtral-8x7c"), ("1 x hgx-h100", "0 x hgx-h100")])
def test_the_same_in_the_file_is_3_with_its_place(old: str, new: str, tmp_path: Path) -> None:
    deployment_file(tmp_path, GOOD.replace(old, new))
    result = run("solve", "deployment.yaml", "--json", cwd=tmp_path)
    assert result.code == 3
    (problem,) = result.problems()
    assert problem["file"] == "deployment.yaml"
    assert problem["line"] in (2, 3)
    assert new in problem["message"]


def test_a_fault_inside_a_file_of_the_command_line_is_3(tmp_path: Path) -> None:
    deployment_file(tmp_path, GOOD)
    (tmp_path / "node.yaml").write_text("schema: ep-plan/topology/1\ngpu: h100-sxm\n")
    result = run("solve", "deployment.yaml", "--topology", "node.yaml", "--json", cwd=tmp_path)
    assert result.code == 3
    assert {problem["file"] for problem in result.problems()} == {"node.yaml"}


def test_an_unknown_name_with_nothing_near_is_told_where_names_are_listed(tmp_path: Path) -> None:
    deployment_file(tmp_path, GOOD)
    result = run("solve", "deployment.yaml", "--model", "zzz", cwd=tmp_path)
    assert "ep-plan profiles" in result.err
    assert max(map(len, result.err.splitlines())) <= 160


def test_a_trace_named_twice_would_count_double(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    trace = deployment.parent / "trace.npz"
    same = deployment.parent / ".." / "tiny-moe" / "trace.npz"
    result = run("solve", deployment, "--trace", trace, "--trace", same, cwd=tmp_path)
    assert result.code == 2
    assert "count double" in result.err


@pytest.mark.parametrize("arguments", [["solve", "--no-such", "--json"], ["solve", "nowhere.yaml", "--json"]])
def test_wrong_usage_is_data_too(arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.code == 2
    assert any(word in result.problems()[0]["message"] for word in ("--no-such", "nowhere.yaml"))


def test_invalid_input_is_3_with_place_value_rule_and_repair(tmp_path: Path) -> None:
    deployment_file(tmp_path, GOOD.replace("1 x hgx-h100", "node.yaml"))
    (tmp_path / "node.yaml").write_text(
        "schema: ep-plan/topology/1\n"
        "gpu: h100-sxm\n"
        "nodes: 1\n"
        "gpus_per_node: 8\n"
        "links:\n"
        "  - {level: node, bandwidth: 450, latency: 3 us}\n"
    )
    result = run("solve", "deployment.yaml", "--json", cwd=tmp_path)
    assert result.code == 3
    (problem,) = result.problems()
    assert problem["file"] == "node.yaml"
    assert (problem["line"], problem["column"]) == (6, 30)
    assert problem["key"] == "links[0].bandwidth"
    assert "450" in problem["message"]
    assert "unit" in problem["message"]
    assert "450 GB/s" in problem["hint"]
    assert "node.yaml:6:30: links[0].bandwidth" in result.err


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("mixtral-8x7b", "config.json").replace("1 x hgx-h100", "node.yaml")
    deployment_file(tmp_path, text + "traces: [a.npz, b.npz]\nengine: sgland\n")
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "hidden_size": -4, "num_hidden_layers": 2}')
    (tmp_path / "node.yaml").write_text("schema: ep-plan/topology/1\ngpu: h100-sxm\nnodes: 0\nlink: []\n")
    result = run("solve", "deployment.yaml", "--json", cwd=tmp_path)
    assert result.code == 3
    told = {(problem["file"], problem["key"] or "") for problem in result.problems()}
    assert {file for file, _ in told} == {"deployment.yaml", "config.json", "node.yaml"}
    assert {("deployment.yaml", "traces[0]"), ("deployment.yaml", "traces[1]"), ("deployment.yaml", "engine")} <= told
    assert {("node.yaml", "nodes"), ("node.yaml", "link")} <= told
    assert any("hidden_size" in problem["key"] + problem["message"] for problem in result.problems())
    assert any("sglang" in problem["hint"] for problem in result.problems())
    for problem in result.problems():
        assert problem["message"] in result.err
    assert "3 files" in result.err


def test_inputs_that_disagree_are_3(tmp_path: Path) -> None:
    mixtral = example("mixtral-4gpu", tmp_path)
    trace = example("tiny-moe", tmp_path).parent / "trace.npz"
    result = run("solve", mixtral, "--trace", trace, "-o", "plan.json", "--json", cwd=tmp_path)
    assert result.code == 3
    assert len(result.problems()) >= 2
    assert all(str(trace) == problem["file"] for problem in result.problems())
    assert not (tmp_path / "plan.json").exists()


def test_more_gpus_than_there_are_is_3(tmp_path: Path) -> None:
    result = run("solve", example("mixtral-4gpu", tmp_path), "--gpus", "5", cwd=tmp_path)
    assert result.code == 3
    assert "5 GPUs" in result.err


def test_a_split_that_cannot_be_is_4(tmp_path: Path) -> None:
    deployment = example("mixtral-4gpu", tmp_path)
    result = run("solve", deployment, "--gpus", "3", "--json", cwd=tmp_path)
    assert result.code == 4
    (problem,) = result.problems()
    assert "ep=4" in problem["message"]
    assert "try" in problem["hint"]
    assert files_in(tmp_path) == {"mixtral-4gpu"}


def test_the_plan_on_standard_output_is_the_one_in_the_file(tmp_path: Path) -> None:
    deployment = example("mixtral-4gpu", tmp_path)
    result = run("solve", deployment, "--json", "-o", "plan.json", cwd=tmp_path)
    assert result.code == 0
    assert result.out == (tmp_path / "plan.json").read_text()
    assert result.json()["schema"] == "ep-plan/plan/1"
    shown = run("show", "plan.json", "--json", cwd=tmp_path)
    assert (shown.code, shown.out, shown.err) == (0, result.out, "")


def test_quiet_says_nothing_but_errors(tmp_path: Path) -> None:
    deployment = example("mixtral-4gpu", tmp_path)
    result = run("solve", deployment, "-q", "-o", "plan.json", cwd=tmp_path)
    assert (result.code, result.out, result.err) == (0, "", "")
    result = run("check", "plan.json", "-q", cwd=tmp_path)
    assert (result.code, result.out, result.err) == (0, "", "")
    result = run("show", "nowhere.json", "-q", cwd=tmp_path)
    assert result.code == 2
    assert "nowhere.json" in result.err


QUIET = [["profiles"], ["profiles", "h100-sxm"], ["env"]]


@pytest.mark.parametrize("arguments", QUIET, ids=" ".join)
def test_v_and_q_hold_everywhere_and_before_the_command(arguments: list[str], tmp_path: Path) -> None:
    plain, more = run(*arguments, cwd=tmp_path), run(*arguments, "-v", cwd=tmp_path)
    assert (plain.code, more.code) == (0, 0)
    assert len(more.out) > len(plain.out)
    assert run("-v", *arguments, cwd=tmp_path) == more
    for options in (["-q", *arguments], [*arguments, "-q"]):
        result = run(*options, cwd=tmp_path)
        assert (result.code, result.out, result.err) == (0, "", "")


def test_q_before_solve_and_topology_import(tmp_path: Path) -> None:
    deployment = example("mixtral-4gpu", tmp_path)
    result = run("-q", "solve", deployment, "-o", "plan.json", cwd=tmp_path)
    assert (result.code, result.out, result.err) == (0, "", "")
    (tmp_path / "topo.txt").write_text("\tGPU0\tGPU1\tNIC0\nGPU0\t X \tNV12\tPIX\nGPU1\tNV12\t X \tPIX\n")
    given = ["topo.txt", "--gpu", "a100-sxm-80", "--nic", "ib-hdr"]
    for options in (["-q", "topology", "import"], ["topology", "-q", "import"], ["topology", "import", "-q"]):
        result = run(*options, *given, cwd=tmp_path)
        assert (result.code, result.out, result.err) == (0, "", "")
    result = run("topology", "import", *given, "-v", cwd=tmp_path)
    assert result.out == (tmp_path / "topology.yaml").read_text()


def test_auto_in_any_case_and_shown_as_written(tmp_path: Path) -> None:
    assert "N|auto" in run("solve", "-h", cwd=tmp_path).out
    deployment = deployment_file(tmp_path, GOOD)
    options = ["--split", "tp=1,pp=1,ep=8", "--redundant-experts", "AUTO", "--gap", "90%", "-q"]
    assert run("solve", deployment, *options, cwd=tmp_path).code == 0
    result = run("solve", deployment, "--redundant-experts", "1000000", cwd=tmp_path)
    assert "from 0 to 65,536" in result.err


def test_what_is_there_is_checked_though_something_is_missing(mixtral_plan: Path, tmp_path: Path) -> None:
    result = run("check", mixtral_plan, "nowhere.json", cwd=tmp_path)
    assert result.code == 2
    assert "every rule and figure holds" in result.words
    assert "nowhere.json: no such file" in result.out
    assert "1 of 2 good" in result.out
    assert "nothing was written" not in result.out + result.err


@pytest.mark.parametrize("command", ["show", "check"])
def test_commands_that_never_write_do_not_say_so(command: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    result = run(command, "plan.json", cwd=tmp_path)
    assert result.code == 3
    assert "nothing was written" not in result.out + result.err


def test_q_keeps_wrong_usage(tmp_path: Path) -> None:
    result = run("profiles", "h1000", "-q", cwd=tmp_path)
    assert result.code == 2
    assert "h100" in result.err


def test_options_take_the_place_of_the_file(tmp_path: Path) -> None:
    deployment = deployment_file(tmp_path, GOOD)
    options = ["--model", "qwen3-30b-a3b", "--topology", "1 x hgx-h200", "--gpus", "4", "--seed", "7"]
    options += ["--split", "ep=4,pp=1", "--redundant-experts", "4", "--gap", "5%"]
    plan = run("solve", deployment, *options, "--json", cwd=tmp_path).json()
    assert plan["inputs"]["name"] == "qwen3-30b-a3b"
    assert plan["inputs"]["topology"]["gpu"]["name"] == "h200-sxm"
    assert plan["inputs"]["gpus"] == 4
    assert (plan["split"]["ep"], plan["split"]["pp"]) == (4, 1)
    assert plan["placement"]["redundant_experts"] == 4


def test_profiles_can_be_read_back(tmp_path: Path) -> None:
    listing = run("profiles", "--json", cwd=tmp_path).json()
    assert {"gpus", "nodes", "models", "engines"} <= set(listing)
    assert "h100-sxm" in listing["gpus"]
    assert "80" in run("profiles", "h100-sxm", cwd=tmp_path).out
    assert run("profiles", "h100-sxm", "--json", cwd=tmp_path).json()["memory"]


def test_env_names_versions(tmp_path: Path) -> None:
    result = run("env", cwd=tmp_path)
    assert result.code == 0
    assert all(word in result.out for word in ("ep-plan", "python", "numpy", "ortools", "torch"))
    data = run("env", "--json", cwd=tmp_path).json()
    assert data.pop("schema") == "ep-plan/env/1"
    assert {line.split()[0]: line[14:].strip() for line in result.out.splitlines()} == data


def test_a_changed_trace_and_a_missing_one_are_3(tmp_path: Path) -> None:
    plan = solved(example("tiny-moe", tmp_path), "--gap", "90%")
    trace = plan.parent / "trace.npz"
    kept = trace.read_bytes()
    trace.write_bytes(kept + b"\0")
    for options in ([], ["--trace", str(trace)]):
        result = run("check", plan, *options, "--json", cwd=tmp_path)
        assert result.code == 3
        assert "trace.npz: not a trace that the plan was made from" in result.out
    (tmp_path / "kept.npz").write_bytes(kept)
    assert run("check", plan, "--trace", "kept.npz", cwd=tmp_path).code == 0
    shutil.copy(tmp_path / "kept.npz", tmp_path / "same.npz")
    result = run("check", plan, "--trace", "kept.npz", "--trace", "same.npz", cwd=tmp_path)
    assert result.code == 3
    assert "give each of them once" in result.out
    trace.unlink()
    result = run("check", plan, "--json", cwd=tmp_path)
    assert result.code == 3
    assert "inputs.traces[0]" in result.out
    assert "give the trace with --trace" in result.out
    assert run("check", plan, "--trace", "nowhere.npz", cwd=tmp_path).code == 2


def test_traces_may_be_given_in_any_order(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    with np.load(deployment.parent / "trace.npz") as trace:
        arrays = {name: trace[name] for name in ("expert_ids", "num_experts")}
    for name, rows in {"a": slice(0, 8000), "b": slice(8000, None)}.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, "expert_ids": arrays["expert_ids"][rows]})
    plan = solved(deployment, "--gap", "90%", "--trace", tmp_path / "a.npz", "--trace", tmp_path / "b.npz")
    result = run("check", plan, "--trace", "b.npz", "--trace", "a.npz", cwd=tmp_path)
    assert result.code == 0, result.out


def test_a_trace_of_other_layers_is_3(tiny_plan: Path, tmp_path: Path) -> None:
    with np.load(tiny_plan.parent / "trace.npz") as trace:
        few = trace["expert_ids"][:, :2]
    np.savez(tmp_path / "few.npz", expert_ids=few, layer_ids=[1, 3], num_experts=64)
    result = run("compare", tiny_plan, "--trace", "few.npz", "--json", cwd=tmp_path)
    assert result.code == 3
    (problem,) = result.problems()
    assert problem["file"] == "few.npz"
    assert "covers other layers" in problem["message"]


def test_a_file_of_another_kind_is_told_as_what_it_is(tiny_plan: Path, tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    told = {
        ("solve", tiny_plan): "'ep-plan/plan/1' is not a deployment file",
        ("solve", deployment.with_name("topology.yaml")): "'ep-plan/topology/1' is not a deployment file",
        ("solve", deployment.with_name("config.json")): "the schema line is missing",
        ("solve", deployment.with_name("trace.npz")): "a zip archive",
        ("show", deployment): "not valid JSON",
        ("show", deployment.with_name("trace.npz")): "a zip archive",
    }
    for (command, path), message in told.items():
        options = ["-o", "new.json"] if command == "solve" else []
        result = run(command, path, *options, "--json", cwd=tmp_path)
        assert result.code == 3
        (problem,) = result.problems()
        assert message in problem["message"]
        assert problem["hint"]
