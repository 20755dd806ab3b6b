"""What `ep-plan check` prints for machines: valid, complete, and steered by nothing that stands in a file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import pytest

from planner.errors import InputError, Place, Problem
from planner.inputs.printable import printable
from planner.report.check_github import annotation_lines, append_summary, without_commands
from planner.report.check_junit import junit_xml
from planner.report.check_markdown import escaped, markdown
from planner.report.check_report import checked_json, render_checked
from planner.report.style import console
from planner.review.checked import Checked
from planner.review.compare_golden import Compared
from planner.review.plan_changes import Row

HOSTILE = [
    "a\n::error::b",
    "::set-output name=x::1",
    "\r\n::add-mask::%0A",
    "x | y | z",
    "`code` **bold** [link](http://example.org) <script>alert(1)</script>",
    "</code></details>",
    "]]> & <failure/> \x00 \x0b \ufffe \ud800",
    "@someone #1 www.example.org https://example.org",
    "\x1b[31mred",
    "100 %, 50%25",
    "name,title=x:y",
]


def result(text: str = "told", *, golden: bool = False) -> Checked:
    """A file with one finding."""
    rows = (Row(text, text, text, text),)
    compared = Compared(Path("plan.golden.json"), "regression", (text,), (text,), rows=rows, to_do=text)
    return Checked(Path(text), "deployment", (text,), compared=compared if golden else None, seconds=0.5)


def broken(text: str = "told") -> Checked:
    """A file that could not be read."""
    problems = [Problem(text, Place("a.yaml", 3, 7, "links[0]"), text), Problem(text)]
    return Checked(Path("a.yaml"), "deployment", error=InputError(problems))


GOOD = Checked(Path("good.yaml"), "deployment", summary="fine", notes=("a note",))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# --- GitHub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_an_annotation_is_one_command_and_says_what_it_should(text: str) -> None:
    for one in (result(text, golden=True), broken(text)):
        for line in annotation_lines([one]):
            assert not re.search(r"[\r\n]", line)
            found = re.fullmatch(r"::error ((?:[a-z]+=[^,:]*,?)+)::(.*)", line)
            assert found, line
            properties = dict(pair.split("=", 1) for pair in found[1].split(","))
            assert set(properties) <= {"file", "title", "line", "col"}
            told = found[2].replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
            assert text in told


def test_annotations_name_place_and_repair() -> None:
    first, second = annotation_lines([broken(), GOOD])
    assert first == "::error file=a.yaml,line=3,col=7,title=ep-plan check::links[0]: told%0Atold"
    assert second == "::error file=a.yaml,title=ep-plan check::told"


def test_paths_are_those_of_the_checkout(tmp_path: Path) -> None:
    inside = Checked(tmp_path / "a" / "deployment.yaml", "deployment", ("x",))
    (line,) = annotation_lines([inside], tmp_path)
    assert "file=a/deployment.yaml," in line


def test_a_golden_plan_worth_renewing_is_a_notice() -> None:
    better = Compared(Path("plan.golden.json"), "better", notes=("2 % faster",), to_do="to keep it: x")
    (line,) = annotation_lines([Checked(Path("d.yaml"), "deployment", compared=better)])
    assert line == "::notice file=d.yaml,title=ep-plan check::2 %25 faster%0Ato keep it: x"


def test_the_report_for_people_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with without_commands():
        render_checked([result(text, golden=True) for text in HOSTILE], console(), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    stop = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", lines[0])
    assert stop
    assert lines[-1] == f"::{stop[1]}::"
    assert sum(stop[1] in line for line in lines) == 2
    assert not any(line.lstrip().startswith(("::error", "::add-mask")) for line in lines[1:-1])
    assert "\x1b" not in "".join(lines)


def test_the_summary_is_added_to_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    append_summary([GOOD])
    assert summary.read_text().startswith("before\n## ep-plan check: 1 of 1 good\n")


def test_no_summary_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    append_summary([GOOD])
    assert "GITHUB_STEP_SUMMARY is not set" in capsys.readouterr().err


# --- JUnit ----------------------------------------------------------------------------------------

ATTRIBUTES = {
    "testsuites": set(),
    "testsuite": {"id", "name", "package", "timestamp", "hostname", "tests", "failures", "errors", "time"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
}


@pytest.mark.parametrize("text", HOSTILE)
def test_junit_is_well_formed_whatever_stands_in_it(text: str) -> None:
    raw = junit_xml([result(text, golden=True), broken(text), GOOD], NOW, text)
    root = ET.fromstring(raw.encode("utf-8"))
    (suite,) = root
    assert [child.tag for child in suite] == ["properties", *["testcase"] * 3, "system-out", "system-err"]
    for element in root.iter():
        assert set(element.attrib) == ATTRIBUTES.get(element.tag, set()), element.tag


def test_junit_counts_and_tells() -> None:
    (suite,) = ET.fromstring(junit_xml([result(), broken(), GOOD], NOW, "host"))
    figures = {key: suite.get(key) for key in ("tests", "failures", "errors", "time", "timestamp")}
    assert figures == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "time": "0.500",
        "timestamp": "2026-01-02T03:04:05",
    }
    failed, unread, good = suite.findall("testcase")
    assert [child.tag for child in failed] == ["failure"]
    assert [child.tag for child in unread] == ["error"]
    assert unread[0].get("type") == "InputError"
    assert list(good) == []
    assert "a note" in (suite.findtext("system-out") or "")


# --- Markdown -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_text_and_obeys_none_of_it(text: str) -> None:
    page = markdown([result(text, golden=True), broken(text)])
    plain = re.sub(r"</?(code|details|summary)( open)?>", "", page)
    assert "<" not in plain
    for line in page.splitlines():
        assert line.count("|") in (0, 4, 5), line
    assert page.count("<code>") == page.count("</code>")
    assert page.count("<details") == page.count("</details>") == 2
    assert not re.search(r"[`*\[\]]|https?://|www\.", plain)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_reads_as_it_is(text: str) -> None:
    inside = escaped(text).removeprefix("<code>").removesuffix("</code>")
    assert unescape(inside) == printable(text)


def test_markdown_leaves_good_files_short() -> None:
    assert "<details" not in markdown([GOOD])
    assert "✅" in markdown([GOOD])
    assert "told" in markdown([result()])


# --- people and data ------------------------------------------------------------------------------


def test_quiet_shows_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    render_checked([GOOD, result()], console(), quiet=True)
    out = capsys.readouterr().out
    assert "good.yaml" not in out
    assert "1 of 2 good" in out
    render_checked([GOOD], console(), quiet=True)
    assert capsys.readouterr().out == ""


def test_data_holds_the_diff() -> None:
    (file,) = checked_json([result(golden=True)])["files"]
    assert file["golden"]["status"] == "regression"
    assert file["golden"]["changes"] == [{"what": "told", "golden": "told", "now": "told", "change": "told"}]
    assert file["findings"] == ["told", "told"]
