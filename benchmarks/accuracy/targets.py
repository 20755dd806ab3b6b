"""What small forms owe, and what the best of them reach: median / p90 of absolute relative errors."""

from __future__ import annotations

from typing import Final

from planner.inputs.efficiency import Errors, Work

Key = tuple[Work, str]
"""Kind of work, and format of weights or kind of attention."""


def _targets(*rows: tuple[Work, tuple[str, ...], float, float]) -> dict[Key, Errors]:
    return {
        (work, name): Errors.model_construct(median=median, p90=p90)
        for work, names, median, p90 in rows
        for name in names
    }


GOOD: Final = _targets(
    ("experts", ("bf16", "fp8", "fp8_block"), 0.08, 0.25),
    ("experts", ("nvfp4",), 0.14, 0.35),
    ("gemm", ("bf16", "fp8", "fp8_block", "nvfp4"), 0.08, 0.30),
    ("attention_prefill", ("gqa", "gqa_fp8", "mla", "mla_fp8"), 0.07, 0.18),
    ("attention_decode", ("gqa", "gqa_fp8"), 0.12, 0.35),
    ("attention_decode", ("mla", "mla_fp8"), 0.15, 0.35),
)
"""What a form of few numbers owes on held-out shapes; a kernel that does not meet it does not follow the form."""
EXCELLENT: Final = _targets(
    ("experts", ("bf16", "fp8", "fp8_block"), 0.05, 0.15),
    ("experts", ("nvfp4",), 0.08, 0.22),
    ("gemm", ("bf16", "fp8", "fp8_block", "nvfp4"), 0.05, 0.18),
    ("attention_prefill", ("gqa", "gqa_fp8", "mla", "mla_fp8"), 0.04, 0.12),
    ("attention_decode", ("gqa", "gqa_fp8"), 0.06, 0.25),
    ("attention_decode", ("mla", "mla_fp8"), 0.10, 0.25),
)
"""What the best forms of as many numbers reach."""
CARRIED: Final = _targets(("experts", ("bf16", "fp8", "fp8_block"), 0.12, 0.30))
"""What is owed on a GPU that no fit has seen."""
ANY: Final = Errors.model_construct(median=0.18, p90=0.40)
"""The same where nothing is owed: formats that were measured for one shape only."""
