"""From Slurm's groups of nodes, and what each node is, to a topology."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from planner.errors import InputError, Place, Problem
from planner.inputs import profiles
from planner.inputs.fabrics import load_fabric
from planner.inputs.gpu import Gpu
from planner.inputs.importers.drawn import Drawn, DrawnLink
from planner.inputs.importers.slurm import Groups
from planner.inputs.links import Link
from planner.inputs.topology import NodeFile, load_node
from planner.inputs.topology_file import LIMIT_LINKS

_NAMES: Final = ("leaf", "spine", "core")
"""Tiers of switches, the lowest first."""


def draw_cluster(groups: Groups, node: NodeFile) -> Drawn:
    """The topology of a cluster of such nodes.

    Slurm tells which nodes are close, not how fast anything is: rates come from the node.

    Raises:
        InputError: blocks that domains of as many nodes, one after the other, do not tell apart.
    """
    if groups.kind == "block":
        _refuse_uneven(groups, node.links[0].nodes)
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
    for name, size in reversed(_tiers(groups, node)):
        links.insert(1, replace(links[-1], level=name, nodes=size))
    hosts = tuple(name for members in groups.members.values() for name in members)
    return Drawn(node.gpu, groups.num_nodes, node.gpus_per_node, tuple(links), tuple(left_out), hosts)


def _refuse_uneven(groups: Groups, domain: int | None) -> None:
    """A level has parts of as many nodes each, counted through: with others, a part would reach into the next block."""
    if domain is None:
        return
    sizes = {name: len(members) for name, members in groups.members.items()}
    least = min(sizes.values())
    part = min(domain, least)
    wrong = next((name for name, size in sizes.items() if size != least or (size % part and len(sizes) > 1)), None)
    if wrong is None:
        return
    repair = least if least <= domain else least // domain * domain
    some = " and ".join(map(str, sorted(set(sizes.values()))))
    raise InputError(
        Problem(
            f"blocks of {some} nodes: {domain} nodes share a link, so blocks are of equal size, at most {domain} "
            "nodes or a multiple",
            groups.places[next(name for name, size in sizes.items() if size > repair)],
            f"leave nodes out of the file, so that every block has {repair}",
        )
    )


def _tiers(groups: Groups, node: NodeFile) -> list[tuple[str, int]]:
    """Names and nodes of the tiers of switches that are levels of their own, innermost first.

    All switches of a tier have as many nodes, more than those of the tier below and fewer than there are.
    """
    if groups.kind != "switch" or len(node.links) != 2 or node.links[0].nodes is not None:
        return []
    leaves = tuple(len(members) for members in groups.members.values())
    found: list[tuple[str, int]] = []
    for number, sizes in enumerate((leaves, *groups.tiers)):
        smaller = found[-1][1] if found else 1
        if len(set(sizes)) == 1 and sum(sizes) == groups.num_nodes and smaller < sizes[0] < groups.num_nodes:
            found.append((_NAMES[number] if number < len(_NAMES) else f"tier-{number}", sizes[0]))
    return found[: LIMIT_LINKS - len(node.links)]


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
    tiers = _tiers(groups, node)
    if tiers:
        said.append(
            f"how far the uplinks of {' and '.join(name for name, _ in tiers)} switches are oversubscribed: Slurm does "
            "not tell; for 2:1 add `oversubscription: 2` to the level outside"
        )
    uneven = [sizes for sizes in groups.tiers if len(set(sizes)) > 1 or sum(sizes) < groups.num_nodes]
    if groups.kind == "switch" and count > 1 and not tiers:
        above = sum(map(len, groups.tiers))
        said.append(
            f"{count} leaf switches of {some} nodes (and {above} above them): Slurm does not tell how much "
            "slower the way between leaves is, so all nodes are taken to be equally far"
        )
    elif tiers and uneven:
        parts = "; ".join(" and ".join(map(str, sizes)) for sizes in uneven)
        said.append(f"switches higher up with {parts} nodes: they are no level, because levels have equal parts")
    if groups.kind == "block" and domain is None and count > 1:
        said.append(
            f"{count} blocks of {some} nodes: such nodes have no link that a block shares, so all are equally far"
        )
    if groups.kind == "block" and domain is not None and sizes != [domain]:
        taken = min(domain, *sizes)
        said.append(f"blocks of {some} nodes, where {domain} of these make a full domain: {taken} share a link here")
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
