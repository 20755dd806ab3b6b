"""The model behind synthetic routing, and drawing tokens from it.

Every token has a hidden topic. In a topic some experts are chosen more often than usual, in all layers: that makes
co-activation within a layer and affinity between layers. A topic lasts for some tokens (persistence). How
often an expert is chosen over all topics is set for each domain and each stretch of time (skew, drift).

A token's K experts are drawn by systematic sampling over experts in random order (Madow, 1949, "On the theory of
systematic sampling, II"): exactly K different experts, each with exactly its probability. Where tokens choose
fewer than K experts on average, each gets the whole number below or above that mean; the rest is of no expert.

Legend: G stretches of time, D domains, Z topics, L layers, E experts, K choices, S sequences, T tokens,
M random orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.write import Column, write_npz

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_TOKENS_PER_ORDER: Final = 16
_FITTING_ROUNDS: Final = 30
_LEAST: Final = 1e-9


@dataclass(frozen=True)
class Routing:
    """What synthetic routing is drawn from."""

    num_experts: int
    top_k: int
    layer_ids_L: Ints
    load_GDLE: Floats
    """Probability that a token of a domain chooses an expert, sum over experts as in `choices_GDL`."""
    choices_GDL: Floats
    """Experts that a token chooses on average: K, or less where some choices are of no expert."""
    tilt_ZLE: Floats
    """How much more often a topic chooses an expert than the others do; only ratios count."""
    topic_GDZ: Floats
    """How frequent topics are, sum 1."""
    persistence: float
    """Chance that a token keeps the topic of the one before; else it is drawn anew."""
    length_S: Ints
    """Tokens of each sequence, in the order of the trace."""
    domain_S: Ints
    stretch_S: Ints
    """Which stretch of time a sequence belongs to."""
    domain_names: tuple[str, ...]


def bounded(weight: Floats, choices: float | Floats) -> Floats:
    """Probabilities in the ratios of weights along the last axis, none above 1, with sum `choices`.

    Weights that would pass 1 are held there and the others share what is left. Several sums have a last axis of 1.
    """
    weight = np.maximum(weight, _LEAST)
    full = np.zeros(weight.shape, dtype=bool)
    chance = weight
    for _ in range(math.ceil(np.max(choices)) + 1):
        free = np.where(full, 0.0, weight)
        left = choices - full.sum(axis=-1, keepdims=True)
        chance = np.where(full, 1.0, free * left / np.maximum(free.sum(axis=-1, keepdims=True), _LEAST))
        over = chance > 1
        if not over.any():
            break
        full |= over
    found: Floats = np.minimum(chance, 1.0)
    return found


def by_topic(load_LE: Floats, tilt_ZLE: Floats, topic_Z: Floats, choices: float | Floats) -> Floats:
    """Probabilities of each topic [Z, L, E] that are tilted as asked and whose mean over topics is the load.

    Proportional fitting: what the mean lacks is multiplied into all topics, until nothing is lacking.

    Args:
        load_LE: probabilities over all topics.
        tilt_ZLE: how much more often a topic chooses an expert than the others do.
        topic_Z: how frequent topics are.
        choices: sum of the load over experts; of each layer as [L, 1].
    """
    base_LE = load_LE.copy()
    chance = bounded(base_LE * tilt_ZLE, choices)
    for _ in range(_FITTING_ROUNDS):
        mean_LE = np.einsum("z,zle->le", topic_Z, chance)
        base_LE = base_LE * load_LE / np.maximum(mean_LE, _LEAST)
        chance = bounded(base_LE * tilt_ZLE, choices)
    return chance


def draw(chance_E: Floats, count: int, choices: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Different experts for each of `count` tokens, each expert with its probability.

    Args:
        chance_E: probabilities, sum `choices`, none above 1.
        count: tokens.
        choices: experts per token; between two whole numbers each token gets one of the two.
        rng: source of chance.

    Returns:
        Experts [count, `choices` rounded up]; -1 in the last column where a token gets one less.
    """
    most = math.ceil(choices)
    if most == 0:
        return np.empty((count, 0), dtype=np.int64)
    orders = -(-count // _TOKENS_PER_ORDER)
    order_ME = rng.permuted(np.tile(np.arange(len(chance_E)), (orders, 1)), axis=1)
    end_ME = np.cumsum(chance_E[order_ME], axis=1)
    end_ME *= choices / end_ME[:, -1:]
    row_T = rng.permutation(np.repeat(np.arange(orders), _TOKENS_PER_ORDER))[:count]
    first_T1 = rng.random((count, 1))
    point_TK = first_T1 + np.arange(most)
    # Rows one after the other on one line: row m covers (m * (K + 1), m * (K + 1) + K].
    line = (end_ME + np.arange(orders)[:, None] * (most + 1)).reshape(-1)
    place_TK = np.searchsorted(line, point_TK + row_T[:, None] * (most + 1), side="right")
    place_TK = np.minimum(place_TK, (row_T[:, None] + 1) * len(chance_E) - 1)  # rounding at the end of a row
    chosen: NDArray[np.int64] = order_ME.reshape(-1)[place_TK]
    chosen[first_T1[:, 0] >= choices - (most - 1), -1] = -1
    return chosen


def topics(routing: Routing, rng: np.random.Generator) -> Iterator[Ints]:
    """The topic of each token, sequence by sequence."""
    for length, domain, stretch in zip(
        routing.length_S.tolist(), routing.domain_S.tolist(), routing.stretch_S.tolist(), strict=True
    ):
        weight_Z = routing.topic_GDZ[stretch, domain]
        fresh_T = rng.choice(len(weight_Z), size=length, p=weight_Z)
        begins = rng.random(length) >= routing.persistence
        begins[0] = True
        yield fresh_T[np.maximum.accumulate(np.where(begins, np.arange(length), 0))]


def write_trace(routing: Routing, path: Path, seed: int) -> int:
    """Draw a trace and write it; the same seed gives the same bytes. Returns its tokens.

    Raises:
        MissingEnvironmentError: no room, or no permission to write.
    """
    tokens = int(routing.length_S.sum())
    layers = len(routing.layer_ids_L)
    kind = np.min_scalar_type(-routing.num_experts)
    sequences = np.arange(len(routing.length_S))
    starts = np.repeat(np.cumsum(routing.length_S) - routing.length_S, routing.length_S)
    write_npz(
        path,
        {
            "expert_ids": Column((tokens, layers, routing.top_k), kind, _blocks(routing, kind, seed)),
            "seq_id": np.repeat(sequences, routing.length_S).astype(np.int32),
            "pos": (np.arange(tokens) - starts).astype(np.int32),
            "domain_id": np.repeat(routing.domain_S, routing.length_S).astype(np.int16),
            "domain_names": np.array(routing.domain_names),
            "layer_ids": routing.layer_ids_L,
            "num_experts": np.array(routing.num_experts),
        },
    )
    return tokens


def _blocks(routing: Routing, kind: np.dtype[Any], seed: int) -> Iterator[NDArray[Any]]:
    """Expert ids, one block for each run of sequences of the same stretch."""
    rng = np.random.default_rng(seed)
    topic_of = topics(routing, rng)
    borders = np.flatnonzero(np.diff(routing.stretch_S)) + 1
    for members in np.split(np.arange(len(routing.length_S)), borders):
        topic_T = np.concatenate([next(topic_of) for _ in members])
        domain_T = np.repeat(routing.domain_S[members], routing.length_S[members])
        ids = np.full((len(topic_T), len(routing.layer_ids_L), routing.top_k), -1, dtype=kind)
        stretch = int(routing.stretch_S[members[0]])
        for domain in np.unique(domain_T).tolist():
            topic_Z = routing.topic_GDZ[stretch, domain]
            choices_L = routing.choices_GDL[stretch, domain]
            chance_ZLE = by_topic(routing.load_GDLE[stretch, domain], routing.tilt_ZLE, topic_Z, choices_L[:, None])
            for topic in np.unique(topic_T[domain_T == domain]).tolist():
                inside = np.flatnonzero((domain_T == domain) & (topic_T == topic))
                for row, (chance_E, choices) in enumerate(zip(chance_ZLE[topic], choices_L.tolist(), strict=True)):
                    drawn = draw(chance_E, len(inside), choices, rng)
                    ids[inside, row, : drawn.shape[1]] = drawn
        yield ids
