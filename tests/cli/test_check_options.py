"""The options of `ep-plan check` for CI, as a user meets them: where output goes, exit codes, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.running import files_in, run
from tests.golden_box import set_deployment, set_topology, write_box


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small deployment with a golden plan; not to be changed."""
    deployment = write_box(tmp_path_factory.mktemp("options"))
    made = run("check", "--update", "box", cwd=deployment.parent.parent)
    assert made.code == 0, made.out
    assert "golden plan written" in made.out
    assert made.err == "wrote box/plan.golden.json\n"
    return deployment.parent


@pytest.fixture
def box(solved: Path, tmp_path: Path) -> Path:
    """A copy of it with a slower network."""
    copy = shutil.copytree(solved, tmp_path / "box")
    set_topology(copy, between="20 GB/s")
    return copy


def test_a_regression_for_people_machines_and_github(box: Path) -> None:
    outputs = ["--github", "--junit", "check.xml", "--markdown", "check.md"]
    env = {"GITHUB_STEP_SUMMARY": str(box.parent / "summary.md"), "GITHUB_WORKSPACE": str(box.parent)}
    result = run("check", "box", *outputs, cwd=box.parent, env=env)
    assert result.code == 6
    assert "the topology (topology.yaml) changed" in result.out
    assert "what changed" in result.out
    assert "to do: if the topology (topology.yaml) was meant to change" in result.out
    first, *_, last = result.out.splitlines()
    assert first.startswith("::stop-commands::")
    assert last.startswith("::error file=box/deployment.yaml,title=ep-plan check::the topology")
    suite = ET.parse(box.parent / "check.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    page = (box.parent / "check.md").read_text()
    assert page.startswith("## ep-plan check: 0 of 1 good")
    assert (box.parent / "summary.md").read_text() == page
    assert files_in(box) == {"config.json", "deployment.yaml", "plan.golden.json", "topology.yaml", "trace.npz"}


def test_one_json_document_with_the_diff(box: Path) -> None:
    result = run("check", "box", "--json", cwd=box.parent)
    assert result.code == 6
    (file,) = result.json()["files"]
    assert file["golden"]["status"] == "regression"
    (cause,) = file["golden"]["inputs_changed"]
    assert cause["values"] == ["topology.links[1].bandwidth.value: 25.00 GB/s -> 20.00 GB/s"]
    assert {"what", "golden", "now", "change"} == set(file["golden"]["changes"][0])
    assert "--update" in file["golden"]["to_do"]


def test_update_renews_with_the_same_bytes_each_time(box: Path) -> None:
    result = run("check", "box", "--update", "--json", cwd=box.parent)
    assert result.code == 0, result.out
    assert result.json()["files"][0]["golden"]["status"] == "renewed"
    once = (box / "plan.golden.json").read_bytes()
    (box / "plan.golden.json").unlink()
    env = {"PYTHONHASHSEED": "4711"}
    assert run("check", "deployment.yaml", "--update", "-q", cwd=box, env=env).code == 0
    assert (box / "plan.golden.json").read_bytes() == once
    assert b"../" not in once
    assert str(box).encode() not in once


def test_a_time_limit_of_a_deployment_holds(box: Path) -> None:
    set_deployment(box, solve="{split: {ep: 4}, time_limit: 0 s}")
    result = run("check", "box", "--update", "--json", cwd=box.parent)
    assert result.code == 5, result.out
    assert "limit" in result.json()["files"][0]["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["box", "--github", "--json"], "--github prints annotations"),
        (["box", "--update", "--format", "sglang"], "--update makes golden plans"),
        (["box/plan.golden.json", "--update"], "--update makes golden plans of deployments"),
        (["box", "--junit", "nowhere/check.xml"], "there is no folder"),
        (["box/deployment.yaml", "--markdown", "box/deployment.yaml"], "would be overwritten"),
        (["nothing.yaml", "--junit", "check.xml"], "no such file"),
    ],
)
def test_wrong_usage_writes_nothing(box: Path, arguments: list[str], told: str) -> None:
    before = {path: path.read_bytes() for path in box.iterdir()}
    result = run("check", *arguments, cwd=box.parent)
    assert result.code == 2, result.out + result.err
    assert told in " ".join(result.err.split())
    assert {path: path.read_bytes() for path in box.iterdir()} == before
    assert files_in(box.parent) == {"box"}


def test_a_golden_plan_can_be_checked_shown_and_read_by_itself(solved: Path) -> None:
    golden = solved / "plan.golden.json"
    assert run("check", golden, cwd=solved).code == 0
    shown = run("show", golden, cwd=solved)
    assert "with ep=4" in shown.out
    assert json.loads(run("show", golden, "--json", cwd=solved).out)["schema"] == "ep-plan/plan/1"


def test_other_commands_refuse_a_plan_made_by_hand(solved: Path, tmp_path: Path) -> None:
    hand = tmp_path / "plan.json"
    hand.write_text('{"schema": "ep-plan/plan/1", "deployment": "deployment.yaml"}')
    result = run("show", hand, cwd=tmp_path)
    assert result.code == 3
    assert "a plan made by hand" in result.err
    checked = run("check", hand, cwd=tmp_path)
    assert checked.code == 3
    assert "split is missing" in checked.out
    assert "placement is missing" in checked.out
