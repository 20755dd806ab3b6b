"""Shipped GPUs and nodes: everything loads, every number has a source, figures fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from planner.errors import InputError
from planner.inputs import profiles
from planner.inputs.gpu import Gpu, load_gpu
from planner.inputs.strict_yaml import read_yaml
from planner.inputs.topology import topology_of_nodes

GPUS = profiles.names("gpus")
NODES = profiles.names("nodes")


def _rate(name: str, precision: str) -> float:
    return load_gpu(name).compute[precision].value


def _sourced(data: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(data, dict) and "value" in data:
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _sourced(value, f"{key}.{name}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _sourced(value, f"{key}[{index}]")


@pytest.mark.parametrize("kind", ["gpus", "nodes", "fabrics"])
def test_every_number_has_basis_and_source(kind: profiles.Kind) -> None:
    for name in profiles.names(kind):
        data = read_yaml(profiles.path_of(kind, name)).data
        for key, value in _sourced(data):
            assert value["basis"] in ("datasheet", "assumed", "measured", "fitted", "transferred"), (name, key)
            assert len(value["source"]) > 15, (name, key)
            if value["basis"] == "datasheet":
                assert "://" in value["source"] or "IEEE" in value["source"], (name, key)


@pytest.mark.parametrize("name", GPUS)
def test_gpu_figures_are_sane(name: str) -> None:
    gpu = load_gpu(name)
    assert 10 * 2**30 < gpu.memory.value < 400 * 2**30
    assert 200e9 < gpu.hbm_bandwidth.value <= 8e12
    assert "bf16" in gpu.compute
    for precision, rate in gpu.compute.items():
        assert "dense" in rate.source or "halved" in rate.source or rate.basis == "assumed", precision


@pytest.mark.parametrize("name", [name for name in GPUS if "fp8" in load_gpu(name).compute])
def test_fp8_runs_at_twice_bf16(name: str) -> None:
    assert _rate(name, "fp8") == pytest.approx(2 * _rate(name, "bf16"), rel=0.013)  # L40S: 733 and 362


@pytest.mark.parametrize("name", [name for name in GPUS if "fp4" in load_gpu(name).compute])
def test_fp4_runs_at_two_to_four_times_fp8(name: str) -> None:
    assert 1.99 < _rate(name, "fp4") / _rate(name, "fp8") < 4.01


def test_cut_chips() -> None:
    """H800: the compute of an H100 with fewer NVLinks; H20: 15 % of its compute, more memory."""
    assert load_gpu("h800-sxm").compute["fp8"].value == load_gpu("h100-sxm").compute["fp8"].value
    assert topology_of_nodes(1, "hgx-h800", None).links[0].bandwidth.value == 200e9
    assert _rate("h20-sxm", "bf16") / _rate("h100-sxm", "bf16") == pytest.approx(0.15, abs=0.01)
    assert load_gpu("h20-sxm").hbm_bandwidth.value > load_gpu("h100-sxm").hbm_bandwidth.value


def test_older_chips_have_no_fp8() -> None:
    for name in ("v100-sxm-32", "a100-sxm-80", "a10", "ascend-910b"):
        assert "fp8" not in load_gpu(name).compute


@pytest.mark.parametrize("name", NODES)
def test_every_node_loads_and_scales(name: str) -> None:
    for count in (1, 2, 18, 40):
        made = topology_of_nodes(count, name, None)
        assert made.num_gpus == count * (made.file.gpus_per_node or 0)
        bandwidths = [link.bandwidth.value / link.shared_by for link in made.links]
        assert bandwidths == sorted(bandwidths, reverse=True)


def test_asked_for_machines_are_there() -> None:
    for gpu, boxes in {"a100-sxm-80": "a100", "h100-sxm": "h100", "h200-sxm": "h200", "b200": "b200"}.items():
        for maker in ("hgx", "dgx"):
            assert topology_of_nodes(1, f"{maker}-{boxes}", None).gpu == load_gpu(gpu)


@pytest.mark.parametrize(("trays", "spans"), [(1, [1]), (9, [9]), (18, [18]), (36, [18, 36])])
def test_trays_of_a_rack_are_one_nvlink_domain(trays: int, spans: list[int]) -> None:
    made = topology_of_nodes(trays, "gb200-nvl72", None)
    assert made.file.gpus_per_node == 4
    assert made.file.spans() == spans
    assert made.links[0].bandwidth.value == 900e9


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("h100", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("A100-SXM4-80GB", "a100-sxm-80"),
        ("4090", "rtx-4090"),
        ("MI300", "mi300x"),
    ],
)
def test_unknown_gpu_names_near_ones_and_the_fields_to_give(written: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_gpu(written)
    hint = caught.value.problems[0].hint
    assert meant in hint.splitlines()[0]
    assert all(field in hint for field in ("memory", "hbm_bandwidth", "compute", *("fp4", "fp8", "bf16", "fp32")))
    assert "gpu: {memory: 80 GiB" in hint


def test_unknown_node_names_near_ones_and_the_fields_to_give() -> None:
    with pytest.raises(InputError) as caught:
        topology_of_nodes(2, "hgxh100", None)
    hint = caught.value.problems[0].hint
    assert "hgx-h100" in hint.splitlines()[0]
    assert all(field in hint for field in ("gpu:", "nodes:", "gpus_per_node:", "links:", "level", "latency"))


def test_a_name_like_none_lists_some_and_says_where_all_are() -> None:
    assert profiles.near_names("foo", GPUS) == []
    hint = profiles.hint_for_unknown("gpus", "foo")
    assert hint.startswith(f"known: {GPUS[0]}, {GPUS[1]}, ")
    assert hint.endswith(f"all {len(GPUS)}: ep-plan profiles")
    assert "\n" not in hint
    assert len(hint) < 160


def test_inline_gpu_may_not_name_an_unknown_fabric() -> None:
    with pytest.raises(ValueError, match="unknown fabric"):
        Gpu.model_validate(
            {"memory": "1 GiB", "hbm_bandwidth": "1 GB/s", "compute": {"bf16": "1 TFLOP/s"}, "scale_up": "nvlink"}
        )
