"""`ep-plan show --html`: one well-formed file that asks for nothing, trusts no text, says what the terminal says."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.plan.plan import Plan
from planner.plan.plan_file import read_plan
from planner.report import plan_texts
from planner.review.unbooked import Traffic, Unbooked, unbooked
from tests.cli.running import TIMEOUT_S, example, files_in, run, solved

pytest.importorskip("vl_convert", reason="the extra `report` is not installed")
from planner.report.html import grids
from planner.report.html.page import html_report

VOID = {"meta", "link", "input", "br", "img", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def each(self, attribute: str) -> list[str]:
        return [values[attribute] for _, values in self.tags if attribute in values]


@pytest.fixture(scope="module")
def tiny_page(tiny_plan: Path) -> Page:
    return Page(html_report(read_plan(tiny_plan), unbooked(read_plan(tiny_plan), tiny_plan)))


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Plan:
    """A plan with other words in it."""
    data = json.loads(path.read_text())
    change(data)
    return Plan.model_validate_json(json.dumps({key: value for key, value in data.items() if key != "schema"}))


def hold_nothing_that_asks(page: Page) -> None:
    """No script, no frame, no address of anything outside, and a policy that forbids it besides."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base", "form", "img", "image", "foreignobject"}
    assert all(link.startswith("#") or link == "data:," for link in page.each("href"))
    assert not page.each("src") + page.each("xlink:href") + page.each("srcset")
    for tag, values in page.tags:
        for name, value in values.items():
            assert not name.startswith("on"), (tag, name)
            if name != "xmlns":
                assert "http" not in value or name == "http-equiv", (tag, name, value)
            assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)", value))
    policy = next(values["content"] for tag, values in page.tags if values.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy
    assert "unsafe-eval" not in policy


def test_the_page_asks_for_nothing(tiny_page: Page) -> None:
    hold_nothing_that_asks(tiny_page)
    assert "@import" not in tiny_page.words()


def test_every_identifier_is_there_once_and_every_link_leads_to_one(tiny_page: Page) -> None:
    known = tiny_page.each("id")
    assert len(known) == len(set(known))
    assert {link[1:] for link in tiny_page.each("href") if link.startswith("#")} <= set(known)


def test_all_parts_are_there(tiny_page: Page) -> None:
    parts = {"splits", "time", "memory", "balance", "load", "traffic", "copies", "search"}
    assert parts <= set(tiny_page.each("id"))


def test_every_chart_says_what_it_shows_and_every_mark_has_a_tooltip(tiny_page: Page) -> None:
    charts = [values for tag, values in tiny_page.tags if tag == "svg"]
    assert len(charts) >= 8
    assert all(values["role"] == "img" and values["aria-label"] for values in charts)
    told = " ".join(tiny_page.text)
    assert "plan, layer 0, EP rank 7 (GPU 7): " in told
    assert "linear layout, layer 0, EP rank 0 (GPU 0): " in told
    assert "plan, GPU 0 to GPU 7: " in told


def test_it_says_what_the_terminal_says(tiny_plan: Path, tiny_page: Page) -> None:
    plan, words = read_plan(tiny_plan), tiny_page.words()
    printed = run("show", tiny_plan, "-v", cwd=tiny_plan.parent, env={"COLUMNS": "300"}).out
    printed = " ".join(printed.split())
    told = [*(line.text for line in plan_texts.verdict(plan)), plan_texts.rests_on(plan)[1:], *plan.notes]
    told += [cell for row in plan_texts.split_rows(plan) for cell in row]
    told += [term.source for term in plan.predicted.terms]
    for text in told:
        assert " ".join(text.split()) in printed
        assert " ".join(text.split()) in words


def test_figures_of_the_grids_are_those_of_the_plan(tiny_plan: Path, tiny_page: Page) -> None:
    plan, told = read_plan(tiny_plan), " ".join(tiny_page.text)
    found = unbooked(plan, tiny_plan)
    for name, rows in (("plan", plan.predicted.rank_tokens), ("linear layout", found.linear_rank_tokens)):
        tokens_R = rows[3]
        ratio = tokens_R[5] * len(tokens_R) / sum(tokens_R)
        assert f"{name}, layer 3, EP rank 5 (GPU 5): {ratio:.3f} x mean, {tokens_R[5]:,} rows" in told
    assert sum(map(sum, found.linear_rank_tokens)) == sum(map(sum, plan.predicted.rank_tokens))


def test_text_from_the_plan_is_never_markup(tiny_plan: Path) -> None:
    def poisoned(data: dict[str, Any]) -> None:
        data["inputs"]["name"] = data["inputs"]["windows"] = data["version"] = HOSTILE
        data["inputs"]["traces"][0]["path"] = data["inputs"]["traces"][0]["sha256"] = HOSTILE
        data["notes"] = [HOSTILE]
        for record in (*data["predicted"]["terms"], *data["predicted"]["memory"][0], *data["predicted"]["windows"]):
            record["name"] = HOSTILE + record["name"]
        for record in (*data["predicted"]["terms"], *data["predicted"]["memory"][0]):
            record["source"] = HOSTILE
        for candidate in data["candidates"]:
            candidate["layout"] = HOSTILE
            words = dict.fromkeys(("rule", "value", "limit", "detail", "source"), HOSTILE)
            candidate["rules"] = [{**rule, **words} for rule in candidate["rules"]]
        data["held_out"]["how"] = HOSTILE
        data["held_out"]["imbalance"][HOSTILE] = data["held_out"]["layer_s"][HOSTILE] = 1.5
        data["baselines"][HOSTILE] = {**data["baselines"]["eplb"]}

    text = html_report(changed(tiny_plan, poisoned), HOSTILE)
    page = Page(text)
    hold_nothing_that_asks(page)
    assert "<script" not in text
    assert "<img" not in text
    assert text.count(html.escape("<script>alert(1)</script>", quote=False)) > 20
    assert HOSTILE in page.words()


def test_a_plan_without_a_trace(mixtral_plan: Path) -> None:
    page = Page(html_report(read_plan(mixtral_plan), unbooked(read_plan(mixtral_plan), mixtral_plan)))
    hold_nothing_that_asks(page)
    assert "no trace was given" in page.words()
    assert not {"load", "copies"} & set(page.each("id"))


def test_one_rank_has_nothing_to_balance(tmp_path: Path) -> None:
    plan = solved(
        example("tiny-moe", tmp_path), "--split", "ep=1,tp=1,pp=1", "--gap", "90%", "--redundant-experts", "0"
    )
    page = Page(html_report(read_plan(plan), unbooked(read_plan(plan), plan)))
    assert not {"load", "traffic", "copies"} & set(page.each("id"))
    told = "nothing to balance: one EP rank holds all experts"
    assert told[1:] in page.words()
    printed = run("show", plan, cwd=tmp_path).words
    assert told in printed
    assert "max/mean" not in printed


def test_stages_and_shared_experts(tmp_path: Path) -> None:
    plan = solved(
        example("tiny-moe", tmp_path), "--split", "pp=2,ep=2,etp=2,tp=1", "--gap", "90%", "--redundant-experts", "0"
    )
    found = unbooked(read_plan(plan), plan)
    page = Page(html_report(read_plan(plan), found))
    assert "The fullest GPU of stage 1, line by line" in page.words()
    assert found.traffic is not None
    gpus = [set(stage.gpus) for stage in read_plan(plan).stages]
    across = found.traffic.plan_GG[np.ix_(sorted(gpus[0]), sorted(gpus[1]))]
    assert not across.any()  # tokens reach experts of their own stage only
    assert "layer 7, EP rank 1 (GPUs 6, 7): " in " ".join(page.text)


def test_a_large_plan_stays_below_two_megabytes(tmp_path: Path) -> None:
    """58 MoE layers, 256 experts with 32 copies, 32 GPUs."""
    options = ("--split", "ep=32,pp=1,tp=1", "--redundant-experts", "32", "--gap", "90%")
    plan = read_plan(solved(example("deepseek-v3-32gpu", tmp_path), *options))
    rng, layers = np.random.default_rng(0), len(plan.placement.layer_ids)
    assert (layers, plan.split.ep, plan.inputs.model.moe.num_experts) == (58, 32, 256)
    tokens = [tuple(map(tuple, rng.integers(10**5, 10**6, (layers, 32)).tolist())) for _ in range(2)]
    curve = tuple(rng.uniform(1, 3, layers).tolist())
    baselines = {"linear": plan.baselines["linear"].model_copy(update={"layer_imbalance": curve})}
    full = plan.model_copy(
        update={
            "predicted": plan.predicted.model_copy(update={"rank_tokens": tokens[0], "layer_imbalance": curve}),
            "baselines": baselines,
            "inputs": plan.inputs.model_copy(update={"traced_layer_ids": plan.placement.layer_ids}),
        }
    )
    traffic = Traffic(rng.random((32, 32)) * 1e9, rng.random((32, 32)) * 1e9, np.arange(32) // 8, layers)
    text = html_report(full, Unbooked(tokens[1], traffic))
    assert text.count("<path") > 2 * 58 * 32 + 2 * 32 * 32
    assert len(text.encode()) < 2_000_000


def test_many_ranks_are_joined_and_many_gpus_shown_by_node(tiny_plan: Path) -> None:
    """What would make the page too large is drawn coarser, and the page says so."""
    plan, layers, gpus = read_plan(tiny_plan), 8, 1024
    rng = np.random.default_rng(0)
    before, after = (tuple(map(tuple, rng.integers(1, 9, (layers, gpus)).tolist())) for _ in range(2))
    wide = plan.model_copy(
        update={
            "split": plan.split.model_copy(update={"ep": gpus}),
            "predicted": plan.predicted.model_copy(update={"rank_tokens": after}),
        }
    )
    traffic = Traffic(rng.random((gpus, gpus)), rng.random((gpus, gpus)), np.arange(gpus) // 32, layers)
    load, pairs = grids.load(wide, Unbooked(before, traffic)), grids.traffic(wide, Unbooked(before, traffic))
    assert load is not None
    assert pairs is not None
    assert "Each cell stands for the most loaded of 2 neighbouring ranks." in load.says
    cells = load.charts[0].specification["data"]["values"]
    assert len(cells) == 2 * layers * gpus / 2
    first = max(after[0][:2]) / (sum(after[0]) / gpus)
    assert next(cell["value"] for cell in cells if cell["of"] == "plan") == pytest.approx(first, abs=1e-3)
    assert len(pairs.charts[0].specification["data"]["values"]) == 2 * 32 * 32
    assert any("too many for a map of pairs" in text for text in pairs.says)


def test_the_same_plan_gives_the_same_bytes(tiny_plan: Path) -> None:
    plan = read_plan(tiny_plan)
    found = unbooked(plan, tiny_plan)
    assert html_report(plan, found) == html_report(plan, found)


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_writes_the_file_and_prints_nothing_else(tiny_plan: Path, tmp_path: Path) -> None:
    result = run("show", tiny_plan, "--html", "report.html", "--json", cwd=tmp_path)
    assert (result.code, result.out, result.err) == (0, tiny_plan.read_text(), "wrote report.html\n")
    assert files_in(tmp_path) == {"report.html"}


def test_a_trace_that_is_gone_is_told_and_can_be_given(tiny_plan: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_plan, tmp_path / "plan.json")
    result = run("show", "plan.json", "--html", "report.html", cwd=tmp_path)
    assert result.code == 0
    assert "trace.npz" in result.err
    assert "--trace" in result.err
    page = Page((tmp_path / "report.html").read_text())
    assert "cannot be shown beside it" in page.words()
    trace = tiny_plan.parent / "trace.npz"
    given = run("show", "plan.json", "--html", "report.html", "--trace", trace, "-q", cwd=tmp_path)
    assert (given.code, given.out, given.err) == (0, "", "")
    other = tmp_path / "other.npz"
    shutil.copy(trace, other)
    with other.open("ab") as file:
        file.write(b"x")
    assert run("show", "plan.json", "--html", "no.html", "--trace", other, cwd=tmp_path).code == 3
    assert not (tmp_path / "no.html").exists()


def test_wrong_use(tiny_plan: Path, tmp_path: Path) -> None:
    assert run("show", tiny_plan, "--trace", "trace.npz", cwd=tmp_path).code == 2
    assert run("show", tiny_plan, "--html", tmp_path, cwd=tmp_path).code == 2
    shutil.copy(tiny_plan, tmp_path / "plan.json")
    assert run("show", "plan.json", "--html", "plan.json", cwd=tmp_path).code == 2
    assert run("show", "nowhere.json", "--html", "report.html", cwd=tmp_path).code == 2
    assert files_in(tmp_path) == {"plan.json"}


@pytest.mark.parametrize("package", ["vl_convert", "jinja2"])
def test_without_the_extra_it_says_what_to_install(package: str, tiny_plan: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / f"{package}.py").write_text(f"raise ModuleNotFoundError('blocked by a test', name='{package}')\n")
    result = run("show", tiny_plan, "--html", "report.html", cwd=tmp_path, env={"PYTHONPATH": str(blocked)})
    assert result.code == 7
    assert package in result.err
    assert "ep-plan[report]" in result.err


# --- in a browser ---------------------------------------------------------------------------------------


@functools.cache
def chromium_options() -> tuple[str, ...]:
    """Headless, and without calls of its own."""
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    names += " disable-component-update disable-sync hide-scrollbars enable-logging=stderr"
    return tuple(f"--{name}" for name in names.split())


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_draws_it_without_a_complaint(tiny_plan: Path, tmp_path: Path) -> None:
    plan, width = read_plan(tiny_plan), 1000
    (tmp_path / "report.html").write_text(html_report(plan, unbooked(plan, tiny_plan)))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *chromium_options(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            f"--screenshot={tmp_path / 'shot.png'}",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    shot = (tmp_path / "shot.png").read_bytes()
    assert int.from_bytes(shot[16:20], "big") == width
    assert len(shot) > 30_000  # an empty page takes a tenth of it
