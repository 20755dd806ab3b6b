"""Plans made by hand: what they must hold, and that they are held against every rule."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError
from planner.inputs.deployment import ChecksSection
from planner.plan.hand import HandPlan, read_any_plan
from planner.plan.plan import Plan
from planner.plan.plan_file import read_plan
from planner.review.check_files import check_file
from planner.review.checked import Checked
from tests.building import EXAMPLES
from tests.golden_box import set_deployment, write_box

ROW = [0, 7, 1, 4, 2, 3, 5, 6]
WIDE = [0, 1, 4, 7, 2, 3, 5, 6]
"""The same on two ranks."""
MINIMAL: dict[str, Any] = {
    "schema": "ep-plan/plan/1",
    "deployment": "deployment.yaml",
    "split": {"tp": 1, "dp": 4, "pp": 1, "ep": 4},
    "placement": {"physical_to_logical": [ROW, ROW]},
}


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A deployment of 2 x 2 GPUs, 2 layers, 8 experts."""
    return write_box(tmp_path).parent


def written(box: Path, **changes: Any) -> Path:
    """The minimal plan with other keys; None leaves one out."""
    data = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    path = box / "plan.hand.json"
    path.write_text(json.dumps(data))
    return path


def checked(box: Path, **changes: Any) -> Checked:
    """That plan checked."""
    return check_file(written(box, **changes))


def test_the_minimal_plan_is_priced(box: Path) -> None:
    result = checked(box)
    assert result.is_good, result
    assert result.summary == "made by hand, no rule is broken: tp=1 dp=4 ep=4"
    (note,) = result.notes
    assert "ms per step (linear " in note
    assert "balancedness 0." in note
    assert "on the fullest GPU" in note


def test_what_a_plan_of_solve_says_may_be_said(box: Path) -> None:
    placement = {"layer_ids": [0, 1], "slots_per_rank": 2, "redundant_experts": 0, "copy_rule": "even"}
    stages = [{"layers": [0, 2], "gpus": [3, 2, 1, 0]}]
    assert checked(box, placement={**MINIMAL["placement"], **placement}, stages=stages).is_good


def test_left_out_the_rule_of_copies_is_that_of_the_split(box: Path) -> None:
    """vLLM without data parallelism brings every token to all ranks: no copy is nearer."""
    path = box / "deployment.yaml"
    path.write_text(path.read_text() + "engine: vllm\ncommunication: {copies: nearest}\n")
    split = {"tp": 4, "dp": 1, "pp": 1, "ep": 4}
    assert not [told for told in checked(box, split=split).findings if "copy_rule" in told]
    asked = {"physical_to_logical": [ROW, ROW], "copy_rule": "nearest"}
    assert [told for told in checked(box, split=split, placement=asked).findings if "here even" in told]


@pytest.mark.parametrize("key", ["deployment", "split", "placement"])
def test_a_missing_key_is_named(box: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is missing"):
        read_any_plan(written(box, **{key: None}))


def test_all_missing_keys_at_once(box: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_any_plan(written(box, deployment=None, split={"tp": 1, "dp": 4}, placement={}))
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 4
    for name in ("deployment", "pp", "ep", "physical_to_logical"):
        assert any(f"{name} is missing" in problem for problem in told), told


def test_stages_cannot_be_guessed_with_a_pipeline(box: Path) -> None:
    set_deployment(box, solve="{}")
    result = checked(box, split={"tp": 1, "dp": 2, "pp": 2, "ep": 2, "micro_batches": 2})
    assert result.error is not None
    assert "stages is missing, and pp is 2" in str(result.error)
    stages = [{"layers": [0, 1], "gpus": [0, 1]}, {"layers": [1, 2], "gpus": [2, 3]}]
    split = {"tp": 1, "dp": 2, "pp": 2, "ep": 2, "micro_batches": 2}
    result = checked(box, split=split, stages=stages, placement={"physical_to_logical": [WIDE, WIDE]})
    assert result.is_good, result.findings


def test_the_deployment_must_be_there(box: Path) -> None:
    result = checked(box, deployment="prod.yaml")
    assert result.error is not None
    assert "prod.yaml: no such file" in str(result.error)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"placement": {"physical_to_logical": [ROW, ROW[:-1]]}}, "slots: "),
        ({"placement": {"physical_to_logical": [ROW]}}, "slots: "),
        ({"placement": {"physical_to_logical": [ROW, [0, 7, 1, 4, 2, 3, 5, 5]]}}, "expert 6 placed nowhere"),
        ({"placement": {"physical_to_logical": [ROW, [0, 0, 1, 4, 2, 3, 5, 6]]}}, "expert 0 twice on rank 0"),
        ({"placement": {"physical_to_logical": [ROW, ROW], "layer_ids": [0, 2]}}, "layer_ids: "),
        ({"split": {"tp": 1, "dp": 2, "pp": 1, "ep": 4}}, "split: tp 1 x dp 2"),
        (
            {
                "split": {"tp": 2, "dp": 2, "pp": 1, "ep": 2, "etp": 2},
                "placement": {"physical_to_logical": [WIDE, WIDE]},
            },
            "split: ep is 2, and the deployment says ep=4",
        ),
        ({"placement": {"physical_to_logical": [ROW, [7, 0, 1, 4, 2, 3, 5, 6]]}}, "slot order: "),
        (
            {"placement": {"physical_to_logical": [[0, 1, 2, 0, 3, 4, 1, 5, 6, 2, 3, 7]] * 2}},
            "redundant experts: 4 per layer, and the deployment says 0",
        ),
    ],
)
def test_every_rule_is_looked_at(box: Path, changes: dict[str, Any], told: str) -> None:
    result = checked(box, **changes)
    assert any(told in finding for finding in result.findings), result


def test_memory_is_looked_at(box: Path) -> None:
    set_deployment(box, tokens=4_000_000)
    assert any(finding.startswith("memory: GPU 0 needs") for finding in checked(box).findings)


def test_as_golden_plan_it_must_not_be_beaten_by_itself(box: Path) -> None:
    golden = written(box).rename(box / "plan.golden.json")
    result = check_file(box / "deployment.yaml")
    assert result.compared is not None
    assert result.is_good, result
    assert result.compared.status in ("as good", "better")
    golden.write_text(golden.read_text().replace("deployment.yaml", "prod.yaml"))
    wrong = check_file(box / "deployment.yaml")
    assert wrong.error is not None
    assert "is for prod.yaml, but lies beside deployment.yaml" in str(wrong.error)


def test_the_plan_of_the_documentation_is_one(box: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "check.md").read_text()
    (text,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (box / "plan.json").write_text(text)
    assert check_file(box / "plan.json").is_good


def test_the_thresholds_of_the_documentation_are_all_there_are() -> None:
    page = (EXAMPLES.parent / "docs" / "check.md").read_text()
    named = set(re.findall(r"^  ([a-z_]+): .* # ", page, re.MULTILINE))
    assert named | {"expect"} == set(ChecksSection.model_fields)


def test_both_kinds_are_told_apart(box: Path) -> None:
    path = written(box)
    assert isinstance(read_any_plan(path), HandPlan)
    with pytest.raises(InputError, match="made by hand"):
        read_plan(path)
    with pytest.raises(InputError, match="solver is missing"):
        read_any_plan(written(box, inputs={}))
    assert check_file(box / "deployment.yaml", update=True).is_good
    assert isinstance(read_any_plan(box / "plan.golden.json"), Plan)
