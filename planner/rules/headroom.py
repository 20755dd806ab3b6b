"""How much more a split could hold: spare KV tokens, most sequences, longest context. Whole numbers, exact.

Stages are cut where they need least memory, so these are limits of the split, not of one plan's cuts:
with one sequence or one token more no cuts fit, or the communication library refuses the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from planner.cost.kv_cache import growth_per_token
from planner.rules.kernel import tokens_fit
from planner.rules.memory import Occupancy
from planner.rules.ruled import RuledSplit

MOST: Final = 10**8
"""Larger batches and contexts are not looked for: nothing limits them."""


@dataclass(frozen=True)
class Headroom:
    """What fits besides the workload; None where memory sets no limit."""

    spare_kv_tokens: int | None
    """Tokens that the KV cache of a data-parallel rank could hold besides."""
    most_sequences: int | None
    """Most sequences of the workload's context in decode, most tokens of a step in prefill; all ranks together."""
    longest_context: int | None
    """Longest context of the workload's sequences; None in prefill, where the cache holds the step's tokens."""


def headroom(fits: RuledSplit) -> Headroom:
    """What a feasible split could hold at most."""
    instance, held = fits.instance, _held(fits)
    work = instance.workload
    now, context = instance.step_tokens, work.context_length
    exchanged = _last(lambda tokens: 0 if _is_exchanged(fits, tokens) else 1, now, MOST)
    most = _last(lambda tokens: excess(held, tokens, context), now, exchanged)
    longest = MOST
    if work.phase == "decode":
        longest = _last(lambda length: excess(held, now, length), context, MOST)
    return Headroom(
        spare_kv_tokens=_spare_kv_tokens(fits),
        most_sequences=most // work.tokens_per_sequence if most < MOST else None,
        longest_context=longest if longest < MOST else None,
    )


def is_headroom(room: Headroom, fits: RuledSplit) -> bool:
    """Whether a split holds what is said, and not one more; much less work than to find it."""
    work, now = fits.instance.workload, fits.instance.step_tokens
    each = work.tokens_per_sequence

    def holds(sequences: int) -> bool:
        tokens = sequences * each
        return _is_exchanged(fits, tokens) and excess(_held(fits), tokens, work.context_length) <= 0

    def reaches(length: int) -> bool:
        return excess(_held(fits), now, length) <= 0

    if room.spare_kv_tokens != _spare_kv_tokens(fits):
        return False
    if not _is_last(holds, room.most_sequences, now // each, MOST // each):
        return False
    if work.phase == "prefill":
        return room.longest_context is None
    return _is_last(reaches, room.longest_context, work.context_length, MOST)


def _is_last(holds: Callable[[int], bool], last: int | None, known: int, limit: int) -> bool:
    """Whether `last` is the last number for which something holds that holds for `known`; None: it always does."""
    if last is None:
        return holds(limit)
    return known <= last < limit and holds(last) and not holds(last + 1)


def excess(held: Occupancy, step_tokens: int, context_length: int) -> int:
    """Bytes by which the fullest GPU would be over its memory with this work, negative where it fits."""
    return held.with_work(step_tokens, context_length).excess[0]


def _is_exchanged(fits: RuledSplit, tokens: int) -> bool:
    """Whether the communication library takes a step of so many tokens."""
    slots = int(fits.shares.slots_KR[0].sum())
    return tokens_fit(fits.instance, fits.split, slots, tokens)


def _held(fits: RuledSplit) -> Occupancy:
    assert fits.held is not None, "only splits whose grid makes sense hold anything"
    return fits.held


def _last(over: Callable[[int], int], known: int, limit: int) -> int:
    """The last number up to `limit` at which a rising function is not above 0; at `known` it is not.

    Memory is all but linear in the work, so the secant points at the place; halving in between keeps
    the worst case at the logarithm.
    """
    low, high, below, above = known, min(4 * known, limit), over(known), 0
    while (above := over(high)) <= 0:
        if high == limit:
            return limit
        low, high, below = high, min(4 * high, limit), above
    halve = False
    while high - low > 1:
        guess = (low + high) // 2 if halve else low + (high - low) * -below // (above - below)
        guess, halve = min(max(guess, low + 1), high - 1), not halve
        value = over(guess)
        if value <= 0:
            low, below = guess, value
        else:
            high, above = guess, value
    return low


def _spare_kv_tokens(fits: RuledSplit) -> int | None:
    """Least over stages of the free bytes over those of one more token, in the layers where the cache grows."""
    instance, held = fits.instance, _held(fits)
    constants, model, tp = instance.constants, instance.model, fits.split.tp
    share = constants.engine_memory.cache_share
    part = Fraction(1) if share is None else Fraction(str(share.value))
    growth = {
        run: growth_per_token(run.attention, tp, constants.precision.kv_cache, instance.workload.context_length) / part
        for run in model.layers
    }
    limits = held.limits
    spare = []
    for stage, layers in enumerate(held.cuts):
        per_token = sum((growth[model.layer_list[layer]] for layer in layers), Fraction(0))
        used_Q = limits.layer_bytes_KQL[stage, :, layers.start : layers.stop].sum(axis=1) + limits.base_bytes_K[stage]
        if per_token:
            spare.append(int(int((limits.capacity_KQ[stage] - used_Q).min()) // per_token))
    return min(spare, default=None)
