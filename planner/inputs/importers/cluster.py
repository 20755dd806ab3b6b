"""From Slurm's groups of nodes, and what each node is, to a topology."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import InputError, Place, Problem
from planner.inputs import profiles
from planner.inputs.fabrics import load_fabric
from planner.inputs.gpu import Gpu
from planner.inputs.importers.drawn import Drawn, DrawnLink
from planner.inputs.importers.slurm import Groups
from planner.inputs.links import Link
from planner.inputs.topology import NodeFile, load_node


def draw_cluster(groups: Groups, node: NodeFile) -> Drawn:
    """The topology of a cluster of such nodes.

    Slurm tells which nodes are close, not how fast anything is: rates come from the node.
    """
    left_out = _unsaid(groups, node)
    links: list[DrawnLink] = []
    for link in node.links:
        joined = link.nodes
        if joined is not None and groups.kind == "block":
            joined = min(joined, *map(len, groups.members.values()))
        if joined is not None and joined >= groups.num_nodes:
            links.append(_drawn(link, groups.num_nodes))
            break
        links.append(_drawn(link, joined))
    leaf = _leaf_size(groups, node)
    if leaf:
        links.insert(1, replace(links[-1], level="leaf", nodes=leaf))
    return Drawn(node.gpu, groups.num_nodes, node.gpus_per_node, tuple(links), tuple(left_out))


def _leaf_size(groups: Groups, node: NodeFile) -> int:
    """Nodes of each leaf switch, where all have as many and lie between a node and the whole; else 0."""
    sizes = {len(members) for members in groups.members.values()}
    plain = len(node.links) == 2 and node.links[0].nodes is None
    equal = groups.kind == "switch" and len(groups.members) > 1 and len(sizes) == 1
    return min(sizes) if equal and plain and min(sizes) > 1 else 0


def _drawn(link: Link, nodes: int | None) -> DrawnLink:
    name = link.fabric
    assert name is not None, "shipped nodes and `plain_node` name a fabric for each link"
    if link.bandwidth == load_fabric(name).bandwidth:
        return DrawnLink(link.level, name, nodes=nodes, shared_by=link.shared_by)
    rate = f"{link.bandwidth.value * 8 / 1e9:g} Gb/s"
    basis, source = link.bandwidth.basis, link.bandwidth.source
    return DrawnLink(link.level, name, rate, source, basis, nodes, shared_by=link.shared_by)


def _unsaid(groups: Groups, node: NodeFile) -> list[str]:
    sizes = sorted({len(members) for members in groups.members.values()})
    count = len(groups.members)
    some = " or ".join(map(str, sizes))
    domain = node.links[0].nodes
    said: list[str] = []
    if _leaf_size(groups, node):
        said.append(
            f"how far the uplinks of {count} leaf switches are oversubscribed: Slurm does not tell; for 2:1 add "
            "`oversubscription: 2` to the outermost level"
        )
    elif groups.kind == "switch" and count > 1:
        said.append(
            f"{count} leaf switches of {some} nodes (and {groups.num_upper} above them): Slurm does not tell how much "
            "slower the way between leaves is, so all nodes are taken to be equally far"
        )
    if groups.kind == "block" and domain is None and count > 1:
        said.append(
            f"{count} blocks of {some} nodes: such nodes have no link that a block shares, so all are equally far"
        )
    if groups.kind == "block" and domain is not None and sizes != [domain]:
        said.append(f"blocks of {some} nodes, where {domain} of these make a full domain: the smallest block is taken")
    if groups.unread:
        said.append(f"the keys {', '.join(groups.unread)}, which mean nothing here")
    return said


def plain_node(gpu: Gpu, gpus_per_node: int, nic: str, where: Place) -> NodeFile:
    """A node that no profile describes: GPUs joined as in the shipped nodes of this GPU, one NIC port each.

    Raises:
        InputError: the GPU profile names no fabric, or the NIC's is unknown.
    """
    load_fabric(nic, where)
    shipped = [node for node in map(load_node, profiles.names("nodes")) if node.gpu == gpu.name]
    fabric = gpu.scale_up or gpu.host
    if shipped:
        inner = shipped[0].links[0]
    elif fabric is not None:
        inner = Link.model_validate({"level": "node", "fabric": fabric})
    else:
        raise InputError(Problem(f"the profile {gpu.name} names no fabric", where, "give --node, a node profile"))
    outer = Link.model_validate({"level": "cluster", "fabric": nic})
    return NodeFile(gpu=gpu.name, gpus_per_node=gpus_per_node, links=(inner, outer))
