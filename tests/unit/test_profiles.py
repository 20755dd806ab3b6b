"""The shipped profiles: all of them load, and no hardware number stands without its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pytest
import yaml

from planner.inputs import profiles
from planner.inputs.deployment import load_kernel
from planner.inputs.efficiency import Curve, Roofline, curves_of, load_default_efficiency
from planner.inputs.engines import load_engine
from planner.inputs.gpu import load_gpu
from planner.inputs.model_files import read_model
from planner.inputs.precision import WEIGHTS
from planner.inputs.topology import topology_of_nodes
from planner.inputs.units import UNITS

UNIT_NAMES = {unit for known, _ in UNITS.values() for unit in known}


def quantities(value: Any, *, sourced: bool = False) -> Iterator[tuple[str, bool]]:
    """Every quantity with a unit in a file, and whether a basis and a source stand beside it."""
    if isinstance(value, dict):
        here = sourced or (bool(str(value.get("source", "")).strip()) and "basis" in value)
        for inner in value.values():
            yield from quantities(inner, sourced=here)
    elif isinstance(value, list):
        for inner in value:
            yield from quantities(inner, sourced=sourced)
    elif isinstance(value, str):
        number, _, unit = value.partition(" ")
        if value[:1].isdigit() and (unit in UNIT_NAMES or number.endswith("%")) and len(value) < 24:
            yield value, sourced


HARDWARE = [
    *sorted(
        path
        for kind in ("gpus", "nodes", "fabrics", "kernels", "engines")
        for path in (profiles.folder() / kind).iterdir()
    ),
    profiles.folder() / "efficiency.yaml",
]


def rests_on_fabrics(data: Any) -> bool:
    """Whether all links of a node take their numbers from fabrics, which have their own files."""
    links = data.get("links") or []
    return bool(links) and all(link.get("fabric") in profiles.names("fabrics") for link in links)


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_hardware_number_carries_basis_and_source(path: Any) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = list(quantities(data))
    assert found or rests_on_fabrics(data), "a hardware profile without a single quantity"
    assert [value for value, sourced in found if not sourced] == []


def test_the_search_for_quantities_finds_bare_ones() -> None:
    bare = {"memory": "80 GiB", "links": [{"latency": {"value": "3 us", "basis": "assumed", "source": ""}}]}
    assert list(quantities(bare)) == [("80 GiB", False), ("3 us", False)]


@pytest.mark.parametrize("name", profiles.names("gpus"))
def test_gpus_load(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    assert 15 * 2**30 < gpu.memory.value < 300 * 2**30
    assert gpu.memory.basis in {"datasheet", "measured", "assumed"}
    assert gpu.memory.source
    assert "bf16" in gpu.compute


@pytest.mark.parametrize("name", profiles.names("nodes"))
def test_nodes_load_and_grow(name: str) -> None:
    assert topology_of_nodes(1, name, None).num_gpus * 4 == topology_of_nodes(4, name, None).num_gpus


@pytest.mark.parametrize("name", profiles.names("kernels"))
def test_kernels_load(name: str) -> None:
    kernel = load_kernel(name)
    assert 0 < kernel.scale_up.value <= 1
    assert 0 < kernel.scale_out.value <= 1


@pytest.mark.parametrize("name", profiles.names("engines"))
def test_engines_load_and_name_kernels_that_exist(name: str) -> None:
    engine = load_engine(name)
    assert engine.source
    assert {load_kernel(engine.kernel[phase]).version for phase in ("prefill", "decode")}


@pytest.mark.parametrize("name", profiles.names("models"))
def test_models_load_and_say_where_they_are_from(name: str) -> None:
    model = read_model(profiles.path_of("models", name))
    assert model.name == name
    assert model.source.startswith("https://huggingface.co/")


def test_the_default_covers_every_format_and_says_that_it_is_transferred() -> None:
    efficiency = load_default_efficiency()
    assert efficiency.overlap is not None
    for work in ("experts", "gemm"):
        for weights in WEIGHTS:
            assert {curve.basis for curve in curves_of([efficiency], work, weights)} == {"transferred"}
    for work in ("attention_prefill", "attention_decode"):
        for kind in ("gqa", "gqa_fp8", "mla", "mla_fp8"):
            assert {curve.basis for curve in curves_of([efficiency], work, kind)} == {"transferred"}  # type: ignore[arg-type]


def test_a_gpu_s_own_curve_comes_first_and_one_of_the_same_arithmetic_before_the_default() -> None:
    own, default = load_gpu("h100-sxm").efficiency, load_default_efficiency()
    assert own is not None
    assert curves_of([own, default], "gemm", "fp8_block") == own.gemm["fp8_block"]
    int8 = curves_of([own, default], "gemm", "int8")
    assert values_of(int8) == values_of(own.gemm["bf16"])  # int8 weights are computed as bf16
    assert {curve.basis for curve in int8} == {"transferred"}
    assert all(curve.source.endswith("curve of bf16, transferred to int8") for curve in int8)
    assert values_of(curves_of([own, default], "experts", "nvfp4")) == values_of(own.experts["mxfp4"])
    assert curves_of([own.model_copy(update={"experts": {}}), default], "experts", "nvfp4") == default.experts["nvfp4"]


def values_of(curves: Sequence[Curve]) -> list[Roofline]:
    return [curve.value for curve in curves]


def test_an_engine_with_kernels_of_its_own_takes_no_others() -> None:
    """On H200 TensorRT-LLM's experts in fp8 blocks are not those that are fastest in large batches."""
    own, default = load_gpu("h200-sxm").efficiency, load_default_efficiency()
    assert own is not None
    every = curves_of([own, default], "experts", "fp8_block")
    theirs = curves_of([own, default], "experts", "fp8_block", "tensorrt-llm")
    assert {curve.engine for curve in theirs} == {"tensorrt-llm"}
    assert 0 < len(theirs) < len(every)
    assert curves_of([own, default], "experts", "fp8_block", "megatron") == every


def test_a_gpu_of_the_same_architecture_lends_its_curves() -> None:
    measured, like_it = load_gpu("h100-sxm"), load_gpu("h800-sxm")
    assert measured.efficiency is not None
    assert like_it.efficiency is not None
    for key, curves in measured.efficiency.gemm.items():
        for curve, taken in zip(curves, like_it.efficiency.gemm[key], strict=True):
            assert (taken.value, taken.basis, taken.held_out) == (curve.value, "transferred", None)
            assert taken.source.endswith("of h100-sxm")


MEASURED = [name for name in profiles.names("gpus") if load_gpu(name).efficiency and not load_gpu(name).curves_of]


@pytest.mark.parametrize("name", MEASURED)
def test_fitted_curves_are_not_faster_than_light_and_state_their_error(name: str) -> None:
    own = load_gpu(name).efficiency
    assert own is not None
    for work in ("experts", "gemm", "attention_prefill", "attention_decode"):
        for curve in chain.from_iterable(getattr(own, work).values()):
            assert 0 < curve.value.compute <= 1
            assert 0 < curve.value.memory <= 1
            assert (curve.basis, bool(curve.fit), "measurements" in curve.source) == ("fitted", True, True)


# Datasheets of NVIDIA: dense rates, one direction of NVLink.
@pytest.mark.parametrize(
    ("name", "hbm", "bf16", "fp8"),
    [
        ("h100-sxm", 3.35e12, 989e12, 1979e12),
        ("h200-sxm", 4.8e12, 989e12, 1979e12),
        ("a100-sxm-80", 2.039e12, 312e12, None),
    ],
)
def test_gpus_as_in_their_datasheets(name: str, hbm: float, bf16: float, fp8: float | None) -> None:
    gpu = load_gpu(name)
    assert gpu.hbm_bandwidth.value == hbm
    assert gpu.compute["bf16"].value == bf16
    assert (gpu.compute["fp8"].value if "fp8" in gpu.compute else None) == fp8
