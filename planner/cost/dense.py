"""Time of everything that does not depend on the placement of experts.

Legend: L hidden layers.

Attention, dense and shared feed-forward parts, routers, tensor-parallel collectives, LM head and
pipeline sends, for one micro-batch on one data-parallel rank. Between blocks the tokens are spread
over all GPUs of a stage, so attention costs one reduce-scatter and one all-gather (together an
all-reduce), a dense feed-forward part another; experts bring their own exchange (`moe.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from planner.cost.attention import FIRST_ENTRIES, Core, split_chain, tiled_keys
from planner.cost.collectives import Blocks
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import (
    attended_entries,
    kept_tokens,
    kv_bytes_per_token,
    state_bytes_per_sequence,
)
from planner.cost.products import Product, attention_products, ffn_products, shared_products
from planner.cost.roofline import Kernel, kernel
from planner.cost.term import Term, merged
from planner.inputs.efficiency import AttentionName, Work
from planner.inputs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GroupedAttention,
    LatentAttention,
    LayerRun,
    NoAttention,
    StateAttention,
)
from planner.inputs.precision import CACHE_BITS, WEIGHTS, WeightName
from planner.inputs.sourced import Sourced

AttentionKind = Literal["gqa", "mla"]

BF16_BYTES = 2
SHARED_EXPERTS: Final = "shared experts"
# A recurrent state decays, takes in the new token and is read out: three multiply-adds per number.
_STATE_FLOP = 6.0
_STATE_CHUNK = 64  # tokens that one pass of a chunked prefill kernel works on


@dataclass(frozen=True)
class DenseCost:
    """Placement-independent work of one stage on one kind of GPU."""

    instance: Instance
    grid: Grid
    kind: int
    """Kind of GPU that does it."""

    @property
    def tokens(self) -> float:
        """Tokens of one micro-batch on one data-parallel rank."""
        split = self.grid.split
        return self.instance.step_tokens / (split.micro_batches * split.dp)

    @cached_property
    def run_terms(self) -> dict[LayerRun, tuple[Term, ...]]:
        """Terms of one layer of each kind."""
        return {run: merged(self.layer_terms(run)) for run in self.instance.model.layer_kinds}

    @cached_property
    def head(self) -> tuple[Term, ...]:
        """LM head, on the last stage."""
        return tuple(self.head_terms())

    def layer_terms(self, run: LayerRun) -> list[Term]:
        """One layer, experts and their exchange left out."""
        terms = [self._norms(run.norms)]
        if not isinstance(run.attention, NoAttention):
            reduce = self._collective("attention all-reduce").times(_blocks(run.attention))
            terms = [*self._attention(run.attention), reduce, *terms]
        hidden, tp = self.instance.model.hidden_size, self.grid.split.tp
        if isinstance(run.ffn, DenseFfn):
            if not run.ffn.intermediate_size:
                return [term for term in terms if term.seconds]
            products = ffn_products(gated=run.ffn.gated, hidden_size=hidden, width=run.ffn.intermediate_size // tp)
            terms += [self._gemm("dense feed-forward", products), self._collective("dense all-reduce")]
            return [term for term in terms if term.seconds]
        router = (Product(hidden, run.ffn.num_experts + run.ffn.zero_experts),)
        terms.append(self._gemm("router", router, tokens=self.tokens / tp, weights="bf16"))
        shared = shared_products(run.ffn, hidden, tp)
        if shared:
            terms.append(self._gemm(SHARED_EXPERTS, shared))
        return [term for term in terms if term.seconds]

    def head_terms(self) -> list[Term]:
        """LM head of the last stage: in prefill only for the last token of each prompt."""
        model, work = self.instance.model, self.instance.workload
        tokens = self.tokens if work.phase == "decode" else max(1.0, self.tokens / work.context_length)
        products = (Product(model.hidden_size, -(-model.vocab_size // self.grid.split.tp)),)
        weights = self.instance.constants.precision.embedding
        return [self._gemm("LM head", products, tokens=tokens, weights=weights)]

    # --- parts ------------------------------------------------------------------------------------

    def _kernels(self, work: Work, name: str, weights: WeightName) -> tuple[Kernel, ...]:
        gpu = self.instance.topology.kinds[self.kind]
        return tuple(kernel(gpu, curve, weights) for curve in self.instance.curves(self.kind, work, name))

    def _gemm(
        self,
        name: str,
        products: Sequence[Product],
        tokens: float | None = None,
        weights: WeightName | None = None,
    ) -> Term:
        """One launch for each product; its chain is the sum over its inner width."""
        weights = weights or self.instance.constants.precision.dense
        tokens = self.tokens if tokens is None else tokens
        bits, per_width = WEIGHTS[weights].bits, tokens * BF16_BYTES
        works = [
            (2.0 * inner * outer * tokens, float(inner * outer * bits / 8), per_width * (inner + outer), float(inner))
            for inner, outer in products
        ]
        return _by_the_fastest(
            name,
            self._kernels("gemm", weights, weights),
            lambda k: sum(k.seconds(flop, read, moved, chain=chain) for flop, read, moved, chain in works),
            lambda k: sum(k.light_s(flop, read) for flop, read, _, _ in works),
        )

    def _attention(self, attention: Attention) -> list[Term]:
        model, tp = self.instance.model, self.grid.split.tp
        products = attention_products(attention, model.hidden_size, tp)
        projections = self._gemm("attention projections", products)
        if isinstance(attention, StateAttention):
            return [projections, self._state_core(attention)]
        if isinstance(attention, LatentAttention):
            one = attention.model_copy(update={"blocks": 1})
            core = [term.times(attention.blocks) for term in (self._attention_core(one), *self._indexing(one))]
            return [projections.times(attention.blocks), *core]
        return [projections, self._attention_core(attention), *self._indexing(attention)]

    def _attention_core(self, attention: Attention) -> Term:
        work = self.instance.workload
        heads = _num_heads(attention) / self.grid.split.tp
        per_pair, per_head = _dims(attention, work.phase)
        moved = self.tokens * BF16_BYTES * heads * per_head
        seen = float(attended_entries(attention, work.context_length))
        if work.phase == "decode":
            flop, entry = 2.0 * self.tokens * heads * seen * per_pair, self._entry_bytes(attention)
            sequences = self.tokens / work.tokens_per_sequence
            moved += sequences * FIRST_ENTRIES * entry
            core = Core(flop, flop, sequences * seen * entry, moved, split_chain(seen))
        else:
            # Causal: on average half of the prompt, unless each query sees fewer tokens than that anyway.
            mean = (seen + 1) / 2 if seen == work.context_length else seen
            pair = 2.0 * self.tokens * heads * per_pair
            moved += self.tokens * kv_bytes_per_token(attention, self.grid.split.tp, self._cache)
            core = Core(pair * mean, pair * tiled_keys(mean), 0.0, moved, seen)
        return self._core_term("attention", attention, core)

    @property
    def _cache(self) -> str:
        return self.instance.constants.precision.kv_cache

    def _entry_bytes(self, attention: Attention) -> float:
        """Bytes that decode reads per entry it attends to (an indexer's own keys left out)."""
        if isinstance(attention, CompressedAttention):
            return float(attention.head_dim * CACHE_BITS[self._cache] / 8)
        if isinstance(attention, LatentAttention) and attention.indexer is not None:
            attention = attention.model_copy(update={"indexer": None})
        return kv_bytes_per_token(attention, self.grid.split.tp, self._cache)

    def _indexing(self, attention: Attention) -> list[Term]:
        """Scores of an indexer over everything it may pick from, whole on every GPU."""
        if not isinstance(attention, LatentAttention | CompressedAttention):
            return []
        indexer, work = attention.indexer, self.instance.workload
        if indexer is None or not indexer.own:
            return []
        rate = attention.compress_rate if isinstance(attention, CompressedAttention) else 1
        entries = kept_tokens(attention, work.context_length) / (rate or 1)
        key = float(indexer.head_dim * CACHE_BITS[self._cache] / 8)
        moved = self.tokens * BF16_BYTES * indexer.num_heads * indexer.head_dim
        pair = 2.0 * self.tokens * indexer.num_heads * indexer.head_dim
        if work.phase == "decode":
            flop, sequences = pair * entries, self.tokens / work.tokens_per_sequence
            moved += sequences * FIRST_ENTRIES * key
            core = Core(flop, flop, sequences * entries * key, moved, split_chain(entries))
        else:
            core = Core(pair * entries / 2, pair * tiled_keys(entries / 2), 0.0, moved + self.tokens * key, entries)
        return [self._core_term("attention indexer", attention, core)]

    def _state_core(self, attention: StateAttention) -> Term:
        """Update of a recurrent state: in decode read and written once per token, in prefill once per chunk."""
        tp, work = self.grid.split.tp, self.instance.workload
        num_bytes = 2.0 * self.tokens * state_bytes_per_sequence(attention, tp)
        if work.phase == "prefill":
            num_bytes /= min(_STATE_CHUNK, work.context_length)
        flop = _STATE_FLOP * self.tokens * attention.state_elements / tp
        return self._core_term("recurrent state", attention, Core(flop, flop, num_bytes, 0.0, 0.0))

    def _core_term(self, name: str, attention: Attention, core: Core) -> Term:
        work: Work = "attention_decode" if self.instance.workload.phase == "decode" else "attention_prefill"
        kind: AttentionKind = "mla" if isinstance(attention, LatentAttention) else "gqa"
        return _by_the_fastest(
            name,
            self._kernels(work, attention_curve(kind, self._cache), "bf16"),
            lambda k: k.seconds(core.computed_flop, core.read_bytes, core.moved_bytes, chain=core.chain),
            lambda k: k.light_s(core.flop, core.least_bytes),
        )

    def _norms(self, norms: int) -> Term:
        # A norm with its residual reads and writes the stream about four times.
        hbm = self.instance.topology.kinds[self.kind].hbm_bandwidth
        reached = max(curve.value.memory for curve in self.instance.curves(self.kind, "gemm", "bf16"))
        num_bytes = 4.0 * norms * BF16_BYTES * self.tokens / self.grid.split.tp * self.instance.model.hidden_size
        light = num_bytes / hbm.value
        launch = self.instance.small_kernel(self.kind)
        seconds = light / reached + norms * launch.value
        source = f"{4 * norms} passes over the activations; {launch.source}"
        return Term("norms and residuals", seconds, light, "assumed", source)

    def _collective(self, name: str) -> Term:
        """An all-reduce over the tensor-parallel group; nothing for tp = 1."""
        num_bytes = self.tokens * self.instance.model.hidden_size * BF16_BYTES
        return Blocks(self.instance, self.grid.gpus, self.grid.split.tp).term("all_reduce", num_bytes).named(name)


def attention_curve(kind: AttentionKind, cache: str) -> AttentionName:
    """The curve by which attention over a cache of some format is priced."""
    if cache == "fp8":
        return "mla_fp8" if kind == "mla" else "gqa_fp8"
    return kind


def _by_the_fastest(
    name: str, kernels: Sequence[Kernel], seconds_of: Callable[[Kernel], float], light_of: Callable[[Kernel], float]
) -> Term:
    """The term of some work, done by that of the kernels that is done first."""
    bound = min(kernels, key=seconds_of)
    return Term(name, seconds_of(bound), light_of(bound), bound.basis, bound.source, bound.errors)


def _num_heads(attention: Attention) -> int:
    """Query heads of one attention block."""
    return 0 if isinstance(attention, NoAttention) else attention.num_heads


def _blocks(attention: Attention) -> int:
    return attention.blocks if isinstance(attention, LatentAttention) else 1


def _dims(attention: Attention, phase: str) -> tuple[int, int]:
    """Of one head: multiply-adds for one query and one key (scores and values), and width of query and output.

    Latent attention in decode works on the compressed cache ("absorbed"), in prefill on full heads.
    """
    if isinstance(attention, LatentAttention):
        if phase == "decode":
            absorbed = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
            return absorbed, absorbed
        query = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        return query + attention.v_head_dim, 2 * attention.v_head_dim
    assert isinstance(attention, GroupedAttention | CompressedAttention)
    return 2 * attention.head_dim, 2 * attention.head_dim


def joined_source(first: Sourced[Any], second: Sourced[Any]) -> str:
    """Both sources, where there are any."""
    return "; ".join(text for text in (first.source, second.source) if text)
