"""Rules that every engine shares: heads, widths, slots, GPUs, all-to-all libraries.

Legend: tp, pp, dp, ep as in `planner.plan.split`; E experts, N redundant experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.export.lint.command import Parsed
from planner.inputs.deployment import load_kernel
from planner.inputs.model import DenseFfn, GroupedAttention, Model, NoAttention
from planner.inputs.precision import WEIGHTS
from planner.inputs.topology import Topology


@dataclass(frozen=True)
class About:
    """What is known beside the command; what is None is not judged."""

    model: Model | None
    topology: Topology | None
    pull_requests: tuple[str, ...] = ()
    """Open pull requests that the engine was built with."""


@dataclass(frozen=True)
class Grid:
    """The degrees that the engine makes of the flags."""

    tp: int
    pp: int
    dp: int
    ep: int
    etp: int = 1
    edp: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of the whole deployment."""
        return self.tp * self.dp * self.pp


def check_gpus(found: Parsed, grid: Grid, about: About, flag: str) -> None:
    """There must be as many GPUs as the degrees take."""
    if about.topology is None:
        return
    there = about.topology.num_gpus
    if grid.gpus > there:
        found.add("fatal", flag, f"{grid.gpus} GPUs are needed, the topology has {there}")
    elif grid.gpus < there:
        found.add("note", flag, f"{there - grid.gpus} of {there} GPUs stay idle")


def check_attention(found: Parsed, grid: Grid, about: About, flag: str) -> None:
    """Heads are never cut."""
    if about.model is None or grid.tp == 1:
        return
    for part in dict.fromkeys(
        run.attention for run in about.model.layers if not isinstance(run.attention, NoAttention)
    ):
        if part.num_heads % grid.tp:
            message = f"{part.num_heads} attention heads mod tp {grid.tp} = {part.num_heads % grid.tp}"
            found.add("fatal", flag, message, "vllm-project/vllm#52435")
        if isinstance(part, GroupedAttention) and part.num_kv_heads % grid.tp and grid.tp % part.num_kv_heads:
            found.add("fatal", flag, f"{part.num_kv_heads} KV heads neither divide by tp {grid.tp} nor divide it")


def check_widths(found: Parsed, grid: Grid, about: About, flag: str) -> None:
    """No quantisation block is cut: of experts where they are sharded, of dense parts by tp."""
    if about.model is None:
        return
    model = about.model
    parts = [("expert width", model.moe.intermediate_size, grid.etp, WEIGHTS[model.expert_weights].block)]
    for run in dict.fromkeys(run.ffn for run in model.layers):
        width = run.intermediate_size if isinstance(run, DenseFfn) else run.shared_intermediate_size
        if width:
            parts.append(("dense or shared width", width, grid.tp, WEIGHTS[model.dense_weights].block))
    for what, width, degree, block in dict.fromkeys(parts):
        if degree == 1:
            continue
        if width % degree:
            found.add("fatal", flag, f"{what} {width} mod {degree} = {width % degree}")
        elif block and (width // degree) % block:
            message = f"{what} {width}/{degree} = {width // degree}, not a multiple of the quantisation block {block}"
            found.add("fatal", flag, message, "vllm-project/vllm#17569, #25292")


def check_slots(found: Parsed, ep: int, redundant: int, about: About, flag: str, source: str) -> None:
    """Slots must divide by the EP size; with the fewest redundant experts that would do."""
    if about.model is None or ep == 1:
        return
    experts = about.model.moe.num_experts
    rest = (experts + redundant) % ep
    if rest:
        fewest = -experts % ep
        message = f"{experts} experts + {redundant} redundant mod EP size {ep} = {rest}; {fewest} redundant would do"
        found.add("fatal", flag, message, source)


def check_kernel(found: Parsed, kernel: str, ep: int, about: About, flag: str) -> None:
    """What the all-to-all library can run: EP sizes, nodes, widths, experts per token."""
    limits = load_kernel(kernel).limits
    if limits.ep_sizes and ep not in limits.ep_sizes:
        known = ", ".join(map(str, limits.ep_sizes))
        found.add("fatal", flag, f"EP size {ep}; the library is built for {known}", limits.source)
    if about.topology is not None and limits.node_ranks is not None and ep > 1:
        per_node = {int((about.topology.node_G == node).sum()) for node in set(about.topology.node_G.tolist())}
        if about.topology.num_nodes > 1 and ep > max(per_node) and per_node != {limits.node_ranks}:
            message = f"nodes of {sorted(per_node)} GPUs; the library expects {limits.node_ranks} ranks on each node"
            found.add("fatal", flag, message, limits.source)
    if about.model is None:
        return
    width = about.model.moe.expert_hidden_size(about.model.hidden_size)
    if limits.hidden_sizes and width > max(limits.hidden_sizes):
        found.add(
            "fatal", flag, f"width {width}; the widest it is built for is {max(limits.hidden_sizes)}", limits.source
        )
    if limits.most_top_k is not None and about.model.moe.top_k > limits.most_top_k:
        message = f"{about.model.moe.top_k} experts per token; at most {limits.most_top_k}"
        found.add("fatal", flag, message, limits.source)


def hierarchical(found: Parsed, flag: str, nodes: int, about: About) -> None:
    """Groups that do not divide over the nodes: the balancer looks at no node at all."""
    if about.model is None or nodes == 1:
        return
    groups = about.model.moe.num_groups
    if groups % nodes or groups == 1:
        message = f"{groups} routing group{'s' if groups > 1 else ''} on {nodes} nodes: balanced over all GPUs alike"
        found.add("coerced", flag, message, "deepseek-ai/EPLB eplb.py: hierarchical only if groups divide by nodes")
