"""Looking for repairs ends with the time limit and with Ctrl-C: what was found is told, and that not all was tried."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.cli.main import call
from planner.cost.instance import Instance
from planner.rules.grid import SearchSpace
from planner.solve import diagnosis, repairs
from planner.solve.candidates import Bounder, Candidate, all_candidates, feasible_split
from planner.solve.diagnosis import infeasible
from planner.solve.watch import GaveUpError, NoWatch
from tests import building
from tests.cli.running import deployment_file

Refused = tuple[Instance, SearchSpace, list[Candidate]]

ALL = [
    "try: without tp=1, pp=1",
    "try: 2 nodes (8 GPUs)",
    "try: GPUs of 1 GiB",
    "try: precision: {weights: fp8}",
    "try: precision: {kv_cache: fp8}",
    "try: context_length 2,032",
    "try: tokens_per_gpu 63",
]
TIME_IS_UP = "repairs were not all tried: the time limit passed"
INTERRUPTED = "repairs were not all tried: interrupted"


@pytest.fixture(scope="module")
def refused() -> Refused:
    """Four GPUs that lack a little memory for the cache."""
    on = building.topology(1, 4, of=building.gpu("620 MiB"))
    made = building.instance(building.model(layers=4), on, tokens=64, context=2048)
    space = building.space(0, tp=1, pp=1)
    return made, space, all_candidates(made, space, Bounder(made))


class Ticking:
    """Takes the place of `time`: every look at the clock takes 0.4 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = count()
        monkeypatch.setattr(diagnosis, "time", SimpleNamespace(monotonic=lambda: 0.4 * next(ticks)))


class Counting:
    """Takes the place of `feasible_split` in `repairs` and counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(repairs, "feasible_split", self)

    def __call__(self, *arguments: Any) -> object:
        """Count, and look."""
        self.calls += 1
        return feasible_split(*arguments)


class Seen(NoWatch):
    """Notes what begins and how much of it is done; may be interrupted after so many parts."""

    def __init__(self, after: int | None = None, error: type[KeyboardInterrupt] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error
        self.begun: list[tuple[str, int]] = []
        self.done = 0

    def begin(self, what: str, total: int) -> None:
        """Note it."""
        self.begun.append((what, total))

    def advance(self) -> None:
        """Count, and interrupt."""
        self.done += 1
        if self.done == self.after:
            raise self.error


def told(refused: Refused, watch: NoWatch, deadline: float | None) -> tuple[list[str], str | None]:
    """The lines that follow table and arithmetic, and what the report says ended the search for repairs."""
    error = infeasible(*refused, watch, deadline)
    hint = error.problems[0].hint.splitlines()
    assert any("✗ needs" in line for line in hint)
    assert len(error.data["candidates"]) == len(refused[2])
    lines = [line for line in hint if line.startswith(("try: ", "repairs were"))]
    assert hint[-len(lines) :] == lines
    stopped: str | None = error.data["repairs_stopped_by"]
    return lines, stopped


def test_all_without_a_limit_and_somebody_sees_it(refused: Refused) -> None:
    seen = Seen()
    assert told(refused, seen, None) == (ALL, None)
    assert seen.begun == [("looking for repairs", seen.done)]


def test_all_within_a_limit(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    Ticking(monkeypatch)
    assert told(refused, NoWatch(), 1000.0) == (ALL, None)


def test_a_limit_ends_the_search(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try looks at the clock at least once: within the 2 s that are left in any case there are at most 5."""
    unlimited = Counting(monkeypatch)
    told(refused, NoWatch(), None)
    monkeypatch.undo()
    Ticking(monkeypatch)
    limited = Counting(monkeypatch)
    found, stopped = told(refused, NoWatch(), 0.0)
    assert stopped == "time_limit"
    assert limited.calls <= 5 < unlimited.calls
    assert found[-1] == TIME_IS_UP
    assert found[:-1] == ALL[: len(found) - 1]
    assert found[:-1], "some repair is found in the least time"


def test_ctrl_c_ends_the_search_and_keeps_what_is_proved(refused: Refused) -> None:
    assert told(refused, Seen(after=2), None) == ([*ALL[:2], INTERRUPTED], "interrupt")


def test_giving_up_gives_up(refused: Refused) -> None:
    with pytest.raises(GaveUpError):
        infeasible(*refused, Seen(after=2, error=GaveUpError), None)


# --- the commands -----------------------------------------------------------------------------------

LACKING = (
    "model: mixtral-8x7b\ntopology: 1 x hgx-h100\n"
    "workload: {phase: decode, tokens_per_gpu: 256, context_length: 32768}\n"
)


def refused_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, Any]:
    """Exit code 4, on standard error and as JSON."""
    assert call([*words, "--json"]) == 4
    shown = capsys.readouterr()
    return shown.err, json.loads(shown.out)


def test_solve_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deployment_file(tmp_path, LACKING)
    words = ["solve", str(deployment), "-o", str(tmp_path / "plan.json")]
    text, data = refused_by(words, capsys)
    assert "repairs were" not in text
    assert data["repairs_stopped_by"] is None
    ticks = count()
    monkeypatch.setattr(diagnosis, "time", SimpleNamespace(monotonic=lambda: 1e9 * next(ticks)))
    text, data = refused_by([*words, "--time-limit", "1 h"], capsys)
    assert TIME_IS_UP in text
    assert data["repairs_stopped_by"] == "time_limit"
    assert TIME_IS_UP in data["problems"][0]["hint"]
    assert not (tmp_path / "plan.json").exists()


def test_what_if_and_check_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deployment_file(tmp_path, LACKING + "solve: {time_limit: 1 h}\nchecks: {min_memory_headroom: 1%}\n")
    ticks = count()
    monkeypatch.setattr(diagnosis, "time", SimpleNamespace(monotonic=lambda: 1e9 * next(ticks)))
    text, _ = refused_by(["what-if", str(deployment), "--set", "workload.tokens_per_gpu=255"], capsys)
    assert TIME_IS_UP in text
    assert call(["check", str(deployment)]) == 6
    assert TIME_IS_UP in capsys.readouterr().out


def test_ctrl_c_ends_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not meant for the repairs of one file alone: others may follow."""
    deployment = deployment_file(tmp_path, LACKING + "checks: {min_memory_headroom: 1%}\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repairs, "feasible_split", interrupted)
    assert call(["check", str(deployment)]) == 130
