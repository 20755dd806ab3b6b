"""Time of everything that does not depend on the placement of experts.

Legend: L hidden layers.

Attention, dense and shared feed-forward parts, routers, tensor-parallel collectives, LM head and
pipeline sends, for one micro-batch on one data-parallel rank. Between blocks the tokens are spread
over all GPUs of a stage, so attention costs one reduce-scatter and one all-gather (together an
all-reduce), a dense feed-forward part another; experts bring their own exchange (`moe.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import kept_tokens, kv_bytes_per_token
from planner.cost.moe import collective_launch_s, collective_seconds_per_byte
from planner.cost.roofline import Kernel, all_reduce_factor, kernel
from planner.inputs.model import Attention, DenseFfn, LatentAttention, LayerRun
from planner.inputs.parameters import attention_parameters, dense_parameters, router_parameters, shared_parameters
from planner.inputs.precision import WEIGHTS, WeightName
from planner.inputs.sourced import Basis, Sourced
from planner.inputs.topology import Roofline

_BF16_BYTES = 2


@dataclass(frozen=True)
class Term:
    """One part of a step's time, and what it rests on."""

    name: str
    seconds: float
    light_s: float
    """Speed of light: the same work at datasheet rates."""
    basis: Basis
    source: str

    def times(self, factor: float) -> Term:
        """The same part so many times over."""
        return replace(self, seconds=self.seconds * factor, light_s=self.light_s * factor)


def merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms of the same name added up, in order of first appearance."""
    total: dict[str, Term] = {}
    for term in terms:
        known = total.get(term.name)
        if known is None:
            total[term.name] = term
        else:
            seconds, light = known.seconds + term.seconds, known.light_s + term.light_s
            total[term.name] = replace(known, seconds=seconds, light_s=light)
    return tuple(total.values())


@dataclass(frozen=True)
class DenseCost:
    """Placement-independent work of one stage, bound to a machine and a split."""

    instance: Instance
    grid: Grid

    @property
    def tokens(self) -> float:
        """Tokens of one micro-batch on one data-parallel rank."""
        split = self.grid.split
        return self.instance.step_tokens / (split.micro_batches * split.dp)

    @cached_property
    def run_terms(self) -> dict[LayerRun, tuple[Term, ...]]:
        """Terms of one layer of each kind."""
        return {run: merged(self.layer_terms(run)) for run in self.instance.model.layers}

    @cached_property
    def fixed_L(self) -> NDArray[np.float64]:
        """Seconds of each hidden layer."""
        seconds = {run: sum(term.seconds for term in terms) for run, terms in self.run_terms.items()}
        return np.array([seconds[run] for run in self.instance.model.layer_list])

    @cached_property
    def head(self) -> tuple[Term, ...]:
        """LM head, on the last stage."""
        return tuple(self.head_terms())

    def layer_terms(self, run: LayerRun) -> list[Term]:
        """One layer, experts and their exchange left out."""
        terms = [*self._attention(run.attention), self._collective("attention all-reduce"), self._norms()]
        hidden, tp = self.instance.model.hidden_size, self.grid.split.tp
        if isinstance(run.ffn, DenseFfn):
            parameters = dense_parameters(run.ffn, hidden, tp)
            terms += [self._gemm("dense feed-forward", parameters, 2), self._collective("dense all-reduce")]
            return [term for term in terms if term.seconds]
        router = router_parameters(run.ffn, hidden)
        terms.append(self._gemm("router", router, 1, tokens=self.tokens / tp, weights="bf16"))
        if run.ffn.shared_intermediate_size:
            terms.append(self._gemm("shared experts", shared_parameters(run.ffn, hidden, tp), 2))
        return [term for term in terms if term.seconds]

    def head_terms(self) -> list[Term]:
        """LM head of the last stage: in prefill only for the last token of each prompt."""
        model, work = self.instance.model, self.instance.workload
        tokens = self.tokens if work.phase == "decode" else max(1.0, self.tokens / work.context_length)
        parameters = -(-model.vocab_size // self.grid.split.tp) * model.hidden_size
        weights = self.instance.constants.precision.embedding
        return [self._gemm("LM head", parameters, 1, tokens=tokens, weights=weights)]

    def send_terms(self, level: int) -> list[Term]:
        """Activations of one micro-batch to the next stage over a link level, each GPU its part."""
        constants, topology = self.instance.constants, self.instance.topology
        num_bytes = self.tokens / self.grid.split.tp * self.instance.model.hidden_size * _BF16_BYTES
        seconds = num_bytes * collective_seconds_per_byte(constants, topology, level)
        link = topology.links[level]
        launch = collective_launch_s(constants, topology, level)
        light = num_bytes / link.bandwidth.value
        source = _joined_source(link.bandwidth, constants.collectives.launch)
        return [Term("pipeline send", launch + seconds, light, constants.collectives.launch.basis, source)]

    # --- parts ------------------------------------------------------------------------------------

    def _kernel(self, roofline: Sourced[Roofline], weights: WeightName) -> Kernel:
        gpu = self.instance.topology.gpu
        return kernel(gpu, roofline.value, weights, roofline.basis, roofline.source)

    def _gemm(
        self, name: str, parameters: int, launches: int, tokens: float | None = None, weights: WeightName | None = None
    ) -> Term:
        constants = self.instance.constants
        weights = weights or constants.precision.dense
        bound = self._kernel(constants.efficiency.gemm, weights)
        flop = 2.0 * parameters * (self.tokens if tokens is None else tokens)
        num_bytes = float(parameters * WEIGHTS[weights].bits / 8)
        seconds = bound.seconds(flop, num_bytes) + (launches - 1) * bound.base_s
        return Term(name, seconds, bound.light_s(flop, num_bytes), bound.basis, bound.source)

    def _attention(self, attention: Attention) -> list[Term]:
        model, tp = self.instance.model, self.grid.split.tp
        latent = isinstance(attention, LatentAttention)
        parameters = attention_parameters(attention, model.hidden_size, tp)
        projections = self._gemm("attention projections", parameters, 4 if latent else 2)
        return [projections, self._attention_core(attention)]

    def _attention_core(self, attention: Attention) -> Term:
        instance = self.instance
        work, precision = instance.workload, instance.constants.precision
        tp = self.grid.split.tp
        heads = attention.num_heads / tp
        seen: float = kept_tokens(attention, work.context_length)
        if work.phase == "prefill" and seen == work.context_length:
            seen = (seen + 1) / 2  # causal: on average half of the prompt
        flop = 2.0 * self.tokens * heads * seen * _dims_per_pair(attention, work.phase)
        cache = kv_bytes_per_token(attention, tp, precision.kv_cache)
        if work.phase == "decode":
            num_bytes = self.tokens * seen * cache
            roofline = instance.constants.efficiency.attention_decode
        else:
            num_bytes = self.tokens * (cache + 2 * _BF16_BYTES * heads * _value_dim(attention))
            roofline = instance.constants.efficiency.attention_prefill
        bound = self._kernel(roofline, "bf16")
        seconds = bound.seconds(flop, num_bytes)
        return Term("attention", seconds, bound.light_s(flop, num_bytes), bound.basis, bound.source)

    def _norms(self) -> Term:
        # Two norms with their residuals read and write the stream about eight times.
        hbm = self.instance.topology.gpu.hbm_bandwidth
        efficiency = self.instance.constants.efficiency.gemm
        num_bytes = 8.0 * _BF16_BYTES * self.tokens / self.grid.split.tp * self.instance.model.hidden_size
        light = num_bytes / hbm.value
        seconds = light / efficiency.value.memory
        return Term("norms and residuals", seconds, light, "assumed", "eight passes over the activations")

    def _collective(self, name: str) -> Term:
        """An all-reduce over the tensor-parallel group; nothing for tp = 1."""
        level = self.grid.tp_level()
        if level is None:
            return Term(name, 0.0, 0.0, "assumed", "")
        constants, topology = self.instance.constants, self.instance.topology
        num_bytes = self.tokens * self.instance.model.hidden_size * _BF16_BYTES
        num_bytes *= all_reduce_factor(self.grid.split.tp)
        seconds = num_bytes * collective_seconds_per_byte(constants, topology, level)
        link = topology.links[level]
        launch = 2 * collective_launch_s(constants, topology, level)
        source = _joined_source(link.bandwidth, constants.collectives.scale_up)
        return Term(
            name, launch + seconds, num_bytes / link.bandwidth.value, constants.collectives.scale_up.basis, source
        )


def _dims_per_pair(attention: Attention, phase: str) -> float:
    """Multiply-adds per head for one query and one key: scores and values.

    Latent attention in decode works on the compressed cache ("absorbed"), in prefill on full heads.
    """
    if isinstance(attention, LatentAttention):
        if phase == "decode":
            return 2.0 * attention.kv_lora_rank + attention.qk_rope_head_dim
        return float(attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim)
    return 2.0 * attention.head_dim


def _value_dim(attention: Attention) -> int:
    return attention.v_head_dim if isinstance(attention, LatentAttention) else attention.head_dim


def _joined_source(first: Sourced[float], second: Sourced[float]) -> str:
    return "; ".join(text for text in (first.source, second.source) if text)
