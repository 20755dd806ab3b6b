"""Memory of communication libraries: DeepEP's own figures, and what engines ask for."""

from __future__ import annotations

import pytest

from planner.cost.buffers import (
    collective_buffers,
    exchange_buffers,
    low_latency_bytes,
    nvlink_bytes,
    rdma_bytes,
    tokens_sent,
)
from planner.cost.instance import Instance
from planner.cost.lines import MemoryLine
from planner.inputs.deployment import load_kernel
from planner.inputs.engines import load_engine
from planner.inputs.kernels import as_used
from planner.plan.split import Split
from tests import building

GIB = 2**30


def using(kernel: str, engine: str | None = None) -> Instance:
    """A model of width 7168 with 256 experts on 4 x 8 GPUs, with this kernel as an engine asks for it."""
    model = building.model(experts=256, top_k=8, hidden=7168)
    asked = load_engine(engine).buffers.get(kernel) if engine else None
    constants = building.constants().model_copy(
        update={"kernel": as_used(load_kernel(kernel), asked), "collectives": load_kernel("nccl")}
    )
    return building.instance(model, building.topology(4, 8), using=constants)


def by_name(lines: list[MemoryLine]) -> dict[str, int]:
    """Bytes by what they are for."""
    return {line.name.removeprefix("communication buffers").lstrip(", "): line.num_bytes for line in lines}


def exchange(
    made: Instance, ep: int, *, slots: int = 256, sent: int = 64, crosses_nodes: bool = True
) -> dict[str, int]:
    """Lines of the exchange with so many ranks."""
    split = Split(tp=1, dp=ep, pp=1, ep=ep)
    return by_name(exchange_buffers(made, split, slots, sent, crosses_nodes=crosses_nodes))


def test_low_latency_buffer_by_hand() -> None:
    """Two sends and two receives of 256 experts x 128 tokens x (7168 x 2 + 56 x 4) bytes, and signals.

    4 x 32,768 x 14,560 = 1,908,408,320; two arrays of 256 x 4 bytes; 128 for alignment.
    """
    assert low_latency_bytes(128, 7168, 256) == 1_908_408_320 + 2 * 1024 + 128


@pytest.mark.parametrize(
    ("tokens", "gib"),
    [(2048, 35.55), (1856, 32.21), (1840, 31.94), (1536, 26.66)],
)
def test_low_latency_buffer_with_redundant_experts(tokens: int, gib: float) -> None:
    """The table of vllm-project/vllm#57894: width 5120, 384 experts and 64 copies; 32 GiB is the limit."""
    assert low_latency_bytes(tokens, 5120, 384 + 64) / GIB == pytest.approx(gib, abs=0.005)


def test_normal_buffers_as_the_library_prints_them() -> None:
    """deepseek-ai/DeepEP#434: Config(24, 8, 512, 16, 128) for 7168 bytes per token and 16 ranks.

    NVLink: 12 channels x 8 GPUs x (512 x (7168 + 8 + 1536 + 512) + (2 x 2 + 3) x 4) bytes.
    RDMA: 2 x 12 channels x 2 nodes x (128 x (9224 + 16) + 18 x 4) bytes.
    """
    assert nvlink_bytes(7168, 16, 24, 512) == 453_380_736
    assert rdma_bytes(7168, 16, 24, 128) == 56_774_016
    assert rdma_bytes(7168, 8, 24, 128) == 0  # one node: NVLink alone


def test_low_latency_buffer_holds_copies_and_all_that_is_sent() -> None:
    made = using("deepep-low-latency")
    assert exchange(made, 8)["low latency"] == exchange(made, 32)["low latency"] == low_latency_bytes(128, 7168, 256)
    assert exchange(made, 32, slots=288)["low latency"] == low_latency_bytes(128, 7168, 288)
    assert exchange(made, 32, sent=300)["low latency"] == low_latency_bytes(300, 7168, 256)
    assert exchange(made, 1) == {}


def test_widths_are_padded_to_what_the_kernel_is_built_for() -> None:
    """gpt-oss: 2880 was sent as 4096, and as 3072 since deepseek-ai/DeepEP#458."""
    made = using("deepep-low-latency")
    narrow = building.instance(building.model(experts=128, hidden=2880), using=made.constants)
    assert exchange(narrow, 4, slots=128)["low latency"] == low_latency_bytes(128, 3072, 128)


def test_normal_buffers_grow_with_the_ep_size() -> None:
    made = using("deepep-normal")
    inside = exchange(made, 8, crosses_nodes=False)
    assert inside == {"NVLink": nvlink_bytes(2 * 7168, 8, 20, 256)}
    two = exchange(made, 16)
    assert two == {"NVLink": nvlink_bytes(2 * 7168, 16, 20, 288), "RDMA": rdma_bytes(2 * 7168, 16, 20, 140)}
    many = exchange(made, 160)
    assert many["NVLink"] > two["NVLink"] > inside["NVLink"]
    assert many["RDMA"] > 9 * two["RDMA"]


def test_vllm_fixes_the_sizes_of_its_buffers() -> None:
    """VLLM_DEEPEP_BUFFER_SIZE_MB = 1024 each, and 256 tokens per rank."""
    assert exchange(using("deepep-normal", "vllm"), 32) == {"NVLink": GIB, "RDMA": GIB}
    assert exchange(using("deepep-normal", "vllm"), 8, crosses_nodes=False) == {"NVLink": GIB}
    low_latency = exchange(using("deepep-low-latency", "vllm"), 32)
    assert low_latency == {"low latency": low_latency_bytes(256, 7168, 256), "NVLink": GIB}


def test_sglang_asks_for_128_tokens() -> None:
    """About 1.8 GiB for DeepSeek-V3.2, 14 GiB at 1024 tokens (sgl-project/sglang#28994)."""
    made = using("deepep-low-latency", "sglang")
    assert exchange(made, 8)["low latency"] / GIB == pytest.approx(1.8, abs=0.05)
    assert exchange(made, 8, sent=1024)["low latency"] / GIB == pytest.approx(14, abs=0.3)


OF_TWO, OF_MORE = 342 * 2**20, 392 * 2**20
"""What AIConfigurator observed for groups of 2, and of 4 or 8."""


@pytest.mark.parametrize(
    ("split", "found"),
    [
        (Split(tp=1, dp=8, pp=1, ep=8), {}),
        (Split(tp=2, dp=4, pp=1, ep=8), {"tensor-parallel group": OF_TWO}),
        (Split(tp=8, dp=1, pp=1, ep=1, etp=8), {"tensor-parallel group": OF_MORE}),
        (
            Split(tp=4, dp=1, pp=2, ep=2, etp=2),
            {"tensor-parallel group": OF_MORE, "expert-tensor group": OF_TWO, "sends between stages": OF_TWO},
        ),
    ],
)
def test_collectives_have_buffers_of_their_own(split: Split, found: dict[str, int]) -> None:
    assert by_name(collective_buffers(using("all-to-all"), split)) == found


def test_hccl_has_a_pair_of_buffers_for_each_communicator() -> None:
    """2 x HCCL_BUFFSIZE, 200 MiB by default."""
    assert load_engine("vllm-ascend").kernel["decode"] == "hccl"
    assert exchange(using("hccl"), 32) == {"": 400 * 2**20}


def test_a_gpu_sends_its_part_of_the_micro_batch() -> None:
    """1000 tokens: 500 per data-parallel rank, 250 per micro-batch, 63 on each of 4 GPUs."""
    assert tokens_sent(1000, Split(tp=4, dp=2, pp=2, ep=8, micro_batches=2)) == 63
