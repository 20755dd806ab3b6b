"""`ep-plan replan` as a user meets it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.plan.plan_file import read_plan
from tests.cli.running import files_in, run


def counts(path: Path, share_LE: NDArray[np.float64], seed: int) -> None:
    """Eight windows of Mixtral's routing."""
    drawn = np.random.default_rng(seed).multinomial(4000, np.tile(share_LE, (8, 1, 1)))
    np.savez(path, counts=drawn, num_experts=8, topk=2)


def test_moves_are_told_written_and_good(mixtral_plan: Path, tmp_path: Path) -> None:
    counts(tmp_path / "now.npz", np.random.default_rng(1).dirichlet(np.full(8, 1.0), 32), 0)
    asked = ("replan", mixtral_plan, "--trace", "now.npz", "--budget", 20)
    told = run(*asked, "-o", "next.json", "--json", cwd=tmp_path)
    assert told.code == 0, told.err
    document = told.json()
    best = document["answers"][document["best"]]
    assert 0 < best["moves"] <= 20
    assert document["answers"][0]["moves"] == 0
    before, after = read_plan(mixtral_plan), read_plan(tmp_path / "next.json")
    assert after.predicted.step_s == best["step_s"]
    assert after.split == before.split
    moved = 0
    for one, other in zip(before.placement.physical_to_logical, after.placement.physical_to_logical, strict=True):
        ranks = zip(np.reshape(one, (4, -1)).tolist(), np.reshape(other, (4, -1)).tolist(), strict=True)
        moved += sum(len(set(new) - set(old)) for old, new in ranks)
    assert moved == best["moves"]
    assert run("check", "next.json", cwd=tmp_path).code == 0
    words = run(*asked, cwd=tmp_path).words
    assert f"move {best['moves']} experts" in words


def test_nothing_is_written_where_nothing_moves(mixtral_plan: Path, tmp_path: Path) -> None:
    counts(tmp_path / "even.npz", np.full((32, 8), 1 / 8), 0)
    told = run("replan", mixtral_plan, "--trace", "even.npz", "-o", "next.json", cwd=tmp_path)
    assert told.code == 0, told.err
    assert "do nothing" in told.out
    assert "next.json was not written" in told.err
    assert files_in(tmp_path) == {"even.npz"}


def test_wrong_usage(mixtral_plan: Path, tmp_path: Path) -> None:
    assert run("replan", mixtral_plan, cwd=tmp_path).code == 2
    assert run("replan", mixtral_plan, "--trace", "none.npz", cwd=tmp_path).code == 2
    counts(tmp_path / "now.npz", np.full((32, 8), 1 / 8), 0)
    assert run("replan", mixtral_plan, "--trace", "now.npz", "-o", "now.npz", cwd=tmp_path).code == 2
    np.savez(tmp_path / "other.npz", counts=np.ones((4, 2, 16), int), num_experts=16, topk=2)
    assert run("replan", mixtral_plan, "--trace", "other.npz", cwd=tmp_path).code == 3


def test_a_trace_counts_once(mixtral_plan: Path, tmp_path: Path) -> None:
    """Named twice, its windows would be judged by placements that were made from them."""
    counts(tmp_path / "now.npz", np.full((32, 8), 1 / 8), 0)
    twice = ("--trace", "now.npz", "--trace", "./now.npz")
    asked: list[tuple[object, ...]] = [
        ("replan", mixtral_plan, *twice),
        ("advise", *twice),
        ("advise", "--plan", mixtral_plan, *twice),
        ("compare", mixtral_plan, *twice),
        ("trace", "info", "now.npz", "./now.npz"),
    ]
    for arguments in asked:
        told = run(*arguments, cwd=tmp_path)
        assert told.code == 2, arguments
        assert "now.npz is the same file as now.npz" in told.err


@pytest.mark.parametrize(("windows", "part"), [(2, "half"), (3, "third"), (4, "quarter"), (7, "quarter")])
def test_few_windows_judge_in_as_many_parts(windows: int, part: str, mixtral_plan: Path, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).multinomial(4000, np.full((windows, 32, 8), 1 / 8))
    np.savez(tmp_path / "now.npz", counts=drawn, num_experts=8, topk=2)
    told = run("replan", mixtral_plan, "--trace", "now.npz", "--budget", 0, cwd=tmp_path)
    assert f"{windows} windows; each {part} of them judges" in told.words


def test_what_is_odd_about_a_trace_is_told(mixtral_plan: Path, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).multinomial(4000, np.full((4, 30, 8), 1 / 8))
    drawn[2, 1, 0] += 100
    np.savez(tmp_path / "odd.npz", counts=drawn, layer_ids=np.arange(30), num_experts=8, topk=2, mood=1)
    for asked in (("replan", mixtral_plan, "--budget", 0), ("advise",), ("advise", "--plan", mixtral_plan)):
        told = run(*asked, "--trace", "odd.npz", cwd=tmp_path)
        assert re.search(r"warning: .*odd\.npz.*mood", told.err), asked
        assert "[token-sum]" in told.err, asked
        assert ("30 of 32 MoE layers" in told.err) == (asked[0] == "replan")
    drawn = np.random.default_rng(0).multinomial(4000, np.full((4, 32, 8), 1 / 8))
    np.savez(tmp_path / "more.npz", counts=drawn, num_experts=8, topk=2, mood=1)
    told = run("compare", mixtral_plan, mixtral_plan, "--trace", "more.npz", "--json", cwd=tmp_path)
    assert told.err.count("mood") == 1
    assert "mood" in told.json()["plans"][0]["warnings"][0]
