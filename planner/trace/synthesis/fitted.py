"""Synthetic routing fitted to a recorded trace: the same skew, domains, drift and affinity, but none of its tokens.

Kept of the trace: how many tokens each sequence has, its domain, how often each expert is chosen in each domain and
sixteenth of the trace, and topics. Topics are latent classes of tokens, found by expectation maximisation on
stretches of consecutive tokens: given its topic, a token's choices in all layers are taken as independent.

Legend: G stretches of time, D domains, Z topics, L layers, E experts, K choices, S sequences, T tokens,
N sampled tokens, C chunks of consecutive tokens.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.trace.aggregate import count_by
from planner.trace.batches import file_order
from planner.trace.domains import domains_of
from planner.trace.synthesis.routing import Routing, bounded
from planner.trace.synthesis.stated import STRETCHES
from planner.trace.trace import TokenTrace, Trace
from planner.trace.windows import cut

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TOPICS: Final = 16
_SAMPLED, _CHUNK = 16_384, 64
_ROUNDS: Final = 25
_PRIOR_TOKENS: Final = 64.0
"""A domain's load in a stretch of time leans on its load over all time as if so many more tokens had been seen."""
_PRIOR_CHOICES: Final = 0.5
_STEP_TOKENS: Final = 4096
"""As `ep-plan trace info` looks at a trace by default."""


def routing_like(trace: Trace) -> Routing:
    """The routing model of a recorded trace.

    Raises:
        UsageError: the trace has counts only.
        InputError: it is no good trace, as for every other command: an expert id is out of range, say, or nothing is
            chosen in some window.
    """
    if not isinstance(trace, TokenTrace):
        hint = "counts say nothing of single tokens: share the file as it is"
        raise UsageError(f"{trace.path} holds counts only", hint=hint)
    cut([trace], "decode", _STEP_TOKENS)
    seq_id_T, pos_T = trace.seq_id_T, trace.pos_T
    seq_T = np.zeros(trace.num_tokens, dtype=np.int64) if seq_id_T is None else file_order(seq_id_T)
    domains = domains_of(trace)
    number_T = np.zeros(trace.num_tokens, dtype=np.int64) if domains is None else domains.number_T.astype(np.int64)
    names = ("all",) if domains is None else domains.names
    _, first_S, length_S = np.unique(seq_T, return_index=True, return_counts=True)
    domain_S = number_T[first_S]
    stretch_S = np.minimum((np.cumsum(length_S) - length_S / 2) * STRETCHES / len(seq_T), STRETCHES - 1).astype(
        np.int64
    )
    group_T = stretch_S[seq_T] * len(names) + domain_S[seq_T]
    order_T = np.argsort(seq_T, kind="stable") if pos_T is None else np.lexsort((pos_T, seq_T))
    load_GDLE, choices_GDL = _loads(trace, group_T, len(names))
    topics = _Topics(trace, order_T, seq_T)
    return Routing(
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        layer_ids_L=trace.layer_ids_L,
        load_GDLE=load_GDLE,
        choices_GDL=choices_GDL,
        tilt_ZLE=topics.tilt_ZLE,
        topic_GDZ=topics.frequencies(group_T, len(names)),
        persistence=topics.persistence,
        length_S=length_S.astype(np.int64),
        domain_S=domain_S,
        stretch_S=stretch_S,
        domain_names=names,
    )


def _loads(trace: TokenTrace, group_T: Ints, num_domains: int) -> tuple[Floats, Floats]:
    """How often each expert is chosen in each stretch and domain [G, D, L, E], and all together [G, D, L]."""
    counts = count_by(trace, group_T.astype(np.int32), STRETCHES * num_domains).astype(float)
    counts_GDLE = counts.reshape(STRETCHES, num_domains, *counts.shape[1:])
    tokens_GD1 = np.bincount(group_T, minlength=STRETCHES * num_domains).reshape(STRETCHES, num_domains, 1)
    choices_DL = counts_GDLE.sum(axis=(0, 3)) / np.maximum(tokens_GD1.sum(axis=0), 1)
    choices_GDL = (counts_GDLE.sum(axis=3) + _PRIOR_TOKENS * choices_DL) / (tokens_GD1 + _PRIOR_TOKENS)
    domain_DLE = counts_GDLE.sum(axis=0) + _PRIOR_CHOICES
    prior_DLE = domain_DLE * (_PRIOR_TOKENS * choices_DL[..., None] / domain_DLE.sum(axis=2, keepdims=True))
    return bounded(counts_GDLE + prior_DLE, choices_GDL[..., None]), choices_GDL


class _Topics:
    """Latent classes of tokens."""

    def __init__(self, trace: TokenTrace, order_T: Ints, seq_T: Ints) -> None:
        self._token_N = _chunks(order_T)
        rows = _rows(trace, self._token_N)
        layers, experts = rows.shape[1], trace.num_experts
        self._seq_N = seq_T[self._token_N]
        # A column of the table for every expert of every layer, and one for "no expert" that says nothing.
        self._cell_NC = np.where(rows < 0, layers * experts, np.arange(layers)[:, None] * experts + rows)
        self._cell_NC = self._cell_NC.reshape(len(rows), -1)
        self._cells = layers * experts
        count = max(1, min(TOPICS, len(rows) // 64))
        part_NZ = self._begin(count)
        for _ in range(_ROUNDS):
            share_ZC, topic_Z = self._maximise(part_NZ)
            part_NZ = self._expect(share_ZC, topic_Z)
        share_ZC, topic_Z = self._maximise(part_NZ)
        mean_C = topic_Z @ share_ZC
        self.tilt_ZLE: Floats = (share_ZC / mean_C).reshape(count, layers, experts)
        self._part_NZ = part_NZ
        self.persistence = self._persistence(topic_Z)

    def _begin(self, count: int) -> Floats:
        """Consecutive tokens start alike: chunks are dealt to topics by a random projection of their choices."""
        rng = np.random.default_rng(0)
        place_C1 = rng.standard_normal(self._cells + 1)[self._cell_NC].sum(axis=1)
        smooth = np.add.reduceat(place_C1, np.arange(0, len(place_C1), _CHUNK)).repeat(_CHUNK)[: len(place_C1)]
        rank_N = np.argsort(np.argsort(place_C1 + smooth, kind="stable"), kind="stable")
        dealt: Floats = np.eye(count)[rank_N * count // len(rank_N)]
        return dealt

    def _maximise(self, part_NZ: Floats) -> tuple[Floats, Floats]:
        """Shares of the cells within each layer [Z, cells] and frequencies of the topics."""
        count = part_NZ.shape[1]
        table = np.empty((count, self._cells + 1))
        for topic in range(count):
            weight = np.repeat(part_NZ[:, topic], self._cell_NC.shape[1])
            table[topic] = np.bincount(self._cell_NC.reshape(-1), weight, minlength=self._cells + 1)
        mean = table[:, :-1].sum(axis=0)
        prior = mean / max(mean.sum(), 1) * self._cell_NC.shape[1] + 1e-6  # one token of the whole trace
        found = table[:, :-1] + prior
        return found / found.sum(axis=1, keepdims=True), part_NZ.mean(axis=0)

    def _expect(self, share_ZC: Floats, topic_Z: Floats) -> Floats:
        """How likely each topic is for each sampled token."""
        log_CZ = np.vstack([np.log(share_ZC).T, np.zeros(len(share_ZC))])
        score_NZ = np.log(np.maximum(topic_Z, 1e-12)) + np.stack(
            [log_CZ[:, topic][self._cell_NC].sum(axis=1) for topic in range(len(share_ZC))], axis=1
        )
        part = np.exp(score_NZ - score_NZ.max(axis=1, keepdims=True))
        sure: Floats = part / part.sum(axis=1, keepdims=True)
        return sure

    def _persistence(self, topic_Z: Floats) -> float:
        """From how often neighbours share a topic: p + (1 - p) * (chance of meeting it anew)."""
        together = (self._part_NZ[1:] * self._part_NZ[:-1]).sum(axis=1)[self._seq_N[1:] == self._seq_N[:-1]]
        anew = float((topic_Z**2).sum())
        if not len(together) or anew >= 1:
            return 0.0
        return float(np.clip((together.mean() - anew) / (1 - anew), 0.0, 0.999))

    def frequencies(self, group_T: Ints, num_domains: int) -> Floats:
        """How frequent topics are in each stretch and domain [G, D, Z], leaning on the domain, and that on all."""
        count = self._part_NZ.shape[1]
        groups = np.zeros((STRETCHES * num_domains, count))
        np.add.at(groups, group_T[self._token_N], self._part_NZ)
        by_GDZ = groups.reshape(STRETCHES, num_domains, count)
        domain_DZ = by_GDZ.sum(axis=0) + self._part_NZ.mean(axis=0)
        prior_DZ = domain_DZ / domain_DZ.sum(axis=1, keepdims=True) * _PRIOR_TOKENS
        both = by_GDZ + prior_DZ
        found: Floats = both / both.sum(axis=2, keepdims=True)
        return found


def _chunks(order_T: Ints) -> Ints:
    """Tokens of evenly spaced chunks of consecutive tokens, in order of sequence and position."""
    if len(order_T) <= _SAMPLED:
        return order_T
    starts = np.linspace(0, len(order_T) - _CHUNK, _SAMPLED // _CHUNK).astype(np.int64)
    inside = np.unique(starts[:, None] + np.arange(_CHUNK))
    return order_T[inside]


def _rows(trace: TokenTrace, token_N: Ints) -> Ints:
    """Choices of some tokens [N, L, K], in their order."""
    found = np.empty((len(token_N), len(trace.layer_ids_L), trace.top_k), dtype=np.int64)
    for start, block in trace.blocks():
        here = (token_N >= start) & (token_N < start + len(block))
        found[here] = block[token_N[here] - start]
    return found
