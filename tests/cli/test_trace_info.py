"""`ep-plan trace info`, `split` and `synth` as a user meets them: verdicts on traces whose truth is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.building import EXAMPLES
from tests.cli.running import files_in, run

TINY = EXAMPLES / "tiny-moe" / "trace.npz"
FIGURES = ("--experts", 32, "--top-k", 4, "--layers", 3, "--tokens", 32_768, "--domains", 1, "-q")
# Whole sequences in file order, sixteen windows: each is one sixteenth of the synthetic trace.
WINDOWS = ("--phase", "prefill", "--step-tokens", 2048)


def test_stated_figures_come_back_measured(tmp_path: Path) -> None:
    """Of one trace with everything in it: what `synth` was told is what `info` tells."""
    figures = ("--skew", 4, "--domains", 4, "--domain-correlation", 0.5, "--drift", "none", "--lift", 2)
    done = run("trace", "synth", "--experts", 64, "--top-k", 4, "--layers", 4, *figures, "-o", "s.npz", cwd=tmp_path)
    assert done.code == 0, done.err
    told = run("trace", "info", "s.npz", "--phase", "prefill", "--json", cwd=tmp_path).json()
    assert np.mean(told["domains"]["max_over_mean"]) == pytest.approx(4, rel=0.05)
    assert told["domains"]["mean_correlation"] == pytest.approx(0.5, abs=0.1)  # of loads, stated for their logarithms
    assert told["drift"]["lag_correlation"][0]["correlation"] > 0.97
    lifts = [layer["p99_lift"] for layer in told["co_activation"]]  # partners are 5 % of the pairs
    assert np.mean(lifts) == pytest.approx(2, rel=0.25)
    assert told["verdict"]["answer"] == "recommended"


def verdict(folder: Path, *synth: object) -> Any:
    done = run("trace", "synth", *FIGURES, *synth, "-o", "known.npz", cwd=folder)
    assert (done.code, done.out, done.err) == (0, "", "")
    told = run("trace", "info", "known.npz", *WINDOWS, "--json", cwd=folder)
    assert told.code == 0, told.err
    document = told.json()
    assert document["windows"]["count"] == 16
    return document["verdict"]


@pytest.mark.parametrize(
    ("figures", "answer", "holds"),
    [
        (("--skew", 4), "recommended", "yes"),
        (("--skew", 1, "--lift", 1), "not_worth_it", "unknown"),
        (("--skew", 4, "--drift", 0), "not_worth_it", "unknown"),
    ],
    ids=["stationary skew", "uniform", "hot experts move every window"],
)
def test_known_truths(figures: tuple[object, ...], answer: str, holds: str, tmp_path: Path) -> None:
    found = verdict(tmp_path, *figures)
    assert (found["answer"], found["static_holds"], found["net_benefit"]) == (answer, holds, "unknown")


def test_one_window_is_insufficient_evidence(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", counts=np.arange(1, 65).reshape(1, 2, 32), num_experts=32, topk=4)
    told = run("trace", "info", "one.npz", cwd=tmp_path)
    assert told.code == 0
    assert "balancing insufficient evidence" in told.words
    assert "must be tried on at least 2 windows" in told.words


def test_less_than_two_steps_are_insufficient_evidence(tmp_path: Path) -> None:
    """Windows shorter than a step are unequal by chance, and copies would seem to help."""
    ids = np.random.default_rng(0).random((600, 2, 8)).argsort(axis=2)[:, :, :2]
    np.savez(tmp_path / "short.npz", expert_ids=ids, num_experts=8)
    told = run("trace", "info", "short.npz", cwd=tmp_path)
    assert told.code == 0
    assert "balancing insufficient evidence" in told.words
    assert "600 tokens are 0.1 steps of 4,096" in told.words
    told = run("trace", "info", "short.npz", "--step-tokens", 32, "--json", cwd=tmp_path)
    assert len(told.json()["judged_window_tokens"]) == 19


def test_traps_are_told_beside_the_figures(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).random((6000, 3, 64)).argsort(axis=2)[:, :, :4]
    ids[::5] = ids[0]
    ids[:, 1] = 0
    np.savez(tmp_path / "bad.npz", expert_ids=ids, num_experts=64)
    told = run("trace", "info", "bad.npz", cwd=tmp_path)
    assert told.code == 0
    assert "layers 1: every token chose expert 0 only" in told.err
    assert "20% of the tokens chose the very same experts in all layers [dummy-tokens]" in told.err
    counts = np.random.default_rng(0).integers(50, 99, (3, 2, 32)) * 4
    np.savez(tmp_path / "counts.npz", counts=counts, num_experts=32, topk=1)
    assert "multiples of 4 [double-count]" in run("trace", "info", "counts.npz", cwd=tmp_path).err


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_report_fits_the_terminal(width: int, tmp_path: Path) -> None:
    told = run("trace", "info", TINY, cwd=tmp_path, env={"COLUMNS": str(width), "NO_COLOR": "1"})
    lines = [line.rstrip() for line in told.out.splitlines()]
    assert max(map(len, lines)) <= width
    assert "\x1b" not in told.out
    (head,) = [line for line in lines if line.startswith("layer ")]
    assert head.split() == ["layer", "ranks", "experts", "Gini", "moved", "never", "hottest", "(share)"]
    hottest = [line for line in lines if line.endswith("%)") and line.count(",") == 4]
    assert len(hottest) == 8  # none is broken over two lines


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 1), (3, 3)])
def test_very_few_experts(experts: int, top_k: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).random((100, 2, experts)).argsort(axis=2)[:, :, :top_k]
    np.savez(tmp_path / "few.npz", expert_ids=ids, num_experts=experts)
    assert run("trace", "info", "few.npz", "--json", cwd=tmp_path).json()["num_experts"] == experts


def test_one_of_a_kind_is_no_plural(tmp_path: Path) -> None:
    figures = ("--experts", 1, "--top-k", 1, "--layers", 1, "--skew", 1, "--lift", 1, "--domains", 1)
    made = run("trace", "synth", *figures, "--tokens", 64, "-o", "one.npz", cwd=tmp_path)
    assert made.err == "wrote one.npz: 64 tokens, 1 layer, 1 expert\n"
    told = run("trace", "info", "one.npz", "--ranks", 1, "--nodes", 1, cwd=tmp_path)
    assert told.code == 0, told.err
    assert re.findall(r"(?<![\w-])1 [a-z]+s\b", f"{told.words} {told.err}") == []
    plural = run("trace", "synth", "--tokens", 64, "-o", "more.npz", cwd=tmp_path)
    assert plural.err == "wrote more.npz: 64 tokens, 8 layers, 64 experts\n"


def test_the_report_tells_everything(tmp_path: Path) -> None:
    told = run("trace", "info", TINY, "--nodes", 2, "--ranks", 4, cwd=tmp_path)
    assert (told.code, told.err) == (0, "")
    for part in ("24,576 tokens in 96 sequences", "8 MoE layers (0..7), 64 experts, top-6", "chance alone:",
                 "correlation of windows", "stay hot in the next window", "lift of pairs", "next traced layer",
                 "2 nodes a token visits", "between domains:", "on 4 ranks", "load of experts 0..63", "balancing",
                 "static plan", "net benefit unknown"):  # fmt: skip
        assert part in told.words, part
    assert max(len(line) for line in told.out.splitlines()) <= 100
    assert run("trace", "info", TINY, "-q", cwd=tmp_path).out == ""
    assert files_in(tmp_path) == set()


def test_the_same_as_data(tmp_path: Path) -> None:
    document = run("trace", "info", TINY, "--json", cwd=tmp_path).json()
    assert document["schema"] == "ep-plan/trace-info/1"
    assert (document["tokens"], document["sequences"], document["num_experts"], document["topk"]) == (24576, 96, 64, 6)
    assert [nodes["nodes"] for nodes in document["nodes"]] == [2, 4]
    assert len(document["experts"]["layers"]) == len(document["co_activation"]) == 8
    assert len(document["next_layer"]) == 7
    with np.load(TINY) as trace:
        ids = trace["expert_ids"][:, 0].astype(int)
    share = np.bincount(ids.reshape(-1), minlength=64) / ids.size
    assert document["experts"]["shares"][0] == pytest.approx(share.tolist())
    assert document["experts"]["layers"][0]["hottest"][0] == int(share.argmax())


def test_wrong_requests(tmp_path: Path) -> None:
    assert run("trace", "info", "nowhere.npz", cwd=tmp_path).code == 2
    assert run("trace", "info", TINY, "--ranks", 65, cwd=tmp_path).code == 2
    assert run("trace", "info", TINY, "--ranks", 8, "--redundant-experts", 3, cwd=tmp_path).code == 2
    assert run("trace", "info", TINY, "--nodes", 65, cwd=tmp_path).code == 2
    (tmp_path / "text.npz").write_text("no zip")
    assert run("trace", "info", "text.npz", cwd=tmp_path).code == 3
    done = run("trace", "synth", "--like", TINY, "--skew", 3, cwd=tmp_path)
    assert done.code == 2
    assert "--skew cannot be given with --like" in done.err
    assert run("trace", "synth", "--skew", 100, cwd=tmp_path).code == 2
    for wrong in (("--drift", "sideways"), ("--domain-correlation", "nan"), ("--domain-correlation", 1.5)):
        done = run("trace", "synth", *wrong, cwd=tmp_path)
        assert done.code == 2
        assert "a correlation from 0 to 1" in done.err
    assert files_in(tmp_path) == {"text.npz"}


def test_no_good_trace_is_made_out_of_a_bad_one(tmp_path: Path) -> None:
    """`synth --like` refuses what `info` refuses, in the same words."""
    ids = np.random.default_rng(0).random((4096, 2, 16)).argsort(axis=2)[:, :, :4]
    for bad in (np.full_like(ids, -1), np.where(np.arange(4096)[:, None, None] < 300, -1, ids)):
        np.savez(tmp_path / "bad.npz", expert_ids=bad, num_experts=16)
        told = run("trace", "info", "bad.npz", cwd=tmp_path)
        made = run("trace", "synth", "--like", "bad.npz", "-o", "made.npz", cwd=tmp_path)
        assert (told.code, made.code) == (3, 3)
        assert "no expert is chosen in layer 0 by any token of window 0" in told.err
        assert made.err == told.err.removesuffix(".\n") + "; nothing was written.\n"
        assert files_in(tmp_path) == {"bad.npz"}


def with_odd_names(folder: Path) -> None:
    """A trace of two domains, one of whose names would colour the terminal and break the line."""
    ids = np.random.default_rng(0).random((4096, 2, 16)).argsort(axis=2)[:, :, :4]
    names = np.array(["\x1b[31mred\nline", "plain"])
    np.savez(
        folder / "odd.npz", expert_ids=ids, num_experts=16, domain_id=np.arange(4096) // 64 % 2, domain_names=names
    )


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with_odd_names(tmp_path)
    shown = r"\x1b[31mred\nline"
    told = run("trace", "info", "odd.npz", cwd=tmp_path, env={"COLUMNS": "200"})
    assert (told.code, told.err) == (0, "")
    assert f"most between {shown} and plain" in told.out
    assert "\x1b" not in told.out
    assert run("trace", "info", "odd.npz", "--json", cwd=tmp_path).json()["domains"]["names"] == [shown, "plain"]
    told = run("trace", "split", "odd.npz", "--by", "domain", cwd=tmp_path)
    assert told.code == 2
    assert told.err.endswith(f"\n  --held-out with some of: {shown}, plain\n")
    assert "\x1b" not in told.err


@pytest.mark.parametrize("given", [r"\x1b[31mred\nline", "\x1b[31mred\nline"], ids=["as shown", "as it is"])
def test_a_domain_is_held_out_by_the_name_that_is_shown(given: str, tmp_path: Path) -> None:
    with_odd_names(tmp_path)
    told = run("trace", "split", "odd.npz", "--by", "domain", "--held-out", given, cwd=tmp_path)
    assert told.err.splitlines() == [
        r"wrote odd.planning.npz: without \x1b[31mred\nline, 50.0%",
        "wrote odd.held-out.npz: the rest, 50.0%",
    ]
    with np.load(tmp_path / "odd.held-out.npz") as part:
        assert set(part["domain_id"].tolist()) == {0}


@pytest.mark.parametrize(("part", "rule"), [("0%", "above 0"), ("100%", "below 100%"), ("120%", "below 100%")])
@pytest.mark.parametrize("by", ["time", "sequence"])
def test_a_part_leaves_something_on_both_sides(part: str, rule: str, by: str, tmp_path: Path) -> None:
    told = run("trace", "split", TINY, "--by", by, "--part", part, "-o", "parts", cwd=tmp_path)
    assert (told.code, f"'--part': {part}: must be {rule}" in told.err) == (2, True)
    assert files_in(tmp_path) == set()


def test_a_part_is_not_for_domains(tmp_path: Path) -> None:
    told = run("trace", "split", TINY, "--by", "domain", "--held-out", "chinese", "--part", "50%", cwd=tmp_path)
    assert (told.code, "--part: by domain whole domains are held out" in told.err) == (2, True)
    assert files_in(tmp_path) == set()


def test_both_parts_of_a_split_are_traces(tmp_path: Path) -> None:
    done = run("trace", "split", TINY, "--by", "domain", "--held-out", "chinese", "-o", "parts", cwd=tmp_path)
    assert done.code == 0, done.err
    assert files_in(tmp_path) == {"parts.planning.npz", "parts.held-out.npz"}
    planning, held_out = (
        run("trace", "info", f"parts.{name}.npz", "--json", cwd=tmp_path).json() for name in ("planning", "held-out")
    )
    assert planning["tokens"] + held_out["tokens"] == 24576
    assert "chinese" not in planning["domains"]["names"]
    assert held_out["domains"] is None  # one domain only
    done = run("trace", "split", TINY, "--held-out", "chinese", cwd=tmp_path)
    assert (done.code, "add --by domain" in done.err) == (2, True)
