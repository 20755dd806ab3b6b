"""Values set by path: what the edited file would give, or what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.capacity.case import deployment_of
from planner.cost.prepare import constants_of, from_deployment, load
from planner.errors import InputError, UsageError
from planner.inputs.deployment import Deployment
from planner.inputs.edits import edited, parse_path, parse_setting
from planner.solve.request import plan_inputs
from tests import building
from tests.building import EXAMPLES


@pytest.fixture(scope="module")
def mixtral() -> Deployment:
    return load(EXAMPLES / "mixtral-4gpu" / "deployment.yaml")


def changed(deployment: Deployment, *settings: str) -> Deployment:
    return edited(deployment, [parse_setting(text) for text in settings])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("solve.redundant=3", "did you mean redundant_experts?"),
        ("solv.gap=1%", "did you mean solve?"),
        ("links.nod.bandwidth=1 GB/s", "did you mean node?"),
        ("links.node.bandwith=1 GB/s", "did you mean bandwidth?"),
        ("links[7].bandwidth=1 GB/s", "known here: node"),
        ("links.node.bandwidth=100", "100 has no unit"),
        ("solve.gap=1", "expected a percentage"),
        ("workload.tokens_per_gpu=many", "valid integer"),
        ("nodes=0", "greater than or equal to 1"),
        ("gpu=h200", "h200-sxm"),
        ("gpus=9", "4 are there"),
        ("model.moe=3", "unknown path model.moe"),
        ("engine=slang", "did you mean sglang?"),
        ("just words", "expected path=value"),
        ("..=1", "is no path of keys"),
        ("traces=a.npz", "unknown path traces"),
    ],
)
def test_wrong_settings(setting: str, said: str, mixtral: Deployment) -> None:
    with pytest.raises(UsageError) as told:
        changed(mixtral, setting)
    assert said in str(told.value)
    assert f"--set {setting}" in str(told.value) or "no path" in str(told.value)


def test_unknown_paths_are_told_at_once(mixtral: Deployment) -> None:
    with pytest.raises(UsageError) as told:
        changed(mixtral, "workload.phse=decode", "workload.tokens=3")
    assert len(told.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("solve.redundant_experts", ("solve", "redundant_experts")),
        ("topology.links[1].bandwidth", ("links", 1, "bandwidth")),
        ("links.cluster.bandwidth", ("links", "cluster", "bandwidth")),
        ("topology", ("topology",)),
        ("gpu.compute.bf16", ("gpu", "compute", "bf16")),
    ],
)
def test_paths(text: str, key: tuple[str | int, ...]) -> None:
    assert parse_path(text) == key


def test_what_depends_on_a_value_follows_it(mixtral: Deployment) -> None:
    """As in a file: other weights change what is sent, more GPUs the machine, another engine the kernel."""
    assert mixtral.precision.dispatch == "bf16"
    made = changed(mixtral, "precision.weights=fp8", "gpus_per_node=8", "engine=sglang")
    assert (made.precision.experts, made.precision.dense, made.precision.dispatch) == ("fp8", "fp8", "fp8")
    assert made.topology.num_gpus == 8
    assert made.engine_name == "sglang"
    assert made.engine.rules != mixtral.engine.rules


def test_whole_inputs(mixtral: Deployment) -> None:
    made = changed(mixtral, "topology=2 x hgx-h100", "model=gpt-oss-20b", "gpus=12")
    assert (made.topology.num_gpus, made.topology.gpu.name, made.model.moe.num_experts) == (12, "h100-sxm", 32)


def test_lost_nodes_and_fewer_gpus(mixtral: Deployment) -> None:
    two = changed(mixtral, "topology=2 x hgx-h100", "gpus=12")
    left = edited(two, [], [0])
    assert left.topology.num_gpus == 8
    assert set(left.topology.node_G.tolist()) == {1}


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("precision.experts=fp8",),
        ("precision.weights=fp8", "precision.combine=fp8"),
        ("precision.kv_cache=fp8", "precision.dispatch=fp8"),
        ("engine=sglang",),
        ("engine=vllm", "memory_share=80%"),
        ("communication.kernel=deepep-normal",),
        ("communication.dedup=gpu", "communication.overlap=two_batch"),
        ("communication.copies=nearest",),
        ("communication.kernel=allgather-reducescatter", "communication.copies=nearest"),
        ("engine=sglang", "communication.copies=even"),
        ("solve.keep_groups=node", "solve.redundant_experts=auto", "solve.seed=3"),
        ("workload.phase=prefill",),
    ],
)
def test_a_plan_is_as_good_as_its_deployment(settings: tuple[str, ...], mixtral: Deployment) -> None:
    """From what a plan keeps comes a deployment with the same constants, and edits move what depends on them."""
    made = changed(mixtral, *settings)
    kept = plan_inputs(made, from_deployment(made), Path("plan.json"))
    again = deployment_of(kept, Path("plan.json"))
    assert constants_of(again) == constants_of(made)
    assert again.file.solve == made.file.solve
    assert again.file.workload == made.file.workload
    more = ("precision.weights=int8", "workload.phase=prefill")
    assert constants_of(changed(again, *more)) == constants_of(changed(made, *more))


def test_constants_of_another_version_are_refused(mixtral: Deployment) -> None:
    kept = plan_inputs(mixtral, from_deployment(mixtral), Path("plan.json"))
    other = kept.cost.model_copy(update={"engine_memory": building.engine_memory("3 GiB")})
    with pytest.raises(InputError, match="other constants"):
        deployment_of(kept.model_copy(update={"cost": other}), Path("plan.json"))
