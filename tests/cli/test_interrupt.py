"""Ctrl-C keeps the best plan so far; no process and no part of a file is left behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from planner.solve.interrupts import MESSAGE
from tests.cli.running import ROOT, Result, deployment_file, files_in, plan_of, run
from tests.cli.terminal import TerminalRun

PINS = ("--split", "tp=1,pp=1,ep=32")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")


def assert_kept(folder: Path, result: Result) -> None:
    """The best plan so far was written, is right, and says that it was interrupted."""
    assert result.code == 0
    assert files_in(folder) == {"plan.json"}
    plan = plan_of(folder / "plan.json")
    assert (plan.solver.status, plan.solver.stopped_by) == ("feasible", "interrupt")
    assert 0 < plan.solver.bound_s < plan.solver.objective_s
    assert any("interrupt" in note for note in plan.notes)
    assert "Ctrl-C" in result.words
    assert "wrote plan.json" in result.err


def test_while_layers_are_placed(large: Path, tmp_path: Path) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        solving.wait_for(r"placing experts.* [1-9]\d*/\d+ ")
        solving.send(signal.SIGINT, group=True)
        assert_kept(tmp_path, solving.result())
        assert solving.all_end()
    checked = run("check", "plan.json", cwd=tmp_path)
    assert checked.code == 0, checked.out


@pytest.mark.parametrize("group", [True, False])
def test_while_workers_start(large: Path, tmp_path: Path, group: bool) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        solving.wait_for("placing experts")
        solving.send(signal.SIGINT, group=group)
        assert_kept(tmp_path, solving.result())
        assert solving.all_end()


def test_while_judging_on_held_out_windows(large: Path, tmp_path: Path) -> None:
    with TerminalRun("solve", large, *PINS, "--gap", "90%", cwd=tmp_path) as solving:
        solving.wait_for("held-out")
        solving.send(signal.SIGINT, group=True)
        assert_kept(tmp_path, solving.result())
        assert solving.all_end()
    assert plan_of(tmp_path / "plan.json").held_out is None


def test_before_there_is_a_plan(large: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("older")
    with TerminalRun("solve", large, "--json", cwd=tmp_path) as solving:
        solving.wait_for("bounding splits")
        solving.send(signal.SIGINT, group=True)
        result = solving.result()
        assert solving.all_end()
    assert result.code == 130
    assert "interrupted; nothing was written" in result.err
    assert "interrupted" in result.problems()[0]["message"]
    assert files_in(tmp_path) == {"plan.json"}
    assert (tmp_path / "plan.json").read_text() == "older"


def test_while_repairs_are_looked_for(tmp_path: Path) -> None:
    """What is proved is told. Looking is slowed down by hand: each try takes a minute."""
    work = "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
    deployment_file(tmp_path, f"model: deepseek-v3\ntopology: 1 x hgx-h100\n{work}")
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import time\n"
        "import planner.solve.repairs as repairs\n"
        "real = repairs.feasible_split\n"
        "def slow(*arguments):\n"
        "    time.sleep(60)\n"
        "    return real(*arguments)\n"
        "repairs.feasible_split = slow\n"
    )
    path = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])
    with TerminalRun("solve", "deployment.yaml", "--json", cwd=tmp_path, PYTHONPATH=path) as solving:
        solving.wait_for("looking for repairs")
        solving.send(signal.SIGINT, group=True)
        result = solving.result()
        assert solving.all_end()
    assert result.code == 4
    (problem,) = result.problems()
    assert "no split of 8 GPUs fits" in problem["message"]
    assert "the fullest, with" in problem["hint"]
    assert problem["hint"].endswith("repairs were not all tried: interrupted")
    assert "interrupted; nothing was written" not in result.err


def test_the_first_is_answered_at_once(large: Path, tmp_path: Path) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        solving.wait_for(r"placing experts.* [1-9]\d*/\d+ ")
        solving.send(signal.SIGINT, group=True)
        solving.wait_for(re.escape(MESSAGE))
        assert_kept(tmp_path, solving.result())


def test_the_second_gives_up_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    """The output is a pipe that nobody reads: the finished plan waits there for the second Ctrl-C."""
    os.mkfifo(tmp_path / "pipe")
    with TerminalRun("solve", large, *PINS, "-o", "pipe", cwd=tmp_path) as solving:
        solving.wait_for(r"placing experts.* [1-9]\d*/\d+ ")
        solving.send(signal.SIGINT, group=True)
        solving.wait_for(re.escape(MESSAGE))
        solving.send(signal.SIGINT, group=True)
        result = solving.result()
        assert solving.all_end()
    assert result.code == 130
    assert "interrupted; nothing was written" in result.err
    assert files_in(tmp_path) == {"pipe"}


def test_the_second_while_the_plan_is_written_leaves_the_older_one(large: Path, tmp_path: Path) -> None:
    """Writing is slowed down by hand: each fsync takes a minute, the signal comes in the middle."""
    (tmp_path / "plan.json").write_text("older")
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os, time\n"
        "def fsync(descriptor):\n"
        "    os.write(2, b'writing the file\\n')\n"
        "    time.sleep(60)\n"
        "os.fsync = fsync\n"
    )
    path = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])
    with TerminalRun("solve", large, *PINS, cwd=tmp_path, PYTHONPATH=path) as solving:
        solving.wait_for(r"placing experts.* [1-9]\d*/\d+ ")
        solving.send(signal.SIGINT, group=True)
        solving.wait_for("writing the file")
        solving.send(signal.SIGINT, group=True)
        result = solving.result()
    assert result.code == 130
    assert (tmp_path / "plan.json").read_text() == "older"
    assert files_in(tmp_path) == {"plan.json", "slow"}


def test_the_first_while_the_plan_is_written_keeps_it(large: Path, tmp_path: Path) -> None:
    """As above, but a second long: the search is over, so the message is all that happens."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os, time\n"
        "def fsync(descriptor):\n"
        "    os.write(2, b'writing the file\\n')\n"
        "    until = time.monotonic() + 2\n"
        "    while time.monotonic() < until:\n"
        "        time.sleep(0.05)\n"
        "os.fsync = fsync\n"
    )
    path = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])
    limit = ["--time-limit", "8 s"]
    with TerminalRun("solve", large, *PINS, *limit, cwd=tmp_path, PYTHONPATH=path) as solving:
        solving.wait_for("writing the file")
        solving.send(signal.SIGINT, group=True)
        solving.wait_for(re.escape(MESSAGE))
        result = solving.result()
    assert result.code == 0
    assert plan_of(tmp_path / "plan.json").solver.stopped_by == "time_limit"


def test_twice_in_a_row(large: Path, tmp_path: Path) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        solving.wait_for(r"placing experts.* [1-9]\d*/\d+ ")
        solving.send(signal.SIGINT, group=True)
        solving.send(signal.SIGINT, group=True)
        result = solving.result()
        assert solving.all_end()
    if result.code == 0:  # both came before the first was looked at
        assert_kept(tmp_path, result)
    else:
        assert result.code == 130
        assert files_in(tmp_path) == set()


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_do_not_outlive_a_killed_program(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        assert solving.wait_for_workers()
        solving.wait_for(r"placing experts.* [1-9]\d*/")  # one cut off while it starts would say so
        solving.send(number)
        assert solving.result().code == -number
        assert solving.all_end()
    assert files_in(tmp_path) == set()


@linux_only
def test_a_killed_worker_is_told_and_not_waited_for(large: Path, tmp_path: Path) -> None:
    with TerminalRun("solve", large, *PINS, cwd=tmp_path) as solving:
        solving.kill(solving.wait_for_workers()[0])
        result = solving.result()
        assert solving.all_end()
    assert result.code == 7
    assert "worker" in result.err
    assert "memory" in result.err
    assert files_in(tmp_path) == set()


def test_a_size_is_not_told_from_plans_that_were_cut_short(tmp_path: Path) -> None:
    deployment = ROOT / "examples" / "tiny-moe" / "deployment.yaml"
    wanted = ("--target", "9000000 tok/s", "--catalogue", "hgx-h100")
    with TerminalRun("size", deployment, *wanted, cwd=tmp_path) as sizing:
        sizing.wait_for("nodes")
        sizing.send(signal.SIGINT, group=True)
        result = sizing.result()
        assert result.code == 130
        assert "interrupted" in result.err
        assert result.out == ""
        assert sizing.all_end()
