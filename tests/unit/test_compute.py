"""What ranks compute: shards add up, and a cache for few sequences serves many tokens."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from planner.measure.compute import (  # noqa: E402 - torch first
    Reference,
    attend,
    attention_weights,
    held_experts,
    reference_attention,
    serve,
)
from planner.measure.micro_run import sum_of  # noqa: E402
from planner.measure.plan_run import ballast_bytes  # noqa: E402
from planner.measure.shape import AttentionShape, Shape  # noqa: E402
from planner.measure.wire_format import Rows  # noqa: E402
from planner.plan.plan import MemoryRecord  # noqa: E402

CPU = torch.device("cpu")


def shape(weights: str = "fp32", *, etp: int = 1, tp: int = 1) -> Shape:
    return Shape(32, 32, 16, True, 6, etp, tp, weights, "bf16", "fp32", "fp32", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("per_sequence", [True, False])
@pytest.mark.parametrize("tokens", [0, 3, 5, 13])
def test_attention_of_more_tokens_than_sequences(tokens: int, per_sequence: bool) -> None:
    of = AttentionShape(4, 2, 8, 8, 6, per_sequence=per_sequence)
    sizes = shape(tp=2)
    x = torch.randn(tokens, 32)
    parts = [attend(x, attention_weights(3, rank, of, sizes, 5, CPU)) for rank in range(2)]
    wanted = reference_attention(x, 3, of, sizes, CPU) if tokens else torch.zeros(0, 32)
    assert torch.allclose(parts[0] + parts[1], wanted, atol=1e-5)


@pytest.mark.parametrize("per_sequence", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "key_dim", "value_dim"), [(8, 2, 16, 16), (4, 1, 24, 16), (4, 4, 8, 8)])
def test_heads_share_keys_as_torch_says(
    heads: int, kv_heads: int, key_dim: int, value_dim: int, per_sequence: bool
) -> None:
    of = AttentionShape(
        heads, kv_heads, key_dim, value_dim, 6, values_are_keys=key_dim > value_dim, per_sequence=per_sequence
    )
    held = attention_weights(3, 0, of, shape(), 5, CPU)
    x = torch.randn(5, 32)
    queries = (x @ held.into).reshape(5, heads, 1, key_dim)
    keys, values = (part.expand(5, -1, -1, -1) for part in (held.keys, held.values))
    seen = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
    assert torch.allclose(attend(x, held), seen.reshape(5, heads * value_dim) @ held.out, atol=1e-5)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp8", "int8", "mxfp4"])
def test_shards_of_experts_add_up_to_the_reference(weights: str) -> None:
    sizes = shape(weights, etp=2)
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    x = torch.randn(20, 32).to(dtype)
    ids = torch.stack([torch.randperm(6)[:2] for _ in range(20)])
    ids[4] = -1
    weight = torch.rand(20, 2)
    rows = Rows(x, ids.to(torch.int32), weight)
    parts = [serve(rows, held_experts(1, list(range(6)), shard, sizes, CPU), ids, sizes).float() for shard in (0, 1)]
    wanted = Reference(sizes, CPU).moe(1, x, ids, weight)
    assert wanted[4].abs().max() == 0
    error = (parts[0] + parts[1] - wanted).norm() / wanted.norm()
    assert float(error) < (1e-5 if weights == "fp32" else 2e-2)


def test_experts_differ_by_layer_and_id() -> None:
    sizes = shape()
    one, other = held_experts(0, [1, 2], 0, sizes, CPU), held_experts(1, [1], 0, sizes, CPU)
    assert not torch.equal(one.first_XHF[0], one.first_XHF[1])
    assert not torch.equal(one.first_XHF[0], other.first_XHF[0])
    assert torch.equal(one.first_XHF[1], held_experts(0, [2], 0, sizes, CPU).first_XHF[0])


def test_what_is_held_besides_tensors() -> None:
    names = {
        "expert slots": 400,
        "KV cache": 300,
        "communication buffers": 60,
        "logits": 5,
        "runtime": 20,
        "runtime x": 7,
    }
    lines = [MemoryRecord(name=name, bytes=size, basis="given", source="") for name, size in names.items()]
    booked = sum(names.values())
    held = 700  # logits and runtime, 32 bytes, are taken as the run goes
    assert ballast_bytes(booked, lines, held, outside=0) == booked - held - 32
    assert ballast_bytes(booked, lines, held, outside=25) == booked - held - 32 - 25
    assert ballast_bytes(booked, lines, held, outside=500) == booked - held - 32 - 60  # more than booked must show
    assert ballast_bytes(booked, lines, held, outside=-9) == booked - held - 32  # others have freed memory since
    assert ballast_bytes(booked, lines, booked, outside=0) < 0


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_sums_that_stages_compare_do_not_depend_on_the_order(name: str) -> None:
    dtype = getattr(torch, name)
    x = (torch.randn(64, 32) * 10.0 ** torch.randint(-9, 9, (64, 32))).to(dtype)
    assert sum_of(x) == sum_of(x.flip(0))
    other = x.clone()
    other[3, 5] = torch.nextafter(other[3, 5], torch.tensor(1e30, dtype=dtype))
    assert sum_of(other) != sum_of(x)
