"""The deployment file: look-ups, defaults, overrides, pins, and all problems of all files at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from planner.errors import InputError, Problem, UsageError
from planner.inputs.deployment import Deployment, Overrides, load_deployment, parse_split
from planner.inputs.model import Model

HEAD = "schema: ep-plan/deployment/1\n"
MODEL = "model: gpt-oss-20b\n"
TOPOLOGY = "topology: 4 x hgx-h100\n"
WORK = "workload: {phase: decode, tokens_per_gpu: 128, context_length: 4096}\n"
GOOD = HEAD + MODEL + TOPOLOGY + WORK
CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}


def load(tmp_path: Path, text: str, overrides: Overrides | None = None) -> Deployment:
    """A deployment with this text."""
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    return load_deployment(path, overrides)


def problems(tmp_path: Path, text: str, overrides: Overrides | None = None) -> list[str]:
    """What such a deployment reports, the folder left out."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, overrides)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD)
    assert (made.model.name, made.topology.num_gpus, made.engine_name) == ("gpt-oss-20b", 32, None)
    solve = made.file.solve
    assert (solve.redundant_experts, solve.gap, solve.seed, solve.split.pinned()) == (0, 0.01, 0, {})
    # Experts in mxfp4 and the rest in bf16, as the checkpoint has them; an any engine, one copy per expert.
    precision = made.precision
    assert (precision.experts, precision.dense, precision.kv_cache) == ("mxfp4", "bf16", "bf16")
    assert (precision.dispatch, precision.combine) == ("bf16", "bf16")
    assert (made.communication.kernel, made.communication.dedup) == ("all-to-all", "expert")


def test_fp8_experts_are_dispatched_in_fp8(tmp_path: Path) -> None:
    precision = load(tmp_path, HEAD + "model: deepseek-v3\n" + TOPOLOGY + WORK).precision
    assert (precision.experts, precision.embedding) == ("fp8_block", "bf16")
    assert (precision.dispatch, precision.combine) == ("fp8", "bf16")


def test_the_engine_chooses_the_kernel_by_phase(tmp_path: Path) -> None:
    for phase, kernel, dedup in (("decode", "deepep-low-latency", "expert"), ("prefill", "deepep-normal", "node")):
        made = load(tmp_path, GOOD.replace("decode", phase) + "engine: sglang\n")
        assert (made.communication.kernel, made.communication.dedup) == (kernel, dedup)


def test_the_file_overrides_engine_and_model(tmp_path: Path) -> None:
    more = "engine: sglang\ncommunication: {dedup: gpu}\nprecision: {weights: fp8, kv_cache: fp8}\n"
    made = load(tmp_path, GOOD + more)
    assert made.communication.dedup == "gpu"
    assert (made.precision.experts, made.precision.dense, made.precision.kv_cache) == ("fp8", "fp8", "fp8")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "a.npz").write_bytes(b"not read here")
    text = HEAD + "model: model/config.json\ntopology: hgx-h200\ntraces: [traces/a.npz]\n" + WORK
    made = load(tmp_path, text)
    assert (made.model.name, made.topology.num_gpus) == ("model", 8)
    assert made.trace_paths == (tmp_path / "traces" / "a.npz",)
    # A folder with a config.json in it is such a path, too.
    assert load(tmp_path, text.replace("model/config.json", "./model")).model == made.model


def test_unknown_names_say_what_to_give_instead(tmp_path: Path) -> None:
    text = (
        HEAD
        + "model: gpt-oss-20\ntopology: 4 x hgx-h10\n"
        + WORK
        + "engine: sglan\ncommunication: {kernel: deepep}\ntraces: [nope.npz]\n"
    )
    found = problems(tmp_path, text)
    assert [line.split("\n")[0] for line in found] == [
        "error: deployment.yaml:2:8: model: unknown model 'gpt-oss-20'",
        "error: deployment.yaml:3:11: topology: unknown node 'hgx-h10'",
        "error: deployment.yaml:5:9: engine: unknown engine 'sglan'",
        "error: deployment.yaml:6:25: communication.kernel: unknown communication kernel 'deepep'",
        "error: deployment.yaml:7:10: traces[0]: nope.npz: no such file",
    ]
    assert "did you mean gpt-oss-20b" in found[0]
    assert "or describe it: a path to a config.json, or a model.yaml (schema: ep-plan/model/1)" in found[0]
    assert "did you mean hgx-h100 or" in found[1]
    assert "or describe it: gpu, nodes, gpus_per_node, links (level; " in found[1]
    assert "did you mean sglang?" in found[2]


def test_problems_of_several_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_experts_per_tok": 9}))
    (tmp_path / "topology.yaml").write_text(
        "schema: ep-plan/topology/1\ngpu: h100-sxm\nnodes: 1\ngpus_per_node: 8\n"
        "links: [{level: node, bandwidth: 450, latency: 3 us}]\n"
    )
    text = HEAD + "model: config.json\ntopology: topology.yaml\n" + WORK
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert "config.json: top_k 9 is more than the 8 experts" in said
    assert "topology.yaml:5:34: links[0].bandwidth: 450 has no unit" in said
    assert said.endswith("2 files, 2 problems")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "solve: {redundant_experts: lots}",
            "5:28: solve.redundant_experts: \"lots\": input should be a valid integer or 'auto'",
        ),
        (
            "solve: {redundant_experts: -1}",
            "5:28: solve.redundant_experts: -1: input should be greater than or equal to 0 or 'auto'",
        ),
        ("solve: {split: {tp: 0}}", "5:21: solve.split.tp: 0: input should be greater than or equal to 1"),
        (
            "solve: {split: {zp: 2}}",
            "5:17: solve.split.zp: unknown key\n  known keys: dp, edp, ep, etp, micro_batches, pp, tp",
        ),
        ("solve: {gap: 1}", '5:14: solve.gap: 1 has no unit\n  expected a percentage such as "1%"'),
        (
            "solve: {time_limit: 60}",
            '5:21: solve.time_limit: 60 has no unit\n  expected a time such as "3 us" or "60 s"',
        ),
        ("solve: {keep_groups: rack}", "5:22: solve.keep_groups: \"rack\": input should be 'node'"),
        ("precision: {weights: fp7}", "5:22: precision.weights: \"fp7\": input should be 'fp32', 'bf16'"),
        (
            "checks: {min_balancedness: 1.5}",
            "5:28: checks.min_balancedness: 1.5: input should be less than or equal to 1",
        ),
        ("workloads: {}", "5:1: workloads: unknown key\n  did you mean workload?"),
    ],
)
def test_faults_in_the_file(tmp_path: Path, line: str, message: str) -> None:
    (only,) = problems(tmp_path, f"{GOOD}{line}\n")
    assert only.startswith(f"error: deployment.yaml:{message}")


def test_a_trace_twice_would_count_double(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    (only,) = problems(tmp_path, f"{GOOD}traces: [a.npz, ./a.npz]\n")
    assert only.startswith("error: deployment.yaml:5:17: traces[1]: ./a.npz is the same file as a.npz")
    assert "count double" in only


def test_a_fault_in_the_file_hides_none_in_the_files_that_it_names(tmp_path: Path) -> None:
    """And the traces are looked at with the model, where that can be read."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a.npz").touch()
    (tmp_path / "deployment.yaml").write_text(
        f"{HEAD}model: config.json\ntopology: 4 x hgx-h10\ntraces: [a.npz, nope.npz]\nmodel: config.json\n"
        "workload: {phase: decod, tokens_per_gpu: 128, context_length: 4096}\n"
    )
    seen: list[tuple[list[str], str]] = []

    def look(paths: Sequence[Path], model: Model | None) -> list[Problem]:
        seen.append(([path.name for path in paths], model.family if model else ""))
        return [Problem("no zip file")]

    with pytest.raises(InputError) as caught:
        load_deployment(tmp_path / "deployment.yaml", None, look)
    assert seen == [(["a.npz"], "mixtral")]
    assert [str(problem).split("deployment.yaml:")[-1].split("\n")[0] for problem in caught.value.problems] == [
        "3:11: topology: unknown node 'hgx-h10'",
        "4:17: traces[1]: nope.npz: no such file",
        "5:1: model: duplicate key (first on line 2)",
        "6:19: workload.phase: \"decod\": input should be 'prefill' or 'decode'",
        "error: no zip file",
    ]


# --- overrides ----------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = GOOD + "solve: {redundant_experts: 8, split: {tp: 2, ep: 16}, gap: 5%, seed: 1}\n"
    given = Overrides(
        model="mixtral-8x7b",
        topology="2 x hgx-h200",
        gpus=12,
        split={"ep": 4},
        redundant_experts="auto",
        time_limit_s=3.5,
        gap=0.0,
        seed=7,
    )
    made = load(tmp_path, text, given)
    assert (made.model.name, made.topology.gpu.name, made.topology.num_gpus) == ("mixtral-8x7b", "h200-sxm", 12)
    solve = made.file.solve
    assert solve.split.pinned() == {"tp": 2, "ep": 4}
    assert (solve.redundant_experts, solve.time_limit, solve.gap, solve.seed) == ("auto", 3.5, 0.0, 7)


def test_zero_is_an_override_and_nothing_is_not(tmp_path: Path) -> None:
    text = GOOD + "solve: {redundant_experts: 8, seed: 3}\n"
    assert load(tmp_path, text, Overrides(redundant_experts=0, seed=0)).file.solve.redundant_experts == 0
    assert load(tmp_path, text, Overrides(redundant_experts=0, seed=0)).file.solve.seed == 0
    assert load(tmp_path, text, Overrides()).file.solve.redundant_experts == 8


def test_files_of_the_command_line_are_relative_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(elsewhere)
    assert load(tmp_path, GOOD, Overrides(model="./config.json")).model.name == "elsewhere"


@pytest.mark.parametrize(
    "given", [Overrides(model="no/config.json"), Overrides(topology="no.yaml"), Overrides(traces=("no.npz",))]
)
def test_a_missing_file_of_the_command_line_is_wrong_usage(tmp_path: Path, given: Overrides) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        load(tmp_path, GOOD, given)
    assert caught.value.exit_code == 2


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, GOOD, Overrides(gpus=33))
    assert only == ("error: 33 GPUs asked for, 32 are there\n  the topology has 4 x 8 GPUs: give 1..32")


# --- --split ------------------------------------------------------------------------------------------


def test_pins_are_read() -> None:
    assert parse_split("tp=1,ep=32,pp=1") == {"tp": 1, "ep": 32, "pp": 1}
    assert parse_split(" ep = 4 , micro_batches=8") == {"ep": 4, "micro_batches": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected degrees such as tp=1,ep=32,pp=1"),
        ("tp", "'tp': expected degrees"),
        ("tp=", "'tp=': expected degrees"),
        ("tp=two", "'tp=two': expected degrees"),
        ("tp=-1", "'tp=-1': expected degrees"),
        ("tp=1.5", "'tp=1.5': expected degrees"),
        ("tp=1,,ep=2", "'': expected degrees"),
        ("tp=1,tp=2", "tp stands twice"),
        ("tp=0", "tp=0: degrees are whole numbers from 1 to 65,536"),
        ("zp=2", "'zp' is not a degree; degrees: tp, dp, pp, ep, etp, edp"),
        ("tp=99999999999999999999", "degrees are whole numbers"),
        ("tp=²", "'tp=²': expected degrees"),
    ],
)
def test_pins_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"degrees|twice") as caught:
        parse_split(text)
    assert message in str(caught.value)


def test_unknown_names_are_told_with_whatever_else_is_wrong_in_file_order(tmp_path: Path) -> None:
    """A wrong unit or count does not hide names that no profile has, in the deployment and in what it names."""
    (tmp_path / "topology.yaml").write_text(
        "schema: ep-plan/topology/1\ngpu: h101-sxm\nnodes: 0\ngpus_per_node: 8\n"
        "links:\n- {level: node, fabric: nvlink-9}\n- {level: cluster, bandwidth: 50 GBps, latency: 3 us}\n"
    )
    text = HEAD + "model: gpt-oss-20\ntopology: topology.yaml\n" + WORK
    text += "engine: sglan\ncommunication: {kernel: deepep}\nsolve: {gap: 1 %x}\n"
    assert [line.split("\n")[0] for line in problems(tmp_path, text)] == [
        "error: deployment.yaml:2:8: model: unknown model 'gpt-oss-20'",
        "error: deployment.yaml:5:9: engine: unknown engine 'sglan'",
        "error: deployment.yaml:6:25: communication.kernel: unknown communication kernel 'deepep'",
        "error: deployment.yaml:7:14: solve.gap: '1 %x': unknown unit %x",
        "error: topology.yaml:2:6: gpu: unknown GPU 'h101-sxm'",
        "error: topology.yaml:3:8: nodes: 0: input should be greater than or equal to 1",
        "error: topology.yaml:6:25: links[0].fabric: unknown fabric 'nvlink-9'",
        "error: topology.yaml:7:31: links[1].bandwidth: '50 GBps': unknown unit GBps",
    ]
