"""A calibrated topology predicts what was measured: every term times its ratio, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", minversion="2.10")

from planner.cost.collectives import Blocks
from planner.cost.step import SplitCost, split_cost
from planner.errors import BadAnswerError
from planner.inputs.deployment import load_kernel
from planner.inputs.documents import validated
from planner.inputs.kernels import on_machine
from planner.inputs.topology import resolve
from planner.inputs.topology_file import TopologyFile
from planner.measure.calibrate import calibrated_text, uncertain
from planner.measure.predicted import predicted_parts
from planner.plan.placement import Placement
from planner.plan.split import Split
from tests import building

SPLIT = Split(tp=2, dp=2, pp=1, ep=4)
TERMS = ("attention", "attention all-reduce", "dispatch", "experts", "combine")


def cost_on(
    file: TopologyFile | None,
    *,
    several: bool = False,
    split: Split = SPLIT,
    kernel: str = "all-to-all",
    **formats: str,
) -> SplitCost:
    """The same model and work on the machine as described, or as a calibrated file says."""
    windows = building.random_windows(np.random.default_rng(0), building.model(), 2)
    using = building.constants(several=several, kernel=kernel)
    precision = using.precision.model_copy(update=formats)
    using = using.model_copy(update={"precision": precision})
    made = building.instance(on=building.topology(2, 2), windows=windows, using=using)
    if file is not None:
        machine = resolve(file)
        known = [(gpu.name,) for gpu in machine.kinds if gpu.name]
        kernels = {
            part: on_machine(load_kernel(name), name, known, file.calibration)
            for part, name in (
                ("kernel", "all-to-all"),
                ("collectives", "nccl"),
                ("small_collectives", "vllm-all-reduce"),
            )
        }
        made = building.instance(on=machine, windows=made.windows, using=made.constants.model_copy(update=kernels))
    return split_cost(made, split, 0)


def predicted(cost: SplitCost) -> dict[str, float]:
    linear = Placement((0, 1), 8 // cost.split.ep, np.tile(np.arange(8), (2, 1)))
    return predicted_parts(cost, (range(2),), linear, (0, 1), (0, 1)).terms


def text_of(cost: SplitCost, ratios: dict[str, float], counts: str = "pass") -> str:
    terms = [SimpleNamespace(name=name, predicted_s=1.0, measured_s=ratio) for name, ratio in ratios.items()]
    validation: Any = SimpleNamespace(
        terms=terms,
        counts=SimpleNamespace(judged=counts),
        outputs=SimpleNamespace(judged="pass"),
        run=SimpleNamespace(ranks=4, backend="gloo"),
        plan="plan.json",
    )
    inputs = SimpleNamespace(topology=cost.instance.topology.file, engine=None)
    return calibrated_text(validation, SimpleNamespace(inputs=inputs), cost)  # type: ignore[arg-type]


def calibrated(cost: SplitCost, ratios: dict[str, float], counts: str = "pass") -> TopologyFile:
    data = yaml.safe_load(text_of(cost, ratios, counts))
    assert data.pop("schema") == "ep-plan/topology/1"
    return validated(TopologyFile, data)


@pytest.mark.parametrize("ratio", [0.5, 3.0])
@pytest.mark.parametrize("num_bytes", [1e3, 1e5, 1e8])
def test_all_reduces_of_every_size_take_the_measured_multiple(ratio: float, num_bytes: float) -> None:
    before = cost_on(None)
    after = cost_on(calibrated(before, {"attention all-reduce": ratio}))
    seconds = [Blocks(c.instance, (0, 1, 2, 3), 2).term("all_reduce", num_bytes).seconds for c in (before, after)]
    assert seconds[1] == pytest.approx(ratio * seconds[0], rel=1e-4)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_corrected_alone(term: str, several: bool) -> None:
    before = cost_on(None, several=several)
    told = {term: 2.0} if term != "combine" else {"dispatch": 1.0, "combine": 2.0}
    old, new = predicted(before), predicted(cost_on(calibrated(before, told), several=several))
    assert set(old) == set(TERMS)
    assert new[term] == pytest.approx(2.0 * old[term], rel=1e-3)
    others = [name for name in TERMS if name != term and not (term == "dispatch" and name == "combine")]
    for name in others:
        assert new[name] == pytest.approx(old[name], rel=1e-3), name


def test_terms_that_are_run_otherwise_than_priced_are_left_as_they_were() -> None:
    told = dict.fromkeys(TERMS, 2.0)
    gathering, narrow = cost_on(None, kernel="allgather-reducescatter"), cost_on(None, experts="fp8")
    file = calibrated(gathering, told)
    assert {one.kernel for one in file.calibration} == {"nccl", "vllm-all-reduce"}
    head = text_of(gathering, told).partition("schema")[0].splitlines()
    assert head == [
        "# plan.json, corrected: attention x 2, attention all-reduce x 2, experts x 2",
        "# dispatch: not corrected, priced as a gather, run as an all-to-all",
        "# combine: not corrected, priced as a gather, run as an all-to-all",
    ]
    after = predicted(cost_on(calibrated(narrow, told), experts="fp8"))
    assert after["experts"] == pytest.approx(predicted(narrow)["experts"], rel=1e-4)
    assert "# experts: not corrected, priced in fp8, run in bf16\n" in text_of(narrow, told)
    with pytest.raises(BadAnswerError, match="experts: not corrected, priced in fp8"):
        calibrated(narrow, {"experts": 2.0})
    noisy = SimpleNamespace(name="experts", predicted_s=1.0, measured_s=2.0, spread=1.0)
    validation: Any = SimpleNamespace(terms=[noisy], tolerance=0.25)
    assert not uncertain(validation, narrow)


def test_attention_over_an_fp8_cache_is_corrected() -> None:
    before = cost_on(None, kv_cache="fp8")
    default = before.instance.constants.efficiency.attention_decode
    assert default["gqa_fp8"] != default["gqa"]
    file = calibrated(before, {"attention": 2.0})
    old, new = predicted(before), predicted(cost_on(file, kv_cache="fp8"))
    assert new["attention"] == pytest.approx(2.0 * old["attention"], rel=1e-3)


@pytest.mark.parametrize("all_reduce", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("exchange", [1.0, 2.0])
def test_gathers_among_gpus_that_share_an_expert_are_counted_once(exchange: float, all_reduce: float) -> None:
    split = Split(tp=2, dp=2, pp=1, ep=2, etp=2)
    before = cost_on(None, split=split)
    told = {"dispatch": exchange, "combine": exchange, "attention all-reduce": all_reduce}
    after = cost_on(calibrated(before, told), split=split)
    old, new = before.stages[0].moe, after.stages[0].moe
    assert new.dispatch_fixed.seconds == pytest.approx(exchange * old.dispatch_fixed.seconds, rel=1e-4)
    assert new.combine_fixed.seconds == pytest.approx(exchange * old.combine_fixed.seconds, rel=1e-4)
    if exchange == all_reduce == 1.0:
        assert predicted(after) == pytest.approx(predicted(before), rel=1e-4)
    assert "gathered among GPUs that share an expert stay" in text_of(before, told)
    assert "gathered" not in text_of(cost_on(None), told)


def test_calibrating_twice_replaces_what_was_written_first() -> None:
    before = cost_on(None)
    again = cost_on(calibrated(before, {"attention all-reduce": 2.0, "dispatch": 2.0}))
    file = calibrated(again, {"attention all-reduce": 0.5, "dispatch": 0.5})
    assert sorted(one.kernel for one in file.calibration) == ["all-to-all", "nccl", "vllm-all-reduce"]
    assert predicted(cost_on(file))["attention all-reduce"] == pytest.approx(
        predicted(before)["attention all-reduce"], rel=1e-4
    )


def test_corrections_that_rest_on_noise_are_told() -> None:
    def term(name: str, spread: float, predicted_s: float | None = 1.0) -> SimpleNamespace:
        return SimpleNamespace(name=name, predicted_s=predicted_s, measured_s=3.0, spread=spread)

    terms = [term("experts", 0.1), term("dispatch", 1.06), term("counts", 2.0, None)]
    validation: Any = SimpleNamespace(terms=terms, tolerance=0.25)
    (told,) = uncertain(validation, cost_on(None))
    assert told.startswith("dispatch: corrected by x 3, but its samples spread over 106%")


def test_nothing_is_calibrated_with_times_of_a_wrong_run() -> None:
    before = cost_on(None)
    with pytest.raises(BadAnswerError, match="counts or results are wrong"):
        calibrated(before, {"experts": 2.0}, counts="fail")
    with pytest.raises(BadAnswerError, match="no times were measured"):
        calibrated(before, {})
