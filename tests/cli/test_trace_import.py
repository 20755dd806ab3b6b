"""`ep-plan trace import` as a user runs it, up to a plan made from what was imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.cli.running import example, files_in, run


def test_from_a_recording_to_a_plan(tmp_path: Path) -> None:
    """Requests as vLLM returns them; the plan names the trace that was imported."""
    deployment = example("mixtral-4gpu", tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "requests").mkdir()
    for index in range(20):
        ids = rng.random((40, 32, 8)).argsort(axis=2)[:, :, :2].astype(np.uint8)
        path = tmp_path / "requests" / f"{index}.npz"
        np.savez(path, routed_experts=ids, prompt_token_ids=np.arange(11), output_token_ids=np.arange(30))
    options = ["--model", "mixtral-8x7b", "--phase", "decode", "-o", "trace.npz"]
    result = run("trace", "import", "requests", *options, "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    told = result.json()
    assert (told["schema"], told["format"], told["kind"]) == ("ep-plan/import/1", "vllm", "tokens")
    assert (told["rows"], told["num_experts"], told["top_k"], len(told["layer_ids"])) == (580, 8, 2, 32)
    assert "wrote trace.npz: 580 tokens, 32 layers, 8 experts, top-2 (from vllm)" in result.err
    assert (run("trace", "import", "requests", *options, "-q", cwd=tmp_path).err, result.code) == ("", 0)
    result = run("solve", deployment, "--trace", "trace.npz", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    assert [trace["path"] for trace in result.json()["inputs"]["traces"]] == ["trace.npz"]


def test_faults_as_data(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.arange(300).reshape(2, 150) * 4)
    options = ["--top-k", 2, "--num-experts", 150, "--json"]
    result = run("trace", "import", "counts.npy", *options, cwd=tmp_path)
    assert result.code == 3
    found = [problem["message"].rpartition("[")[2] for problem in result.problems()]
    assert found == ["double-count]", "token-sum]"]
    assert all("--accept" in problem["hint"] for problem in result.problems())
    assert not (tmp_path / "trace.npz").exists()


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    """The output of each command of the group is another file than what it reads, links looked through."""
    ids = np.random.default_rng(0).random((64, 2, 8)).argsort(axis=2)[:, :, :2]
    np.savez(tmp_path / "trace.npz", expert_ids=ids, num_experts=8)
    (tmp_path / "a.planning.npz").symlink_to("trace.npz")
    before = (tmp_path / "trace.npz").read_bytes()
    for arguments in (
        ("import", "trace.npz"),
        ("import", "trace.npz", "-o", "a.planning.npz"),
        ("split", "trace.npz", "-o", "a"),
        ("split", "a.planning.npz", "-o", "a"),
        ("synth", "--like", "trace.npz"),
    ):
        result = run("trace", *arguments, cwd=tmp_path)
        assert (result.code, result.out) == (2, ""), result.err
        assert "is an input of this command" in result.err
    assert (tmp_path / "trace.npz").read_bytes() == before
    assert files_in(tmp_path) == {"trace.npz", "a.planning.npz"}


def test_fillers_are_for_recordings_of_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.full((2, 100), 4))
    result = run("trace", "import", "counts.npy", "--top-k", 2, "--filler", 99, cwd=tmp_path)
    assert (result.code, files_in(tmp_path)) == (2, {"counts.npy"})
    assert "--filler means nothing for matrix" in result.err
