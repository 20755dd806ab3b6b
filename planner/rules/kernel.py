"""What a communication library can run: EP sizes, nodes, widths, tokens, the size of its buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planner.cost.buffers import exchange_buffers, tokens_sent
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.inputs.engines import EngineRules
from planner.inputs.kernels import KernelLimits
from planner.inputs.units import format_bytes
from planner.plan.split import Split
from planner.rules.verdict import Verdict


def verdicts(
    instance: Instance, split: Split, redundant: int, rules: EngineRules, grids: Sequence[Grid]
) -> Iterator[Verdict]:
    """The rules of the communication kernel over a split; none where no token leaves its rank."""
    if not instance.exchanges(split):
        return
    name, limits = instance.constants.communication.kernel, instance.constants.kernel.limits
    yield from _whole_stage(split, name, rules)
    slots = instance.model.moe.num_experts + redundant
    if redundant and instance.copy_rule(split) == "nearest":
        yield _alike(grids)
    if limits.ep_sizes:
        known = ", ".join(map(str, limits.ep_sizes))
        holds, detail = split.ep in limits.ep_sizes, f"ep {split.ep}; it knows {known}"
        yield Verdict(f"{name} EP size", f"{split.ep}", f"one of {known}", holds, detail, limits.source)
    if limits.even_experts:
        rest = slots % split.ep
        detail = f"{slots} mod ep {split.ep} = {rest}"
        yield Verdict(f"{name} experts", f"{slots}", f"mod ep {split.ep}", rest == 0, detail, limits.source)
    yield from _sizes(instance, name, limits)
    yield from _tokens(instance, split, slots, instance.step_tokens)
    if limits.one_domain:
        yield _domains(grids, split, name, limits.source)
    if limits.node_ranks is not None:
        yield _nodes(grids, split, name, limits.node_ranks, limits.source)


def _alike(grids: Sequence[Grid]) -> Verdict:
    """Which copy is nearest must not differ between copies of the expert grid: one placement is for all."""
    level = grids[0].topology.file.node_level
    most = max(len({group.unit_VR[level].tobytes() for group in grid.every_group}) for grid in grids)
    detail = f"ranks lie on nodes in {most} different way{'s' if most > 1 else ''}"
    return Verdict("nearest copies", f"{most}", "1 way to lie on nodes", most == 1, detail)


def _domains(grids: Sequence[Grid], split: Split, name: str, source: str) -> Verdict:
    """Some libraries reach only GPUs of one scale-up domain."""
    level = grids[0].topology.scale_up_level
    most = max(len(np.unique(group.unit_VR[level])) for grid in grids for group in grid.ep_groups)
    detail = f"the {split.ep} ranks lie in {most} scale-up domain{'s' if most > 1 else ''}"
    return Verdict(f"{name} domain", f"{most}", "1 scale-up domain", most == 1, detail, source)


def _whole_stage(split: Split, name: str, rules: EngineRules) -> Iterator[Verdict]:
    """Some engines run a kernel only over all GPUs of a stage."""
    if name in rules.whole_stage_kernels:
        stage = split.stage_gpus
        detail = f"the engine runs it with ep = {stage}, all GPUs of a stage"
        yield Verdict(f"{name} grid", f"ep {split.ep}", f"ep {stage}", split.ep == stage, detail, rules.source)


def _sizes(instance: Instance, name: str, limits: KernelLimits) -> Iterator[Verdict]:
    """Width of a token as it is sent, and experts per token."""
    moe = instance.model.moe
    width, widest = moe.expert_hidden_size(instance.model.hidden_size), max(limits.hidden_sizes, default=0)
    if widest:
        detail = f"{width}; the widest it is built for is {widest}"
        yield Verdict(f"{name} width", f"{width}", f"at most {widest}", width <= widest, detail, limits.source)
    if limits.most_top_k is not None:
        detail, most = f"top-{moe.top_k}; at most {limits.most_top_k}", limits.most_top_k
        yield Verdict(f"{name} top-k", f"{moe.top_k}", f"at most {most}", moe.top_k <= most, detail, limits.source)


def tokens_fit(instance: Instance, split: Split, slots: int, step_tokens: int) -> bool:
    """Whether the library can exchange so many tokens of a step."""
    return not instance.exchanges(split) or all(one.holds for one in _tokens(instance, split, slots, step_tokens))


def _tokens(instance: Instance, split: Split, slots: int, step_tokens: int) -> Iterator[Verdict]:
    """Tokens that a rank may send at once, and the buffer that they need."""
    name, limits = instance.constants.communication.kernel, instance.constants.kernel.limits
    sent = tokens_sent(step_tokens, split)
    if limits.most_tokens is not None:
        most = limits.most_tokens
        detail = f"{sent} per rank and micro-batch; at most {most}"
        yield Verdict(f"{name} tokens", f"{sent}", f"at most {most}", sent <= most, detail, limits.source)
    if limits.most_buffer is not None:
        needs = max(line.num_bytes for line in exchange_buffers(instance, split, slots, sent, crosses_nodes=True))
        most, shown = limits.most_buffer.value, format_bytes(limits.most_buffer.value)
        detail = f"{format_bytes(needs)} for {slots} experts and {sent} tokens per rank; at most {shown}"
        source = limits.most_buffer.source
        yield Verdict(f"{name} buffer", format_bytes(needs), f"at most {shown}", needs <= most, detail, source)


def _nodes(grids: Sequence[Grid], split: Split, name: str, ranks: int, source: str) -> Verdict:
    """Ranks 0..n-1, n..2n-1 and so on must share a node, and two such blocks must not."""
    limit = f"{ranks} consecutive ranks per node" if split.ep > ranks else "one node"
    bad = [grid for grid in grids if not _blocks_are_nodes(grid, ranks)]
    detail = f"an EP group spans nodes otherwise than {limit}" if bad else limit
    return Verdict(f"{name} nodes", f"ep {split.ep}", limit, not bad, detail, source)


def _blocks_are_nodes(grid: Grid, ranks: int) -> bool:
    for group in grid.ep_groups:
        node_R = group.unit_VR[grid.topology.file.node_level]
        if len(node_R) <= ranks:
            if node_R.any():
                return False
        elif len(node_R) % ranks or not np.array_equal(node_R, np.arange(len(node_R)) // ranks):
            return False
    return True
