"""Which ranks of an engine's world run on which node, and on which of its GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout


@dataclass(frozen=True)
class NodeShare:
    """One node: its ranks, consecutive, and the GPU of each by its number on the node."""

    ranks: tuple[int, ...]
    devices: tuple[int, ...]


def summary(layout: Layout, shares: Sequence[NodeShare]) -> str:
    """Split, nodes and GPUs in a few words."""
    nodes = f"{len(shares)} node{'s' if len(shares) > 1 else ''}"
    return f"{layout.split}; {nodes}, {layout.num_gpus} GPUs."


def node_shares(
    layout: Layout, order: Sequence[int], what: str, hint: str = "keep each stage on nodes of its own"
) -> list[NodeShare]:
    """The nodes in the order in which ranks fill them.

    Args:
        layout: the plan.
        order: GPU of every rank, as the engine numbers ranks.
        what: the engine or launcher, for the message.
        hint: how ranks come to follow the nodes; by default for an order stage by stage.

    Raises:
        InputError: ranks of a node are not consecutive, so no launcher that counts node by node can do it.
    """
    topology = layout.topology
    found: list[tuple[int, list[int], list[int]]] = []
    for rank, gpu in enumerate(order):
        node = int(topology.node_G[gpu])
        if not found or found[-1][0] != node:
            found.append((node, [], []))
        found[-1][1].append(rank)
        found[-1][2].append(int(topology.local_G[gpu]))
    nodes = [node for node, _, _ in found]
    if len(set(nodes)) < len(nodes):
        message = f"{what} counts ranks node by node, but those of the plan go back to a node they had left"
        raise InputError(Problem(message, Place("plan", key="stages"), hint))
    return [NodeShare(tuple(ranks), tuple(devices)) for _, ranks, devices in found]


def check_equal(shares: Sequence[NodeShare], what: str) -> None:
    """Raise `InputError` unless every node has as many ranks as the first."""
    counts = [len(share.ranks) for share in shares]
    if len(set(counts)) > 1:
        message = f"{what} starts equally many ranks on every node, the plan has {counts}"
        raise InputError(Problem(message, Place("plan", key="stages"), "solve with equal numbers of GPUs per node"))
