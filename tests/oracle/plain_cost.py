"""The cost model once more, in plain Python: one number at a time, nothing shared with `planner.cost`.

Written from docs/model.md. Slow on purpose: loops over windows, ranks and experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

from planner.cost.instance import Instance
from planner.inputs.model import DenseFfn, GroupedAttention, MoeFfn
from planner.inputs.topology import Roofline
from planner.plan.split import Split

Placement = tuple[frozenset[int], ...]
"""Experts of each EP rank."""


class PlainCost:
    """Times of one split, computed the long way."""

    def __init__(self, instance: Instance, split: Split) -> None:
        self.i, self.s = instance, split
        self.b = instance.workload.tokens_per_gpu * instance.topology.num_gpus
        constants = instance.constants
        self.eff, self.kernel, self.nccl = constants.efficiency, constants.kernel, constants.collectives
        gpu = instance.topology.gpu
        self.peak, self.hbm = gpu.compute["bf16"].value, gpu.hbm_bandwidth.value
        self.per_node = instance.topology.file.gpus_per_node

    # --- pieces -------------------------------------------------------------------------------

    def roof(self, r: Roofline, flop: float, weight_bytes: float, launches: int = 1) -> float:
        a, b = flop / (r.compute * self.peak), weight_bytes / (r.memory * self.hbm)
        return float(launches * r.base + (a**r.exponent + b**r.exponent) ** (1 / r.exponent))

    def link(self, level: int, *, collective: bool) -> float:
        """Bytes per second."""
        source = self.nccl if collective else self.kernel
        part = source.scale_up.value if level == 0 else source.scale_out.value
        return float(self.i.topology.links[level].bandwidth.value * part)

    def level(self, gpus: Sequence[int]) -> int:
        return 0 if len({g // self.per_node for g in gpus}) == 1 else 1

    def stage_gpus(self, k: int) -> list[int]:
        size = self.s.tp * self.s.dp
        return list(range(k * size, (k + 1) * size))

    def worst_block_level(self, k: int, size: int) -> int:
        gpus = self.stage_gpus(k)
        return max(self.level(gpus[j : j + size]) for j in range(0, len(gpus), size))

    def launch(self, level: int) -> float:
        return float(self.nccl.launch.value + self.i.topology.links[level].latency.value)

    # --- what does not depend on the placement -------------------------------------------------

    def layer_fixed(self, k: int, layer: int) -> float:
        run = self.i.model.layer_list[layer]
        s, h = self.s, self.i.model.hidden_size
        n = self.b / (s.micro_batches * s.dp)
        att = run.attention
        assert isinstance(att, GroupedAttention)
        kv = max(1, math.ceil(att.num_kv_heads / s.tp))
        weights = h * (att.num_heads // s.tp + 2 * kv) * att.head_dim + att.num_heads // s.tp * att.head_dim * h
        total = self.roof(self.eff.gemm.value, 2 * weights * n, 2 * weights, 2)
        context = self.i.workload.context_length
        pairs = 2 * att.head_dim * (att.num_heads / s.tp)
        cache = 2 * kv * att.head_dim * 2
        if self.i.workload.phase == "decode":
            total += self.roof(self.eff.attention_decode.value, 2 * n * context * pairs, n * context * cache)
        else:
            moved = n * (cache + 2 * 2 * (att.num_heads / s.tp) * att.head_dim)
            total += self.roof(self.eff.attention_prefill.value, 2 * n * (context + 1) / 2 * pairs, moved)
        total += 8 * 2 * n / s.tp * h / self.hbm / self.eff.gemm.value.memory
        total += self.all_reduce(k, n)
        if isinstance(run.ffn, DenseFfn):
            weights = 3 * h * (run.ffn.intermediate_size // s.tp)
            return total + self.roof(self.eff.gemm.value, 2 * weights * n, 2 * weights, 2) + self.all_reduce(k, n)
        router = run.ffn.num_experts * h
        total += self.roof(self.eff.gemm.value, 2 * router * n / s.tp, 2 * router)
        if run.ffn.shared_intermediate_size:
            weights = 3 * h * (run.ffn.shared_intermediate_size // s.tp)
            total += self.roof(self.eff.gemm.value, 2 * weights * n, 2 * weights, 2)
        return total

    def all_reduce(self, k: int, n: float) -> float:
        if self.s.tp == 1:
            return 0.0
        level = self.worst_block_level(k, self.s.tp)
        num_bytes = 2 * (self.s.tp - 1) / self.s.tp * n * self.i.model.hidden_size * 2
        return num_bytes / self.link(level, collective=True) + 2 * self.launch(level)

    def stage_extra(self, k: int) -> float:
        s, h = self.s, self.i.model.hidden_size
        n = self.b / (s.micro_batches * s.dp)
        if k == s.pp - 1:
            scored = n if self.i.workload.phase == "decode" else max(1.0, n / self.i.workload.context_length)
            weights = math.ceil(self.i.model.vocab_size / s.tp) * h
            return self.roof(self.eff.gemm.value, 2 * weights * scored, 2 * weights)
        mine, theirs = self.stage_gpus(k), self.stage_gpus(k + 1)
        level = max(self.level(pair) for pair in zip(mine, theirs, strict=True))
        return n / s.tp * h * 2 / self.link(level, collective=True) + self.launch(level)

    # --- the MoE layer ----------------------------------------------------------------------------

    def moe_window(self, k: int, row: int, window: int, placement: Placement) -> float:
        s, h = self.s, self.i.model.hidden_size
        ffn = self.i.model.moe
        width = ffn.intermediate_size // s.etp
        assert self.i.windows is not None
        counts = self.i.windows.counts_SLE[window, row]
        share = [int(c) / int(counts.sum()) for c in counts]
        choices = float(self.i.windows.choices_SL[window, row])
        tokens = self.b / (s.micro_batches * s.edp)
        copies = [sum(e in held for held in placement) for e in range(ffn.num_experts)]
        rows = [sum(share[e] * choices * tokens / copies[e] for e in held) for held in placement]
        hit = [sum(1 - (1 - share[e] / copies[e]) ** (choices * tokens) for e in held) for held in placement]
        expert = max(self.expert_s(rows[r], hit[r], len(placement[r]), width) for r in range(s.ep))
        volume = self.volume(k, rows, [len(placement)], placement, share, choices, tokens)
        gather, constant = 0.0, 0.0
        if s.etp > 1:
            level = self.worst_block_level(k, s.etp)
            gather = max(rows) * (s.etp - 1) / s.etp / self.link(level, collective=True)
            constant += self.launch(level)
        if s.ep > 1:
            constant += self.kernel.launch.value + max(
                self.i.topology.links[v].latency.value for v in self.levels_in_use(k)
            )
        num_bytes = 2 * h + self.kernel.header_bytes
        traffic = 2 * (constant + (volume + gather) * num_bytes)
        overlap = self.eff.overlap.value
        return expert + traffic - overlap * min(expert, traffic)

    def expert_s(self, rows: float, hit: float, slots: int, width: int) -> float:
        r, h = self.eff.experts.value, self.i.model.hidden_size
        assert r.activation is not None
        busy = self.roof(r, 6 * h * width * rows, 2 * 3 * h * width * hit)
        return busy + r.per_expert * slots + rows * 2 * (2 * h + 3 * width) / (r.activation * self.hbm)

    def groups(self, k: int) -> list[list[int]]:
        """GPUs of each all-to-all group, by EP rank."""
        s, gpus = self.s, self.stage_gpus(k)
        return [
            [gpus[copy * s.etp * s.ep + rank * s.etp + shard] for rank in range(s.ep)]
            for copy in range(s.edp)
            for shard in range(s.etp)
        ]

    def levels_in_use(self, k: int) -> set[int]:
        return {self.level(pair) for group in self.groups(k) for pair in combinations(group, 2)}

    def volume(
        self,
        k: int,
        rows: list[float],
        _: list[int],
        placement: Placement,
        share: list[float],
        choices: float,
        tokens: float,
    ) -> float:
        """Seconds per byte on the slowest port."""
        if self.s.ep == 1:
            return 0.0
        dedup = self.i.constants.communication.dedup
        copies = [sum(e in held for held in placement) for e in range(len(share))]
        worst = 0.0
        for group in self.groups(k):
            node = [g // self.per_node for g in group]
            ranks = range(len(group))

            def visited(some: Sequence[int]) -> float:
                missed = 1.0
                for e in range(len(share)):
                    part = sum(e in placement[r] for r in some) / copies[e]
                    missed *= 1 - min(1.0, share[e] * choices) * part
                return (1 - missed) * tokens

            arriving = rows if dedup == "expert" else [visited([r]) for r in ranks]
            forwards = dedup == "node" and len(set(node)) > 1
            for r in ranks:
                for level in (0, 1):
                    peers = [o for o in ranks if o != r and (node[o] == node[r]) == (level == 0)]
                    if level == 1 and forwards:
                        inside = [o for o in ranks if node[o] == node[r]]
                        received = visited(inside) * len(peers) / len(group) / len(inside)
                        sent = 0.0
                        for other in set(node) - {node[r]}:
                            sent += visited([o for o in ranks if node[o] == other]) / len(group)
                    else:
                        homes = len([o for o in ranks if node[o] == node[r]]) if forwards else len(group)
                        received = arriving[r] * len(peers) / homes
                        sent = sum(arriving[o] for o in peers) / homes
                    speed = self.link(level, collective=False)
                    worst = max(worst, received / self.s.etp / speed, sent / self.s.etp / speed)
        return worst

    # --- the step ----------------------------------------------------------------------------------

    def moe_mean(self, k: int, row: int, placement: Placement) -> float:
        windows = self.i.num_windows
        return sum(self.moe_window(k, row, w, placement) for w in range(windows)) / windows

    def step(self, stage_s: list[float]) -> float:
        m = self.s.micro_batches
        if self.i.workload.phase == "decode":
            return max(m * max(stage_s), sum(stage_s))
        return sum(stage_s) + (m - 1) * max(stage_s)


def all_placements(experts: int, slots: Sequence[int]) -> list[Placement]:
    """Every way to fill the ranks' slots with every expert at least once and none twice on a rank."""
    per_rank = [list(combinations(range(experts), count)) for count in slots]
    return [
        tuple(frozenset(held) for held in choice)
        for choice in product(*per_rank)
        if len(set().union(*choice)) == experts
    ]


def best_step(instance: Instance, split: Split, redundant: int) -> float:
    """The least step time over all cuts and placements, by enumeration."""
    cost = PlainCost(instance, split)
    moe_ids = instance.model.moe_layer_ids
    slots = [(instance.model.moe.num_experts + redundant) // split.ep] * split.ep
    for rank in range((instance.model.moe.num_experts + redundant) % split.ep):
        slots[rank] += 1
    candidates = all_placements(instance.model.moe.num_experts, slots)
    known: dict[tuple[int, int], float] = {}

    def layer_s(k: int, layer: int) -> float:
        if (k, layer) not in known:
            seconds = cost.layer_fixed(k, layer)
            if isinstance(instance.model.layer_list[layer].ffn, MoeFfn):
                row = moe_ids.index(layer)
                seconds += min(cost.moe_mean(k, row, placement) for placement in candidates)
            known[k, layer] = seconds
        return known[k, layer]

    best = math.inf
    layers = instance.model.num_layers
    for inner in combinations(range(1, layers), split.pp - 1):
        ends = [0, *inner, layers]
        stage_s = [
            cost.stage_extra(k) + sum(layer_s(k, layer) for layer in range(ends[k], ends[k + 1]))
            for k in range(split.pp)
        ]
        best = min(best, cost.step(stage_s))
    return best
