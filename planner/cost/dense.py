"""Time of everything that does not depend on the placement of experts.

Legend: L hidden layers.

Attention, dense and shared feed-forward parts, routers, tensor-parallel collectives, LM head and
pipeline sends, for one micro-batch on one data-parallel rank. Between blocks the tokens are spread
over all GPUs of a stage, so attention costs one reduce-scatter and one all-gather (together an
all-reduce), a dense feed-forward part another; experts bring their own exchange (`moe.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from planner.cost.collectives import Blocks
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import (
    attended_entries,
    kept_tokens,
    kv_bytes_per_token,
    state_bytes_per_sequence,
)
from planner.cost.roofline import Kernel, kernel
from planner.cost.term import Term, merged
from planner.inputs.efficiency import Curve, Work
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
from planner.inputs.parameters import attention_parameters, dense_parameters, router_parameters, shared_parameters
from planner.inputs.precision import CACHE_BITS, WEIGHTS, WeightName
from planner.inputs.sourced import Sourced

BF16_BYTES = 2
SHARED_EXPERTS: Final = "shared experts"
# A recurrent state decays, takes in the new token and is read out: three multiply-adds per number.
_STATE_FLOP = 6.0
_QUERY_TILE = 128
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
            parameters = dense_parameters(run.ffn, hidden, tp)
            terms += [self._gemm("dense feed-forward", parameters, 2), self._collective("dense all-reduce")]
            return [term for term in terms if term.seconds]
        router = router_parameters(run.ffn, hidden)
        terms.append(self._gemm("router", router, 1, tokens=self.tokens / tp, weights="bf16"))
        shared = shared_parameters(run.ffn, hidden, tp)
        if shared:
            terms.append(self._gemm(SHARED_EXPERTS, shared, 2))
        return [term for term in terms if term.seconds]

    def head_terms(self) -> list[Term]:
        """LM head of the last stage: in prefill only for the last token of each prompt."""
        model, work = self.instance.model, self.instance.workload
        tokens = self.tokens if work.phase == "decode" else max(1.0, self.tokens / work.context_length)
        parameters = -(-model.vocab_size // self.grid.split.tp) * model.hidden_size
        weights = self.instance.constants.precision.embedding
        return [self._gemm("LM head", parameters, 1, tokens=tokens, weights=weights)]

    # --- parts ------------------------------------------------------------------------------------

    def _kernel(self, curve: Curve, weights: WeightName) -> Kernel:
        return kernel(self.instance.topology.kinds[self.kind], curve, weights)

    def _gemm(
        self, name: str, parameters: int, launches: int, tokens: float | None = None, weights: WeightName | None = None
    ) -> Term:
        """So many products, each of which begins or ends at the width of the model."""
        weights = weights or self.instance.constants.precision.dense
        tokens = self.tokens if tokens is None else tokens
        bound = self._kernel(self.instance.curve(self.kind, "gemm", weights), weights)
        flop = 2.0 * parameters * tokens
        num_bytes = float(parameters * WEIGHTS[weights].bits / 8)
        hidden = self.instance.model.hidden_size
        moved = tokens * BF16_BYTES * (launches * hidden + parameters / hidden)
        seconds = bound.seconds(flop, num_bytes, moved) + (launches - 1) * bound.base_s
        return Term(name, seconds, bound.light_s(flop, num_bytes), bound.basis, bound.source)

    def _attention(self, attention: Attention) -> list[Term]:
        model, tp = self.instance.model, self.grid.split.tp
        few = isinstance(attention, GroupedAttention | StateAttention)
        parameters = attention_parameters(attention, model.hidden_size, tp)
        projections = self._gemm("attention projections", parameters, 2 if few else 4)
        if isinstance(attention, StateAttention):
            return [projections, self._state_core(attention)]
        return [projections, self._attention_core(attention), *self._indexing(attention)]

    def _attention_core(self, attention: Attention) -> Term:
        instance = self.instance
        work, precision = instance.workload, instance.constants.precision
        tp = self.grid.split.tp
        heads = _num_heads(attention) / tp
        seen = float(attended_entries(attention, work.context_length))
        if work.phase == "prefill" and seen == work.context_length:
            seen = (seen + 1) / 2  # causal: on average half of the prompt
        flop = 2.0 * self.tokens * heads * seen * _dims_per_pair(attention, work.phase)
        if work.phase == "decode":
            num_bytes = self.tokens / work.tokens_per_sequence * seen * self._entry_bytes(attention)
        else:
            cache = kv_bytes_per_token(attention, tp, precision.kv_cache)
            num_bytes = self.tokens * (cache + 2 * BF16_BYTES * heads * _value_dim(attention))
        return self._core_term("attention", attention, flop, num_bytes)

    def _entry_bytes(self, attention: Attention) -> float:
        """Bytes that decode reads per entry it attends to (an indexer's own keys left out)."""
        cache = self.instance.constants.precision.kv_cache
        if isinstance(attention, CompressedAttention):
            return float(attention.head_dim * CACHE_BITS[cache] / 8)
        if isinstance(attention, LatentAttention) and attention.indexer is not None:
            attention = attention.model_copy(update={"indexer": None})
        return kv_bytes_per_token(attention, self.grid.split.tp, cache)

    def _indexing(self, attention: Attention) -> list[Term]:
        """Scores of an indexer over everything it may pick from, whole on every GPU."""
        if not isinstance(attention, LatentAttention | CompressedAttention):
            return []
        indexer, work = attention.indexer, self.instance.workload
        if indexer is None or not indexer.own:
            return []
        rate = attention.compress_rate if isinstance(attention, CompressedAttention) else 1
        entries = kept_tokens(attention, work.context_length) / (rate or 1)
        cache = float(CACHE_BITS[self.instance.constants.precision.kv_cache] / 8)
        num_bytes = self.tokens * indexer.head_dim * cache
        if work.phase == "decode":
            num_bytes *= entries / work.tokens_per_sequence
        else:
            entries /= 2
        flop = 2.0 * self.tokens * indexer.num_heads * entries * indexer.head_dim
        return [self._core_term("attention indexer", attention, flop, num_bytes)]

    def _state_core(self, attention: StateAttention) -> Term:
        """Update of a recurrent state: in decode read and written once per token, in prefill once per chunk."""
        tp, work = self.grid.split.tp, self.instance.workload
        kept = 2.0 * state_bytes_per_sequence(attention, tp)
        flop = _STATE_FLOP * self.tokens * attention.state_elements / tp
        if work.phase == "decode":
            return self._core_term("recurrent state", attention, flop, self.tokens * kept)
        num_bytes = self.tokens * kept / min(_STATE_CHUNK, work.context_length)
        return self._core_term("recurrent state", attention, flop, num_bytes)

    def _core_term(self, name: str, attention: Attention, flop: float, num_bytes: float) -> Term:
        work: Work = "attention_decode" if self.instance.workload.phase == "decode" else "attention_prefill"
        kind = "mla" if isinstance(attention, LatentAttention) else "gqa"
        cache = "_fp8" if self.instance.constants.precision.kv_cache == "fp8" else ""
        bound = self._kernel(self.instance.curve(self.kind, work, kind + cache), "bf16")
        computed = flop * self._tile_factor
        return Term(
            name, bound.seconds(computed, num_bytes, 0.0), bound.light_s(flop, num_bytes), bound.basis, bound.source
        )

    @property
    def _tile_factor(self) -> float:
        """Queries of a prompt that kernels compute over those there are: they work in tiles."""
        queries = self.instance.workload.context_length
        if self.instance.workload.phase == "decode":
            return 1.0
        return -(-queries // _QUERY_TILE) * _QUERY_TILE / queries

    def _norms(self, norms: int) -> Term:
        # A norm with its residual reads and writes the stream about four times.
        hbm = self.instance.topology.kinds[self.kind].hbm_bandwidth
        reached = self.instance.curve(self.kind, "gemm", "bf16").value.memory
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


def _num_heads(attention: Attention) -> int:
    """Query heads of a layer, of all its attention blocks together."""
    if isinstance(attention, NoAttention):
        return 0
    return attention.num_heads * _blocks(attention)


def _blocks(attention: Attention) -> int:
    return attention.blocks if isinstance(attention, LatentAttention) else 1


def _dims_per_pair(attention: Attention, phase: str) -> float:
    """Multiply-adds per head for one query and one key: scores and values.

    Latent attention in decode works on the compressed cache ("absorbed"), in prefill on full heads.
    """
    if isinstance(attention, LatentAttention):
        if phase == "decode":
            return 2.0 * attention.kv_lora_rank + attention.qk_rope_head_dim
        return float(attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim)
    return 2.0 * _value_dim(attention)


def _value_dim(attention: Attention) -> int:
    if isinstance(attention, LatentAttention):
        return attention.v_head_dim
    return attention.head_dim if isinstance(attention, GroupedAttention | CompressedAttention) else 0


def joined_source(first: Sourced[Any], second: Sourced[Any]) -> str:
    """Both sources, where there are any."""
    return "; ".join(text for text in (first.source, second.source) if text)
