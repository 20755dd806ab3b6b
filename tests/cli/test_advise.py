"""`ep-plan advise`: the verdict of `trace info`, how often to place anew, and the drift watch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.building import EXAMPLES
from tests.cli.running import run

TINY = EXAMPLES / "tiny-moe" / "trace.npz"


def skew(seed: int) -> NDArray[np.float64]:
    """Unequal popularity of Mixtral's experts."""
    return np.random.default_rng(seed).dirichlet(np.full(8, 1.0), 32)


def counts(path: Path, share_LE: NDArray[np.float64], seed: int, windows: int = 8) -> None:
    drawn = np.random.default_rng(seed).multinomial(4000, np.tile(share_LE, (windows, 1, 1)))
    np.savez(path, counts=drawn, num_experts=8, topk=2)


def test_one_verdict_with_trace_info(tmp_path: Path) -> None:
    work = ("--phase", "prefill", "--step-tokens", 1024, "--json")
    told = run("advise", "--trace", TINY, *work, cwd=tmp_path).json()["advice"]["verdict"]
    info = run("trace", "info", TINY, *work, cwd=tmp_path).json()["verdict"]
    assert told == info
    assert told["schedules"]


@pytest.fixture(scope="module")
def in_force(mixtral_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for skewed routing."""
    folder = tmp_path_factory.mktemp("watch")
    counts(folder / "then.npz", skew(0), 0)
    done = run("replan", mixtral_plan, "--trace", "then.npz", "-o", "plan.json", "-q", cwd=folder)
    assert done.code == 0, done.err
    return folder / "plan.json"


@pytest.mark.parametrize(
    ("seed", "threshold", "state", "code"),
    [(0, "1%", "good", 0), (7, "1%", "stale", 6), (7, "90%", "good", 0)],
    ids=["the same load", "another load", "another load, but nobody minds"],
)
def test_the_drift_watch(seed: int, threshold: str, state: str, code: int, in_force: Path, tmp_path: Path) -> None:
    counts(tmp_path / "now.npz", skew(seed), 1)
    asked = ("advise", "--trace", "now.npz", "--plan", in_force, "--threshold", threshold)
    told = run(*asked, "--json", cwd=tmp_path)
    assert told.code == code, told.err
    watched = told.json()["watch"]
    assert watched["state"] == state
    assert watched["windows"] == 8
    if seed:
        assert watched["stale"] > 0.01
        assert watched["step_s"] > watched["booked_step_s"]


def test_a_single_window_is_no_evidence(in_force: Path, tmp_path: Path) -> None:
    counts(tmp_path / "now.npz", skew(7), 1, windows=1)
    told = run("advise", "--trace", "now.npz", "--plan", in_force, cwd=tmp_path)
    assert told.code == 0
    assert "insufficient evidence" in told.out
    alone = run("advise", "--trace", "now.npz", cwd=tmp_path)
    assert alone.code == 0
    assert "insufficient evidence" in alone.out


def test_wrong_usage(in_force: Path, tmp_path: Path) -> None:
    assert run("advise", cwd=tmp_path).code == 2
    assert run("advise", "--trace", TINY, "--plan", in_force, "--ranks", 4, cwd=tmp_path).code == 2
    assert run("advise", "--trace", "none.npz", cwd=tmp_path).code == 2
    assert run("advise", "--trace", TINY, "--ranks", 65, cwd=tmp_path).code == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--plan", "plan.json", "--step-tokens", "4096"), "--step-tokens: where --plan is given"),
        (("--plan", "plan.json", "--phase", "decode"), "--phase: where --plan is given"),
        (("--plan", "plan.json", "--ranks", "8", "--redundant-experts", "0"), "--ranks, --redundant-experts: where"),
        (("--threshold", "5%"), "--threshold: it is for --plan"),
    ],
)
def test_no_option_is_ignored(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """Nor one that says what is the default."""
    done = run("advise", "--trace", TINY, *options, cwd=tmp_path)
    assert done.code == 2
    assert told in done.err


@pytest.mark.parametrize("command", [("advise", "--trace"), ("trace", "info")])
def test_options_that_change_nothing_for_a_trace_are_told(command: tuple[str, ...], tmp_path: Path) -> None:
    counts(tmp_path / "counts.npz", skew(0), 0)
    with np.load(TINY) as file:
        arrays = {name: file[name] for name in file.files if name not in ("seq_id", "pos")}
    np.savez(tmp_path / "loose.npz", **arrays)
    both = ("--phase", "decode", "--step-tokens", "4096")
    of_counts = run(*command, "counts.npz", *both, cwd=tmp_path).err
    assert "--phase changes nothing: steps or windows are those that were recorded" in of_counts
    assert "--step-tokens changes nothing" in of_counts
    of_tokens = run(*command, "loose.npz", *both, cwd=tmp_path).err
    assert "--phase changes nothing: without seq_id" in of_tokens
    assert "--step-tokens" not in of_tokens
    assert "changes nothing" not in run(*command, "counts.npz", cwd=tmp_path).err
    assert "changes nothing" not in run(*command, TINY, *both, cwd=tmp_path).err
