"""Rows on the wire: sizes as the cost model counts them, and what comes back."""

from __future__ import annotations

import pytest

from planner.inputs.precision import ACTIVATION_BITS

torch = pytest.importorskip("torch", minversion="2.10")

from planner.measure.wire_format import ROUNDING, Rows, decode, encode, rounded  # noqa: E402 - torch first


@pytest.mark.parametrize("name", ROUNDING)
def test_sizes_are_those_of_the_cost_model(name: str) -> None:
    hidden = 1024
    raw = encode(torch.randn(3, hidden), name)  # type: ignore[arg-type]
    assert raw.dtype == torch.uint8
    assert raw.shape == (3, int(hidden * ACTIVATION_BITS[name] / 8))  # type: ignore[index]


@pytest.mark.parametrize("hidden", [8, 100, 256])
@pytest.mark.parametrize("name", ROUNDING)
def test_rounding_stays_within_what_is_allowed(name: str, hidden: int) -> None:
    x = torch.randn(50, hidden) * torch.logspace(-1, 2, 50)[:, None]
    x[7] = 0
    back = rounded(x, name)  # type: ignore[arg-type]
    assert back.shape == x.shape
    assert back[7].abs().max() == 0
    error = (back - x).norm(dim=1) / x.norm(dim=1).clamp_min(1e-9)
    assert float(error.max()) <= ROUNDING[name]  # type: ignore[index]


@pytest.mark.parametrize("name", ROUNDING)
def test_slots_and_weights_travel_exactly(name: str) -> None:
    slots = torch.tensor([[0, 3, -1], [-1, -1, -1], [2**31 - 1, 5, 7]], dtype=torch.int32)
    rows = Rows(torch.randn(3, 72), slots, torch.rand(3, 3))
    back = Rows.unpacked(rows.packed(name), name, 72, 3, torch.float32)  # type: ignore[arg-type]
    assert torch.equal(back.slot_NK, rows.slot_NK)
    assert torch.equal(back.weight_NK, rows.weight_NK)
    assert torch.equal(back.x_NH, rounded(rows.x_NH, name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROUNDING)
def test_no_rows(name: str) -> None:
    rows = Rows(torch.zeros(0, 40), torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, 2))
    assert len(Rows.unpacked(rows.packed(name), name, 40, 2, torch.float32)) == 0  # type: ignore[arg-type]


def test_four_bit_values_come_back_exactly() -> None:
    exact = torch.tensor([[0.0, 0.5, -1.0, 1.5, -2.0, 3.0, -4.0, 6.0] * 2])
    assert torch.equal(decode(encode(exact, "nvfp4"), "nvfp4", 16, torch.float32), exact)
