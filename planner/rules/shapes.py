"""What a split must divide: heads, widths, quantisation blocks, vocabulary, experts, layers, batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from planner.cost.instance import Instance
from planner.inputs.engines import EngineRules
from planner.inputs.model import DenseFfn, GroupedAttention, NoAttention
from planner.inputs.precision import WEIGHTS
from planner.plan.placement import slots_of_ranks
from planner.plan.split import Split
from planner.rules.shares import Shares
from planner.rules.verdict import Verdict, divides

# Threads in which users met these rules; cases of theirs are replayed in tests/unit/test_known_verdicts.py.
_HEADS: Final = "vllm-project/vllm#52435"
_BLOCKS: Final = "vllm-project/vllm#17569, #25292"
_EXPERTS: Final = "vllm-project/vllm#52435, vllm-project/vllm-ascend#16384"


def attention(instance: Instance, split: Split) -> Iterator[Verdict]:
    """Heads are never cut; KV heads may be held by several GPUs each."""
    if split.tp == 1:
        return
    parts = (run.attention for run in instance.model.layers)
    for part in dict.fromkeys(part for part in parts if not isinstance(part, NoAttention)):
        yield divides("attention heads", part.num_heads, "tp", split.tp, _HEADS)
        if isinstance(part, GroupedAttention):
            heads, tp = part.num_kv_heads, split.tp
            holds = heads % tp == 0 or tp % heads == 0
            detail = f"{heads} neither divides by tp {tp} nor divides it"
            if holds:
                detail = f"{heads} on {tp}" if tp <= heads else f"each of {heads} held by {tp // heads} GPUs"
            yield Verdict("KV heads", f"{heads}", f"mod tp {tp}, or the reverse", holds, detail)


def vocabulary(instance: Instance, split: Split, rules: EngineRules) -> Iterator[Verdict]:
    """Embedding and LM head are cut by rows, after padding where the engine pads to a fixed multiple."""
    padding = rules.vocabulary_padding
    if padding is None or split.tp == 1:
        return
    rows = -(-instance.model.vocab_size // padding) * padding
    limit, rest = f"mod tp {split.tp}", rows % split.tp
    detail = f"{instance.model.vocab_size} padded to {rows} {limit} = {rest}"
    yield Verdict("vocabulary", f"{rows}", limit, rest == 0, detail, rules.vocabulary_source)


def widths(instance: Instance, split: Split) -> Iterator[Verdict]:
    """Widths divide among GPUs, and no quantisation block is cut."""
    precision, moe = instance.constants.precision, instance.model.moe
    dense_block = WEIGHTS[precision.dense].block
    parts = [("expert width", moe.intermediate_size, "etp", split.etp, WEIGHTS[precision.experts].block)]
    for ffn in dict.fromkeys(run.ffn for run in instance.model.layers):
        if isinstance(ffn, DenseFfn):
            parts.append(("dense width", ffn.intermediate_size, "tp", split.tp, dense_block))
        elif ffn.shared_intermediate_size:
            parts.append(("shared expert width", ffn.shared_intermediate_size, "tp", split.tp, dense_block))
    return (_width(*part) for part in dict.fromkeys(parts) if part[3] > 1)


def _width(rule: str, width: int, degree: str, size: int, block: int | None) -> Verdict:
    if block is None or width % size:
        return divides(rule, width, degree, size)
    part = width // size
    value, rest = f"{width}/{size} = {part}", part % block
    detail = f"{value} mod {block} = {rest} (quantisation block)"
    return Verdict(rule, value, f"mod {block}", rest == 0, detail, _BLOCKS)


def experts(
    instance: Instance, split: Split, redundant: int, rules: EngineRules, shares: Shares | None
) -> Iterator[Verdict]:
    """Every rank has a slot, ranks hold equally many unless the engine allows otherwise, none holds one twice."""
    count = instance.model.moe.num_experts
    slots, ep = count + redundant, split.ep
    if ep > slots:
        detail = f"{slots} leave some of ep {ep} ranks empty"
        yield Verdict("slots", f"{slots}", f"at least ep {ep}", holds=False, detail=detail)
        return
    if ep == 1:
        return
    limit, rest = f"mod ep {ep}", slots % ep
    uneven = rules.uneven_experts
    holds = not rest or uneven == "always" or (uneven == "without_copies" and not redundant)
    detail = f"{slots} {limit} = {rest}"
    if not holds:
        detail += f"; {-count % ep} redundant experts would fill the ranks"
    elif rest:
        base, longer = divmod(slots, ep)
        detail += f": {longer} ranks hold {base + 1}, {ep - longer} hold {base}"
    yield Verdict("experts", f"{slots}", limit, holds, detail, _EXPERTS)
    even_R = slots_of_ranks(slots, ep)
    filled = (even_R,) if shares is None else shares.slots_KR
    if any((slots_R != even_R).any() for slots_R in filled):
        detail = "the engine spreads experts evenly over ranks, fast or slow"
        yield Verdict("uneven slots", "unequal", "uneven_experts always", uneven == "always", detail, rules.source)
    longest = max(int(slots_R.max()) for slots_R in filled)
    detail = f"{longest} per rank" + ("" if longest <= count else f", but there are only {count} experts")
    yield Verdict("slots", f"{longest}", f"at most {count}", longest <= count, detail)


def work(instance: Instance, split: Split) -> Iterator[Verdict]:
    """Every stage has a layer, every rank a token, every stage a micro-batch to work on."""
    layers = instance.model.num_layers
    if split.pp > 1:
        detail = f"pp {split.pp}" + (" is more than" if split.pp > layers else " of") + f" the {layers} layers"
        yield Verdict("stages", f"{split.pp}", f"at most {layers}", split.pp <= layers, detail)
    tokens = instance.step_tokens / (split.micro_batches * split.dp)
    value = f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.3g}"
    detail = f"{value} tokens per data-parallel rank and micro-batch"
    yield Verdict("batch", value, "at least 1", tokens >= 1, detail)
    if instance.constants.communication.overlap == "two_batch":
        count, least = split.micro_batches, 2 * split.pp
        detail = f"{count}" + (" are fewer than" if count < least else " for") + f" the {least} that take turns"
        yield Verdict("micro-batches", f"{count}", f"at least {least}, overlap: two_batch", count >= least, detail)
    elif split.pp > 1:
        count = split.micro_batches
        detail = f"{count}" + (" are fewer than" if count < split.pp else " for") + f" pp {split.pp}"
        yield Verdict("micro-batches", f"{count}", f"at least pp {split.pp}", count >= split.pp, detail)
