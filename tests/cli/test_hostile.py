"""Broken, truncated and malicious input: an exit code and a message, never a traceback."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.running import deployment_file, example, files_in, run

DEPLOYMENT_TEXT = (
    "model: config.json\n"
    "topology: topology.yaml\n"
    "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
    "solve: {split: {ep: 4}}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of mixtral-4gpu, to be broken."""
    return example("mixtral-4gpu", tmp_path).parent


def changed(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace a text in one of the files."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    """Replace one of the files."""
    return lambda folder: (folder / name).write_bytes(content)


def as_folder(folder: Path) -> None:
    """Put a folder where the model should be."""
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


DEPLOYMENT, MODEL, TOPOLOGY = "deployment.yaml", "config.json", "topology.yaml"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "deployment: tab": (changed(DEPLOYMENT, "model:", "\tmodel:"), "deployment.yaml:3"),
    "deployment: duplicate key": (changed(DEPLOYMENT, "phase: decode", "phase: decode, phase: decode"), "duplicate"),
    "deployment: unknown key": (changed(DEPLOYMENT, "tokens_per_gpu", "token_per_gpu"), "tokens_per_gpu"),
    "deployment: wrong unit": (changed(DEPLOYMENT, "ep: 4}", "ep: 4}\n  time_limit: 60 GB"), "GB"),
    "deployment: number as text": (changed(DEPLOYMENT, "64", '"64"'), "tokens_per_gpu"),
    "deployment: binary": (replaced(DEPLOYMENT, bytes(range(256))), "UTF-8"),
    "deployment: control character": (replaced(DEPLOYMENT, b"model: \x00\n"), "U+0000"),
    "deployment: empty": (replaced(DEPLOYMENT, b""), "schema"),
    "deployment: a list": (replaced(DEPLOYMENT, b"- a\n- b\n"), "mapping"),
    "deployment: of another kind": (changed(DEPLOYMENT, "deployment/1", "topology/1"), "deployment"),
    "deployment: of the future": (changed(DEPLOYMENT, "deployment/1", "deployment/9"), "upgrade"),
    "deployment: alias bomb": (replaced(DEPLOYMENT, b"a: &a [x]\nb: [*a, *a]\n"), "alias"),
    "deployment: anchor": (changed(DEPLOYMENT, "model:", "model: &m"), "anchor"),
    "deployment: deep": (replaced(DEPLOYMENT, b"a: " + b"[" * 5000 + b"]" * 5000), "nested"),
    "deployment: huge number": (changed(DEPLOYMENT, "64", "9" * 5000), "digits"),
    "model: wrong JSON": (replaced(MODEL, b'{"model_type": "mixtral",'), "config.json:1"),
    "model: no object": (replaced(MODEL, b"[]"), "config.json"),
    "model: unknown family": (replaced(MODEL, b'{"model_type": "llama"}'), "llama"),
    "model: NaN": (replaced(MODEL, b'{"model_type": NaN}'), "NaN"),
    "model: deep": (replaced(MODEL, b"[" * 100_000), "config.json"),
    "model: no layers": (changed(MODEL, '"num_hidden_layers": 32', '"num_hidden_layers": 0'), "num_hidden_layers"),
    "model: too many experts": (
        changed(MODEL, '"num_local_experts": 8', f'"num_local_experts": {10**12}'),
        "at most 1,000,000,000",
    ),
    "model: window of nothing": (changed(MODEL, '"sliding_window": null', '"sliding_window": 0'), "sliding_window"),
    "model: missing": (lambda folder: (folder / MODEL).unlink(), "no such file"),
    "model: a folder": (as_folder, "config.json"),
    "topology: wrong unit": (changed(TOPOLOGY, "300 GB/s", "300 GB"), "GB"),
    "topology: no unit": (changed(TOPOLOGY, "3 us", "3"), "unit"),
    "topology: unknown GPU": (changed(TOPOLOGY, "a100-sxm-80", "a100-sxm-81"), "a100-sxm-80"),
    "topology: no GPUs": (changed(TOPOLOGY, "gpus_per_node: 4", "gpus_per_node: 0"), "gpus_per_node"),
    "topology: a billion nodes": (changed(TOPOLOGY, "\nnodes: 1\n", "\nnodes: 1000000000\n"), "less than or equal to"),
    "topology: negative bandwidth": (changed(TOPOLOGY, "300 GB/s", "-300 GB/s"), "greater than 0"),
    "topology: NaN": (changed(TOPOLOGY, "300 GB/s", "nan GB/s"), "not a number with a unit"),
    "topology: beyond physics": (changed(TOPOLOGY, "300 GB/s", "1e400 GB/s"), "beyond anything physical"),
    "topology: UTF-16": (replaced(TOPOLOGY, "schema: ep-plan/topology/1".encode("utf-16")), "UTF-8"),
    "topology: huge": (replaced(TOPOLOGY, b"#" * (9 << 20)), "larger than 8 MiB"),
    "topology: a long list": (replaced(TOPOLOGY, b"links: [" + b"1," * 60_000 + b"1]"), "more than 50,000 values"),
    "deployment: a billion shipped nodes": (
        changed(DEPLOYMENT, "topology: topology.yaml", "topology: 1000000000 x hgx-h100"),
        "1000000000 nodes are not allowed",
    ),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one check of all the broken deployments says of each."""
    root = tmp_path_factory.mktemp("broken")
    for number, (damage, _) in enumerate(BROKEN.values()):
        damage(example("mixtral-4gpu", root).parent.rename(root / str(number)))
    result = run("check", root, "--json", cwd=root)
    assert result.code == 3, result.out + result.err
    files = {Path(file["path"]).parent.name: file for file in result.json()["files"]}
    assert not any(file["good"] for file in files.values())
    return {name: json.dumps(files[str(number)], ensure_ascii=False) for number, name in enumerate(BROKEN)}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_named(name: str, told: dict[str, str]) -> None:
    assert BROKEN[name][1] in told[name], told[name]


@pytest.mark.parametrize("name", ["deployment: tab", "deployment: binary", "model: deep", "topology: wrong unit"])
def test_broken_input_is_3_and_nothing_is_written(name: str, folder: Path) -> None:
    damage, word = BROKEN[name]
    damage(folder)
    before = files_in(folder)
    result = run("solve", "deployment.yaml", cwd=folder)
    assert (result.code, result.out) == (3, ""), result.err
    assert word in result.err
    assert "nothing was written" in result.err
    assert files_in(folder) == before


def saved(**arrays: Any) -> bytes:
    """An .npz in memory."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def promising() -> bytes:
    """An .npz whose header promises a terabyte."""
    stream = io.BytesIO()
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000, 32, 4096), }"
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("counts.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return stream.getvalue()


COUNTS = np.ones((4, 32, 8), dtype=np.int64)
WHOLE = saved(counts=COUNTS, num_experts=8, topk=2)
TRACES = {
    "empty": b"",
    "noise": bytes(range(256)) * 40,
    "cut off": WHOLE[: len(WHOLE) // 2],
    "damaged": WHOLE.replace(b"\x01\x00\x00\x00\x00\x00\x00\x00" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00" * 8),
    "an array of another kind": saved(images=[1, 2, 3]),
    "Python objects": saved(counts=np.array([{}], dtype=object), num_experts=8, topk=2),
    "a terabyte": promising(),
    "negative counts": saved(counts=-COUNTS, num_experts=8, topk=2),
    "infinite counts": saved(counts=COUNTS * np.inf, num_experts=8, topk=2),
    "no experts": saved(counts=COUNTS[:, :, :0], num_experts=8, topk=2),
    "other experts": saved(counts=COUNTS, num_experts=16, topk=2),
    "layers that the model lacks": saved(counts=COUNTS, num_experts=8, topk=2, layer_ids=np.arange(32) + 5),
}


def test_every_broken_trace_is_named(folder: Path) -> None:
    """All in one run: the problems of all files are told at once."""
    names = [f"trace{number}.npz" for number in range(len(TRACES))]
    for name, content in zip(names, TRACES.values(), strict=True):
        (folder / name).write_bytes(content)
    deployment_file(folder, f"{DEPLOYMENT_TEXT}traces: [{', '.join(names)}]\n")
    result = run("solve", "deployment.yaml", "--json", cwd=folder)
    assert result.code == 3
    told = {problem["file"] for problem in result.problems()}
    assert told == set(names)
    assert "plan.json" not in files_in(folder)


def test_an_expert_that_the_model_lacks_is_3(folder: Path) -> None:
    (folder / "trace.npz").write_bytes(saved(expert_ids=np.full((64, 32, 2), 8), num_experts=8))
    result = run("solve", "deployment.yaml", "--trace", "trace.npz", "--json", cwd=folder)
    assert result.code == 3
    (problem,) = result.problems()
    assert problem["file"] == "trace.npz"
    assert "8" in problem["message"]


def test_wrong_choices_are_told_with_all_other_faults(folder: Path) -> None:
    """A column of a wrong length, an expert 8 of 8 and an expert chosen twice; another file without layers."""
    ids = np.tile(np.array([0, 1]), (64, 32, 1))
    ids[3, 5] = [8, 1]
    ids[7, 2] = ids[9, 2] = [4, 4]
    (folder / "a.npz").write_bytes(saved(expert_ids=ids, num_experts=8, step_id=np.arange(63)))
    (folder / "b.npz").write_bytes(saved(expert_ids=ids, num_experts=8))
    (folder / "c.npz").write_bytes(saved(expert_ids=ids[:, :, :1], num_experts=8))
    for traces, more in ((["a.npz", "b.npz"], {"step_id"}), (["b.npz"], set()), (["b.npz", "c.npz"], {"top-1"})):
        options = [word for name in traces for word in ("--trace", name)]
        result = run("solve", "deployment.yaml", *options, "--json", cwd=folder)
        assert result.code == 3
        for name in traces:
            said = [problem["message"] for problem in result.problems() if problem["file"] == name]
            assert any("expert id 8 in layer 5 of token 3" in message for message in said), (traces, said)
            if name != "c.npz":
                assert any("expert 4 is chosen twice in layer 2 of token 7 (2 token" in message for message in said)
        assert all(word in result.err for word in more)


def test_odd_numbers_of_gpus_and_experts(folder: Path) -> None:
    """3 GPUs share 8 experts unevenly; 8 GPUs hold one each; both plans are right."""
    deployment_file(folder, DEPLOYMENT_TEXT.replace("solve: {split: {ep: 4}}\n", ""))
    three = run("solve", "deployment.yaml", "--gpus", "3", "--split", "ep=3", "-o", "3.json", "--json", cwd=folder)
    placement = three.json()["placement"]
    assert placement["slots_per_rank"] == 3
    assert all(sorted(row) == [-1, *range(8)] for row in placement["physical_to_logical"])
    options = ["--topology", "1 x hgx-h100", "--split", "ep=8", "-o", "8.json", "--json"]
    eight = run("solve", "deployment.yaml", *options, cwd=folder)
    assert eight.json()["placement"]["slots_per_rank"] == 1
    assert run("check", "3.json", "8.json", cwd=folder).code == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema": "ep-plan/plan/1"}', b"x" * 100])
def test_what_is_no_plan_is_3(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    result = run("show", "plan.json", cwd=tmp_path)
    assert (result.code, result.out) == (3, "")
    assert "plan.json" in result.err
