"""The cost model once more, in plain Python: one number at a time, nothing shared with `planner.cost`.

Written from docs/model.md. Slow on purpose: loops over windows, ranks and experts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

from planner.cost.instance import Instance
from planner.inputs.efficiency import Roofline
from planner.inputs.kernels import Collective
from planner.inputs.links import End
from planner.inputs.model import DenseFfn, GroupedAttention, MoeFfn
from planner.plan.split import Split

Placement = tuple[frozenset[int], ...]
"""Experts of each EP rank."""


@dataclass(frozen=True)
class Routed:
    """What one window routed in one layer."""

    share: list[float]
    choices: float
    """Per token."""
    tokens: float
    """Of a step, in one copy of the expert grid."""
    sets: dict[tuple[int, ...], float]
    """Sets of experts chosen together, if recorded, with their part of the tokens."""


Kernels = dict[tuple[float, float], Roofline]
"""That experts run, by the GPU's compute rate and bandwidth."""
Message = tuple[int, int, float]
"""Sender and receiver, as GPU ids, and bytes."""


class PlainCost:
    """Times of one split on some GPUs, computed the long way."""

    def __init__(self, instance: Instance, split: Split, gpus: Sequence[Sequence[int]]) -> None:
        self.i, self.s, self.gpus = instance, split, [list(stage) for stage in gpus]
        # What no placement changes is worked out once: enumeration asks for it again and again.
        self.beside_s, self.collective_s = cache(self._beside_s), cache(self._collective_s)
        self.exchange_s, self.recorded = cache(self._exchange_s), cache(self._recorded)
        self.b = instance.workload.tokens_per_gpu * instance.topology.num_gpus
        constants = instance.constants
        self.eff, self.kernel = constants.efficiency, constants.kernel
        assert constants.collectives.collective is not None
        self.nccl = constants.collectives.collective.value
        small = constants.small_collectives
        self.small = None if small is None or small.collective is None else small.collective.value
        machine = instance.topology
        self.node, self.local = machine.node_G.tolist(), machine.local_G.tolist()
        self.card = [machine.kinds[kind] for kind in machine.kind_G.tolist()]
        groups = machine.file.node_groups()
        self.group = [group for group in groups for _ in range(group.nodes)]  # of each node
        self.slow = {
            frozenset(ends): (link.bandwidth.value, link.latency)
            for link in machine.file.overrides
            for ends in product(*([g for g in range(machine.num_gpus) if self.is_end(g, end)] for end in link.between))
            if len(set(ends)) == 2
        }

    def is_end(self, gpu: int, end: End) -> bool:
        return self.node[gpu] == end.node and end.gpu in (None, self.local[gpu])

    # --- pieces -------------------------------------------------------------------------------

    def roof(
        self, r: Roofline, gpus: Sequence[int], flop: float, weight_bytes: float, moved: float, chain: float = 0.0
    ) -> float:
        """One launch on GPUs that wait for each other: compute and bandwidth of the slowest."""
        hbm = min(self.card[g].hbm_bandwidth.value for g in gpus)
        a = flop / (r.compute * min(self.card[g].compute["bf16"].value for g in gpus))
        b = weight_bytes / (r.memory * hbm)
        busy = (a**r.exponent + b**r.exponent + (r.serial * chain) ** r.exponent) ** (1 / r.exponent)
        return float(r.base + busy + moved / ((r.activation or r.memory) * hbm))

    def gemm(self, gpu: int, n: float, *shapes: tuple[int, int]) -> float:
        """bf16 products of n tokens, one launch for each [inner, outer] matrix."""
        return min(
            sum(
                self.roof(c.value, [gpu], 2 * inner * outer * n, 2 * inner * outer, 2 * n * (inner + outer), inner)
                for inner, outer in shapes
            )
            for c in self.eff.gemm["bf16"]
        )

    # --- links: a level inside a node and one between nodes ----------------------------------------

    def level(self, one: int, other: int) -> int:
        return 0 if self.node[one] == self.node[other] else 1

    def said(self, gpu: int, level: int, name: str) -> Any:
        """A value of a level, as the GPU's group or else the topology says."""
        link = self.i.topology.links[level]
        own = self.group[self.node[gpu]].link(link.level)
        value = getattr(own, name, None)
        return getattr(link, name) if value is None else value

    def port(self, gpu: int, level: int) -> tuple[int, int]:
        return self.node[gpu], self.local[gpu] // self.said(gpu, level, "shared_by")

    def reached(self, level: int, by: Collective | None) -> float:
        """By a collective, or by the kernel of the exchange."""
        if by is not None:
            return by.scale_up if level == 0 else by.scale_out or by.scale_up
        return float(self.kernel.scale_up.value if level == 0 else self.kernel.scale_out.value)

    def port_speed(self, gpu: int, level: int, among: Sequence[int], by: Collective | None) -> float:
        """Of the port, the part that these GPUs have."""
        port, every = self.port(gpu, level), range(self.i.topology.num_gpus)
        here = sum(self.port(g, level) == port for g in among)
        part = here / sum(self.port(g, level) == port for g in every)
        return float(self.said(gpu, level, "bandwidth").value * self.reached(level, by) * part)

    def send_s(self, messages: Sequence[Message], among: Sequence[int], by: Collective | None) -> float:
        """Seconds of the busiest port, uplink or slow pair."""
        load: dict[tuple[object, ...], float] = defaultdict(float)
        speed: dict[tuple[object, ...], float] = {}
        for sender, receiver, num_bytes in messages:
            level = self.level(sender, receiver)
            for way, gpu in (("out", sender), ("in", receiver)):
                key: tuple[object, ...] = ("port", way, level, self.port(gpu, level))
                load[key] += num_bytes
                speed[key] = self.port_speed(gpu, level, among, by)
                if level == 1:
                    inside = {self.port(g, 1): g for g in among if self.node[g] == self.node[gpu]}
                    ports = [self.port_speed(g, 1, among, by) for g in inside.values()]
                    key = ("uplink", way, self.node[gpu])
                    load[key] += num_bytes
                    speed[key] = sum(ports) / self.i.topology.links[1].oversubscription
            if frozenset((sender, receiver)) in self.slow:
                key = ("pair", sender, receiver)
                load[key] += num_bytes
                bandwidth = self.slow[frozenset((sender, receiver))][0]
                speed[key] = bandwidth * self.reached(level, by)
        return max((load[key] / speed[key] for key in load), default=0.0)

    def latency(self, pairs: Iterable[tuple[int, int]]) -> float:
        worst = 0.0
        for one, other in pairs:
            level = self.level(one, other)
            worst = max(worst, *(self.said(g, level, "latency").value for g in (one, other)))
            known = self.slow.get(frozenset((one, other)))
            if known is not None and known[1] is not None:
                worst = max(worst, known[1].value)
        return worst

    def ring_s(self, k: int, size: int, num_bytes: float, by: Collective) -> tuple[float, float]:
        """Seconds that so many bytes need from each GPU to the next of its block, and the latency."""
        gpus = self.gpus[k]
        blocks = [gpus[j : j + size] for j in range(0, len(gpus), size)]
        hops = [(block[j], block[(j + 1) % size]) for block in blocks for j in range(size)]
        return self.send_s([(*hop, num_bytes) for hop in hops], gpus, by), self.latency(hops)

    def constant_s(self, k: int, size: int, phases: int, latency: float, by: Collective) -> float:
        """Of a collective over blocks: launches in the node, log2 of the nodes messages between them."""
        gpus = self.gpus[k]
        nodes = [[self.node[g] for g in gpus[j : j + size]] for j in range(0, len(gpus), size)]
        most = max(of_block.count(node) for of_block in nodes for node in of_block)
        several = max(len(set(of_block)) for of_block in nodes)
        constant = by.launch + by.step * phases * (most - 1)
        if several == 1:
            return constant + phases * max(0.0, latency - by.at_latency)
        return constant + phases * math.ceil(math.log2(several)) * latency

    def blocks(self, k: int, size: int) -> range:
        """Where blocks of so many consecutive GPUs of a stage begin."""
        return range(0, len(self.gpus[k]), size)

    def _collective_s(self, k: int, size: int, num_bytes: float, phases: int) -> float:
        """The faster of the two kernels, the small one only for all-reduces of small tensors inside a node."""
        if size == 1:
            return 0.0
        gpus, found = self.gpus[k], []
        blocks = [gpus[j : j + size] for j in self.blocks(k, size)]
        inside = all(len({self.node[g] for g in block}) == 1 for block in blocks)
        for by in (self.nccl, self.small):
            fits = inside and phases == 2 and by is not None and num_bytes <= (by.most_bytes or math.inf)
            if by is None or (by is self.small and not fits):
                continue
            sent = plain = phases * (size - 1) / size * num_bytes
            if inside:  # the rank's own share is copied, too
                sent = phases * (size - 1 + by.copied) / size * num_bytes * (by.all_reduce if phases == 2 else 1.0)
            travel, latency = self.ring_s(k, size, sent, by)
            light = by.model_copy(update={"scale_up": 1.0, "scale_out": 1.0})
            fastest = self.ring_s(k, size, plain, light)[0]
            if self.ring_s(k, size, plain, by)[0] >= fastest:
                travel = max(travel, fastest)
            constant = self.constant_s(k, size, phases, latency, by)
            found.append((constant**by.softness + travel**by.softness) ** (1 / by.softness))
            if inside and phases == 2 and by.one_shot is not None:
                whole, _ = self.ring_s(k, size, (size - 1) * num_bytes, by)
                steps = 2 * (size - 1) * by.step
                found.append(by.one_shot + steps + max(0.0, latency - by.at_latency) + whole)
        return float(min(found))

    # --- what does not depend on the placement -------------------------------------------------

    def layer_fixed(self, k: int, layer: int) -> float:
        """Of the slowest data-parallel rank; in a rank every step waits for the slowest GPU."""
        gpus, tp = self.gpus[k], self.s.tp
        ranks = [gpus[j : j + tp] for j in range(0, len(gpus), tp)]
        each = [[self.layer_parts(k, layer, gpu) for gpu in rank] for rank in ranks]
        return max(float(sum(map(max, zip(*of_rank, strict=True)))) for of_rank in each)

    def layer_parts(self, k: int, layer: int, gpu: int) -> list[float]:
        run = self.i.model.layer_list[layer]
        s, h = self.s, self.i.model.hidden_size
        n = self.b / (s.micro_batches * s.dp)
        att = run.attention
        assert isinstance(att, GroupedAttention)
        kv = max(1, math.ceil(att.num_kv_heads / s.tp))
        heads, dim = att.num_heads // s.tp, att.head_dim
        core = self.core(gpu, n, att.num_heads / s.tp, kv, dim)
        parts = [self.gemm(gpu, n, (h, (heads + 2 * kv) * dim), (heads * dim, h)), core]
        hbm = self.card[gpu].hbm_bandwidth.value
        assert self.eff.small_kernel is not None
        reached = max(c.value.memory for c in self.eff.gemm["bf16"])
        parts.append(8 * 2 * n / s.tp * h / hbm / reached + 2 * self.eff.small_kernel.value)
        parts.append(self.all_reduce(k, n))
        if isinstance(run.ffn, DenseFfn):
            width = run.ffn.intermediate_size // s.tp
            return [*parts, self.gemm(gpu, n, (h, 2 * width), (width, h)), self.all_reduce(k, n)]
        parts.append(self.gemm(gpu, n / s.tp, (h, run.ffn.num_experts)))
        if run.ffn.shared_intermediate_size:
            width = run.ffn.shared_intermediate_size // s.tp
            parts.append(self.gemm(gpu, n, (h, 2 * width), (width, h)))
        return parts

    def core(self, gpu: int, n: float, heads: float, kv: int, dim: int) -> float:
        """Attention itself: prefill in tiles of 128 queries, decode with its cache cut into parts."""
        context, pair, entry = self.i.workload.context_length, 2 * 2 * dim * heads * n, 2 * kv * dim * 2
        moved = 2 * 2 * heads * dim * n
        if self.i.workload.phase == "decode":
            read, first, chain = n * context * entry, 64 * entry * n, math.sqrt(context)
            return min(
                self.roof(c.value, [gpu], pair * context, read, moved + first, chain)
                for c in self.eff.attention_decode["gqa"]
            )
        flop = pair * max((context + 1) / 2 + 63.5, 128)
        return min(
            self.roof(c.value, [gpu], flop, 0, moved + n * entry, context) for c in self.eff.attention_prefill["gqa"]
        )

    def all_reduce(self, k: int, n: float) -> float:
        return self.collective_s(k, self.s.tp, n * self.i.model.hidden_size * 2, 2)

    def stage_extra(self, k: int) -> float:
        s, h = self.s, self.i.model.hidden_size
        n = self.b / (s.micro_batches * s.dp)
        if k == s.pp - 1:
            scored = n if self.i.workload.phase == "decode" else max(1.0, n / self.i.workload.context_length)
            words = math.ceil(self.i.model.vocab_size / s.tp)
            return max(self.gemm(g, scored, (h, words)) for g in self.gpus[k])
        pairs = list(zip(self.gpus[k], self.gpus[k + 1], strict=True))
        messages = [(*pair, n / s.tp * h * 2) for pair in pairs]
        seconds = self.send_s(messages, self.gpus[k] + self.gpus[k + 1], self.nccl)
        return float(seconds + self.nccl.launch + self.latency(pairs))

    # --- the MoE layer ----------------------------------------------------------------------------

    def moe_windows(self, k: int, row: int, placement: Placement) -> list[float]:
        """Of every window, by the kernels that are done first on their mean."""
        windows = range(self.i.num_windows)
        cards = sorted({self.figures(gpu) for gpu in self.gpus[k]})
        curves = [c.value for c in self.eff.experts["bf16"]]
        ways = [dict(zip(cards, run, strict=True)) for run in product(curves, repeat=len(cards))]
        return min(([self.moe_window(k, row, w, placement, run) for w in windows] for run in ways), key=sum)

    def figures(self, gpu: int) -> tuple[float, float]:
        return self.card[gpu].compute["bf16"].value, self.card[gpu].hbm_bandwidth.value

    def moe_window(self, k: int, row: int, window: int, placement: Placement, run: Kernels) -> float:
        s, ffn = self.s, self.i.model.moe
        width = ffn.intermediate_size // s.etp
        assert self.i.windows is not None
        counts = self.i.windows.counts_SLE[window, row]
        share = [int(c) / int(counts.sum()) for c in counts]
        choices = float(self.i.windows.choices_SL[window, row])
        tokens = self.b / (s.micro_batches * s.edp)
        part = [{e: self.served(k, placement, e, r) for e in held} for r, held in enumerate(placement)]
        rows = [sum(share[e] * choices * tokens * p for e, p in one.items()) for one in part]
        hit = [sum(1 - (1 - share[e] * p) ** (choices * tokens) for e, p in one.items()) for one in part]
        of_rank = [[group[r] for group in self.groups(k)] for r in range(s.ep)]
        expert = max(self.expert_s(rows[r], hit[r], len(placement[r]), width, of_rank[r], run) for r in range(s.ep))
        eta, mode = self.eff.overlap, self.i.constants.communication.overlap
        assert eta is not None
        routed = Routed(share, choices, tokens, self.recorded(row, window))
        traffic = self.traffic_s(k, rows, placement, routed)
        hiding = {"none": 0.0, "shared": self.beside_s(k, mode), "two_batch": expert + self.beside_s(k, mode)}
        return expert + traffic - eta.value * min(hiding[mode], traffic)

    def serving(self, k: int, placement: Placement, expert: int, home: int) -> dict[int, float]:
        """Ranks that serve an expert's tokens from a home, with their parts."""
        pool = [r for r, held in enumerate(placement) if expert in held]
        if self.i.constants.copy_rule == "nearest" and not self.gathers():
            node = [self.node[gpu] for gpu in self.groups(k)[0]]
            nearer = [r for r in pool if node[r] == node[home]]
            pool = [home] if home in pool else nearer or pool
        return dict.fromkeys(pool, 1 / len(pool))

    def gathers(self) -> bool:
        """Whether every rank gets all tokens."""
        joined = self.i.constants.exchange_needs_dp and self.s.dp == 1
        return self.s.ep == 1 or self.kernel.method == "all_gather" or joined

    def served(self, k: int, placement: Placement, expert: int, rank: int) -> float:
        """Part of an expert's tokens that a rank serves."""
        return sum(self.serving(k, placement, expert, home).get(rank, 0.0) for home in range(self.s.ep)) / self.s.ep

    def traffic_s(self, k: int, rows: list[float], placement: Placement, routed: Routed) -> float:
        """Dispatch and combine: collectives where every rank gets all tokens, else an all-to-all."""
        s, kernel, token_bytes = self.s, self.kernel, 2 * self.i.model.hidden_size
        size = s.ep * s.etp
        if self.gathers():
            if s.tp % size == 0:
                return self.collective_s(k, size, routed.tokens * token_bytes, 2)
            return 2 * self.collective_s(k, size, routed.tokens * token_bytes, 1)
        volume = self.volume(k, placement, routed)
        gather_s, constants = self.exchange_s(k, routed.tokens)
        num_bytes = (volume + max(rows) * gather_s) * (token_bytes + kernel.header_bytes)
        ways = (kernel.dispatch.value, kernel.combine.value)
        return sum(constant + num_bytes * way.slower for constant, way in zip(constants, ways, strict=True))

    def _exchange_s(self, k: int, tokens: float) -> tuple[float, tuple[float, ...]]:
        """Of an all-to-all: seconds per gathered byte of a row, and the constants of dispatch and combine."""
        s, gather, constant = self.s, 0.0, 0.0
        if s.etp > 1:
            per_byte, latency = self.ring_s(k, s.etp, 1.0, self.nccl)
            inside = all(len({self.node[g] for g in self.gpus[k][j : j + s.etp]}) == 1 for j in self.blocks(k, s.etp))
            gather = (s.etp - 1 + (self.nccl.copied if inside else 0.0)) / s.etp * per_byte
            constant += self.constant_s(k, s.etp, 1, latency, self.nccl)
        constant += self.latency(pair for group in self.groups(k) for pair in combinations(group, 2))
        crosses = any(len({self.node[g] for g in group}) > 1 for group in self.groups(k))
        ways = []
        for way in (self.kernel.dispatch.value, self.kernel.combine.value):
            fixed = way.launch + way.per_doubling * math.log2(s.ep) + way.per_token * tokens / (s.ep * s.etp)
            copy_bytes = 2 * self.i.model.hidden_size + self.kernel.header_bytes
            message = tokens / (s.ep * s.etp) * self.i.model.moe.mean_choices / s.ep * copy_bytes
            fixed += way.handshake * message / (way.handshake_bytes + message)
            ways.append(constant + fixed + (way.between if crosses else 0.0))
        return gather, tuple(ways)

    def _beside_s(self, k: int, mode: str) -> float:
        """What traffic can hide behind besides experts: of the slowest rank, of the layer with the least."""
        gpus, tp, found = self.gpus[k], self.s.tp, []
        for layer in self.i.model.moe_layer_ids:
            each = [[self.layer_parts(k, layer, gpu) for gpu in gpus[j : j + tp]] for j in range(0, len(gpus), tp)]
            slowest = max(([max(part) for part in zip(*rank, strict=True)] for rank in each), key=sum)
            ffn = self.i.model.moe
            shared = slowest[-1] if ffn.shared_intermediate_size else 0.0
            found.append(sum(slowest) if mode == "two_batch" else shared)
        return float(min(found))

    def expert_s(self, rows: float, hit: float, slots: int, width: int, gpus: Sequence[int], kernels: Kernels) -> float:
        """Of a rank, whose GPUs wait for the slowest."""
        h = self.i.model.hidden_size
        run = [(kernels[self.figures(gpu)], self.card[gpu]) for gpu in gpus]
        a = 6 * h * width * rows / min(r.compute * card.compute["bf16"].value for r, card in run)
        b = 2 * 3 * h * width * hit / min(r.memory * card.hbm_bandwidth.value for r, card in run)
        move = min((r.activation or r.memory) * card.hbm_bandwidth.value for r, card in run)
        sharp = min(r.exponent for r, _ in run)
        start = max(r.base for r, _ in run) + max(r.per_expert for r, _ in run) * slots
        return float(start + (a**sharp + b**sharp) ** (1 / sharp) + rows * 2 * (2 * h + 3 * width) / move)

    def groups(self, k: int) -> list[list[int]]:
        """GPUs of each all-to-all group, by EP rank."""
        s, gpus = self.s, self.gpus[k]
        return [
            [gpus[copy * s.etp * s.ep + rank * s.etp + shard] for rank in range(s.ep)]
            for copy in range(s.edp)
            for shard in range(s.etp)
        ]

    def _recorded(self, row: int, window: int) -> dict[tuple[int, ...], float]:
        """Sets of experts that tokens of a window chose together, with their part of the tokens."""
        assert self.i.windows is not None
        if (sets := self.i.windows.sets) is None:
            return {}
        tokens = [t for t, w in enumerate(sets.window_N.tolist()) if w == window]
        found: dict[tuple[int, ...], float] = defaultdict(float)
        for token in tokens:
            found[tuple(sorted(e for e in sets.experts_NLK[token, row].tolist() if e >= 0))] += 1 / len(tokens)
        return found

    def volume(self, k: int, placement: Placement, routed: Routed) -> float:
        """Seconds per byte of a copy on the slowest port, uplink or pair, message by message."""
        if self.s.ep == 1:
            return 0.0
        dedup = self.i.constants.communication.dedup
        experts, ranks = range(len(routed.share)), range(self.s.ep)
        serving = [[self.serving(k, placement, e, home) for e in experts] for home in ranks]

        def visited(home: int, some: Sequence[int]) -> float:
            part = [sum(serving[home][e].get(r, 0.0) for r in some) for e in experts]
            if dedup == "expert":
                return sum(routed.share[e] * routed.choices * part[e] for e in experts) * routed.tokens
            if routed.sets:
                missed = sum(weight * math.prod(1 - part[e] for e in chosen) for chosen, weight in routed.sets.items())
            else:
                missed = math.prod(1 - min(1.0, routed.share[e] * routed.choices) * part[e] for e in experts)
            return (1 - missed) * routed.tokens

        to_rank = [[visited(home, [r]) / self.s.ep for r in ranks] for home in ranks]
        messages: list[Message] = []
        for group in self.groups(k):
            node = [self.node[gpu] for gpu in group]
            forwards = dedup == "node" and len(set(node)) > 1
            for home, to in product(ranks, ranks):
                inside = [r for r in ranks if node[r] == node[to]]
                if home == to:
                    continue
                if not forwards:
                    amount = to_rank[home][to]
                elif node[home] == node[to]:
                    entered = sum(to_rank[other][to] for other in ranks if node[other] != node[to])
                    amount = to_rank[home][to] + entered / len(inside)
                else:
                    amount = visited(home, inside) / self.s.ep / len(inside)
                messages.append((group[home], group[to], amount / self.s.etp))
        return self.send_s(messages, self.gpus[k], None)

    # --- the step ----------------------------------------------------------------------------------

    def moe_mean(self, k: int, row: int, placement: Placement) -> float:
        return sum(self.moe_windows(k, row, placement)) / self.i.num_windows

    def step(self, stage_s: list[float]) -> float:
        m = self.s.micro_batches
        if self.i.workload.phase == "decode":
            return max(m * max(stage_s), sum(stage_s))
        return sum(stage_s) + (m - 1) * max(stage_s)


def least_slowest(instance: Instance, split: Split, slots: Sequence[int], risk: float) -> float:
    """The least mean over the slowest windows, `risk` of them, by enumeration; one stage, consecutive GPUs.

    Unlike a mean over all windows it does not come apart by layer, so placements of all layers are tried together.
    """
    cost = PlainCost(instance, split, [range(instance.topology.num_gpus)])
    layers = instance.model.layer_list
    fixed = cost.stage_extra(0) + sum(cost.layer_fixed(0, layer) for layer in range(len(layers)))
    placements = all_placements(instance.model.moe.num_experts, slots)
    of_layer = []
    for row in range(len(instance.model.moe_layer_ids)):
        times = {tuple(cost.moe_windows(0, row, placement)) for placement in placements}
        of_layer.append([one for one in times if not any(_dominates(other, one) for other in times)])
    best = math.inf
    for chosen in product(*of_layer):
        steps = sorted((cost.step([fixed + sum(parts)]) for parts in zip(*chosen, strict=True)), reverse=True)
        counted = max(1.0, risk * instance.num_windows)
        weights = [min(1.0, max(0.0, counted - place)) for place in range(instance.num_windows)]
        best = min(best, sum(w * s for w, s in zip(weights, steps, strict=True)) / counted)
    return best


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Nowhere slower, and not the same."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def all_placements(experts: int, slots: Sequence[int]) -> list[Placement]:
    """Every way to fill the ranks' slots with every expert at least once and none twice on a rank."""
    per_rank = [list(combinations(range(experts), count)) for count in slots]
    return [
        tuple(frozenset(held) for held in choice)
        for choice in product(*per_rank)
        if len(set().union(*choice)) == experts
    ]


def best_step(instance: Instance, split: Split, gpus: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> float:
    """The least step time over all cuts that fit and all placements, by enumeration.

    Args:
        instance: everything given.
        split: the degrees.
        gpus: of each stage in rank order.
        slots: filled slots of each rank, by stage.
    """
    cost = PlainCost(instance, split, gpus)
    moe_ids = instance.model.moe_layer_ids
    candidates = {tuple(held): all_placements(instance.model.moe.num_experts, held) for held in slots}
    known: dict[tuple[int, int], float] = {}

    def layer_s(k: int, layer: int) -> float:
        if (k, layer) not in known:
            seconds = cost.layer_fixed(k, layer)
            if isinstance(instance.model.layer_list[layer].ffn, MoeFfn):
                row = moe_ids.index(layer)
                seconds += min(cost.moe_mean(k, row, placement) for placement in candidates[tuple(slots[k])])
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
