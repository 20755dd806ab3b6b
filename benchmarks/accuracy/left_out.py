"""Published cases that are not predicted, each with the condition that it lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

LEFT_OUT: Final = {
    "ds-prod-prefill": "batch and prompt lengths: a day's mean of live traffic on nodes that were not full",
    "ds-prod-decode": "batch: live traffic; only the speed itself tells how many sequences there were",
    "sglang-gb200-p1-decode": "batch",
    "llmd-b200-decode": "batch, context, and formats",
    "cloudmatrix-decode": "kernels of that NPU: none is measured here; and what its drafts gain",
    "inferencex-r1-h100-b200": "splits, batches and drafts: the best of many runs, some with prefill on other GPUs",
    "smartmoe-costmodel": "the 1,176 placements and their loads, of which the file has means alone; and it is training",
    "laer-e2e": "loads of the ranks, and a cost of training: it compares four training systems on one split each",
    "laer-planner-time": "nothing, but it is a planner's own speed; that of ep-plan stands in benchmarks/README.md",
}
"""By id."""


class UnaccountedError(AssertionError):
    """A case that is neither predicted nor left out, or both."""


def check(known: Collection[str], predicted: Collection[str]) -> None:
    """See that every published case is accounted for.

    Args:
        known: ids in the file.
        predicted: ids that the tables show.

    Raises:
        UnaccountedError: some are not, or are twice.
    """
    missing = sorted(set(known) - set(predicted) - LEFT_OUT.keys())
    twice = sorted(set(predicted) & LEFT_OUT.keys())
    gone = sorted((set(predicted) | LEFT_OUT.keys()) - set(known))
    for name, ids in (("neither predicted nor left out", missing), ("both", twice), ("not in the file", gone)):
        if ids:
            raise UnaccountedError(f"{name}: {', '.join(ids)}")


def rows() -> Iterator[tuple[str, ...]]:
    """Case, and what it lacks."""
    yield from LEFT_OUT.items()
