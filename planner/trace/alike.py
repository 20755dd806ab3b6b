"""Tokens that are routed alike in every layer: padding, warm-up and dummy requests that went through the routers.

Text repeats words, but hardly ever the whole context, so no two tokens of a model with some layers choose
the same experts everywhere: of recorded routing the most frequent choice holds one token in a thousand.

Legend: T tokens, L layers, K choices, E experts.
"""

from __future__ import annotations

from collections import Counter
from math import comb, log2
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place
from planner.trace.faults import Fault

_LOOKED_AT: Final = 1024
"""Tokens of each block."""
_MOST: Final = 1 << 17
_ENOUGH: Final = 64
_BITS: Final = 32.0
"""Fewer possible choices than 2^32 meet by chance."""
_SUSPICIOUS: Final = 0.1
"""More than each tenth token; the first token of short texts may well be the same."""


class Alike:
    """Counts how often the same choice in all layers comes again, on a sample of each block."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._often: Counter[int] = Counter()
        self._tokens = 0
        self._bits = 0.0

    def look(self, ids_TLK: NDArray[Any]) -> None:
        """Look at some tokens of a block, evenly spread."""
        tokens, layers, choices = ids_TLK.shape
        if not tokens or self._tokens >= _MOST:
            return
        sample = ids_TLK[:: -(-tokens // _LOOKED_AT)]
        self._bits = layers * log2(max(1, comb(self._num_experts, choices)))
        self._tokens += len(sample)
        values, counts = np.unique(_fingerprints(sample, self._num_experts), return_counts=True)
        self._often.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def faults(self, where: Place) -> list[Fault]:
        """A fault if one choice is too frequent, and there are too many possible ones for chance to explain it."""
        if self._tokens < _ENOUGH or self._bits < _BITS:
            return []
        share = max(self._often.values()) / self._tokens
        if share <= _SUSPICIOUS:
            return []
        message = f"{share:.0%} of the tokens chose the very same experts in all layers"
        cure = "padding, warm-up or dummy requests: record without them, or with their ids as -1"
        return [Fault("dummy-tokens", message, where, cure)]


def _fingerprints(ids_TLK: NDArray[Any], num_experts: int) -> NDArray[np.uint64]:
    """A number for the sets of experts of each token (Zobrist, 1970): the same for the same sets in any order."""
    random = np.random.default_rng(0).integers(0, 1 << 63, (ids_TLK.shape[1], num_experts + 1), dtype=np.uint64)
    layer_1L1 = np.arange(ids_TLK.shape[1])[None, :, None]
    column_TLK = ids_TLK.astype(np.int64) % (num_experts + 1)  # -1, no expert, is the last
    prints: NDArray[np.uint64] = random[layer_1L1, column_TLK].sum(axis=(1, 2), dtype=np.uint64)
    return prints
