"""How output looks where it goes: pipes, terminals, narrow ones, odd encodings, readers that have gone."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from planner.report.plan_report import render_plan
from tests.cli.running import TIMEOUT_S, Result, command, environment, example, plan_of, run
from tests.cli.terminal import TerminalRun

FULL = Path("/dev/full")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def commands(tiny_plan: Path) -> list[list[str]]:
    """Command lines that print every kind of report."""
    trace = tiny_plan.parent / "trace.npz"
    return [
        ["show", str(tiny_plan), "-v"],
        ["compare", str(tiny_plan), "--trace", str(trace)],
        ["check", str(tiny_plan)],
    ]


@pytest.fixture(scope="module")
def piped(commands: list[list[str]], tiny_plan: Path) -> list[Result]:
    """What they print into a pipe."""
    return [run(*arguments, cwd=tiny_plan.parent) for arguments in commands]


def on_a_terminal(arguments: list[str], cwd: Path, **env: str) -> str:
    """What a terminal shows, escape sequences included."""
    with TerminalRun(*arguments, cwd=cwd, out_too=True, **env) as running:
        assert running.result().code == 0
        return running.raw


def test_a_pipe_gets_plain_text(piped: list[Result]) -> None:
    for result in piped:
        assert (result.code, result.err) == (0, "")
        assert "\x1b" not in result.out
        assert max(map(len, result.out.splitlines())) <= 120 or "every rule" in result.out
        assert not re.search(r" $", result.out, re.MULTILINE)


def test_every_placement_has_its_row(piped: list[Result]) -> None:
    first_words = {line.split()[0] for line in piped[1].out.splitlines() if line.strip()}
    assert {"plan", "linear", "round_robin", "eplb", "eplb_hierarchical"} <= first_words


def test_nothing_is_cut_off_in_a_pipe(mixtral_plan: Path, tmp_path: Path) -> None:
    out = run("show", mixtral_plan, cwd=tmp_path).out
    assert "…" not in out
    for label in ("plan", "proof", "balance", "memory"):
        assert re.search(rf"^{label} ", out, re.MULTILINE), label


def test_errors_and_progress_in_a_pipe_are_plain(tmp_path: Path) -> None:
    result = run("solve", example("tiny-moe", tmp_path), "-o", "plan.json", "--gap", "90%", cwd=tmp_path)
    assert "\x1b" not in result.err
    assert re.fullmatch(r"wrote plan\.json after [\d.]+ s\n", result.err)


def test_a_terminal_gets_colours_unless_told_otherwise(mixtral_plan: Path, tmp_path: Path) -> None:
    show = ["show", str(mixtral_plan)]
    assert COLOUR.search(on_a_terminal(show, tmp_path))
    assert not COLOUR.search(on_a_terminal(show, tmp_path, NO_COLOR="1"))
    assert "\x1b" not in on_a_terminal(show, tmp_path, TERM="dumb")


def test_a_narrow_terminal_is_kept_to(commands: list[list[str]], tmp_path: Path) -> None:
    for arguments in commands[:2]:
        shown = ESCAPES.sub("", on_a_terminal(arguments, tmp_path, COLUMNS="60"))
        assert max(map(len, shown.splitlines())) <= 60
        if arguments[0] == "show":
            assert re.search(r"^dispatch +[\d.]+ ms ", shown, re.MULTILINE)
            assert re.search(r"^proof ", shown, re.MULTILINE)
            assert re.search(r"^\* tp=1 dp=8 ep=8 \+8 +[\d.]+ ms ", shown, re.MULTILINE)
            assert "no room for: spare KV, tokens (--json)" in shown
        else:
            assert re.search(r"^eplb_hierarchical ", shown, re.MULTILINE)


def test_columns_are_left_out_one_by_one(tiny_plan: Path, tmp_path: Path) -> None:
    headings = {}
    for width in ("60", "66", "80"):
        lines = run("show", tiny_plan, cwd=tmp_path, env={"COLUMNS": width}).out.splitlines()
        (headings[width],) = [line.split("  ") for line in lines if line.startswith("splits")]
    kept = {width: [word.strip() for word in words if word.strip()] for width, words in headings.items()}
    assert kept["60"] == ["splits", "step", "at best", "memory left"]
    assert kept["66"] == [*kept["60"], "spare KV"]
    assert kept["80"] == [*kept["66"], "tokens"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_report_fits_its_width_and_one_screen(width: int, tiny_plan: Path, tmp_path: Path) -> None:
    lines = run("show", tiny_plan, cwd=tmp_path, env={"COLUMNS": str(width)}).out.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= (60 if width < 80 else 50)


def test_more_layers_than_columns_are_joined(tiny_plan: Path) -> None:
    """The largest of some neighbours stands for them, and the report says so."""
    plan, even = plan_of(tiny_plan), (1.0,) * 94
    baselines = {name: one.model_copy(update={"layer_imbalance": even}) for name, one in plan.baselines.items()}
    predicted = plan.predicted.model_copy(update={"layer_imbalance": (*even[1:], 3.0)})
    console = Console(file=io.StringIO(), width=80)
    render_plan(plan.model_copy(update={"baselines": baselines, "predicted": predicted}), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line.split()[0]: line.split()[1] for line in lines if re.match(r"  (linear|plan) +[▁-█]", line)}
    assert cells == {"linear": "▁" * 47, "plan": "▁" * 46 + "█"}
    assert "each cell: the largest of 2 neighbouring layers" in " ".join(lines)


def test_missing_baselines_are_explained(tmp_path: Path) -> None:
    """71 slots are not shared out equally by 8 ranks, which is all that EPLB can do."""
    options = ["--redundant-experts", "7", "--gap", "90%"]
    result = run("solve", example("tiny-moe", tmp_path), *options, cwd=tmp_path)
    assert "no EPLB beside it" in result.words
    assert "no EPLB beside it" not in run("show", tmp_path / "plan.json", "--json", cwd=tmp_path).out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_stream_without_block_characters_is_no_reason_to_fail(
    encoding: str, mixtral_plan: Path, tmp_path: Path
) -> None:
    assert run("show", mixtral_plan, cwd=tmp_path, env={"PYTHONIOENCODING": encoding}).code == 0


def after_the_reader_has_gone(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run with a pipe as output that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            command(*arguments),
            cwd=cwd,
            env=environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    finally:
        os.close(write)


def test_a_reader_that_has_gone_is_no_failure(commands: list[list[str]], tmp_path: Path) -> None:
    for arguments in [*commands[1:], [*commands[0], "--json"], ["profiles", "deepseek-v3"]]:
        done = after_the_reader_has_gone(arguments, tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_an_error_keeps_its_code_when_nobody_reads(tmp_path: Path) -> None:
    done = after_the_reader_has_gone(["show", "nowhere.json", "--json"], tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_bad_answer_stays_bad_when_nobody_reads(mixtral_plan: Path, tmp_path: Path) -> None:
    """`ep-plan check bad.json | true` in a script with pipefail must not pass."""
    plan = json.loads(mixtral_plan.read_text())
    plan["predicted"]["memory_bytes"][0] += 1
    (tmp_path / "bad.json").write_text(json.dumps(plan))
    for options in ([], ["--json"], ["-v"]):
        done = after_the_reader_has_gone(["check", "bad.json", *options], tmp_path)
        assert (done.returncode, done.stderr) == (6, b""), options


def test_an_answer_is_the_same_when_nobody_reads_errors(tmp_path: Path) -> None:
    """Both streams gone, as with `2>&1 | true`."""
    script = f"{shlex.join(command('solve', 'nowhere.yaml'))} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment(), timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_failure(closed: str, mixtral_plan: Path, tmp_path: Path) -> None:
    script = f"{shlex.join(command('check', mixtral_plan))} {closed}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment(), timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device here")
def test_a_full_disk_behind_standard_output_is_7(commands: list[list[str]], tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        for arguments in [*commands[1:], [*commands[0], "--json"], ["--help"]]:
            result = run(*arguments, cwd=tmp_path, stdout=full.fileno())
            assert result.code == 7, arguments
            assert "No space left" in result.err
