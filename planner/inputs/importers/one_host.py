"""From the table of one host (`nvidia-smi topo -m`) to a topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from planner.errors import InputError, Place, Problem
from planner.inputs import profiles
from planner.inputs.fabrics import load_fabric
from planner.inputs.gpu import Gpu
from planner.inputs.importers.drawn import Drawn, DrawnLink
from planner.inputs.importers.nvidia_smi import CLOSENESS, Matrix
from planner.inputs.topology import load_node

_NEAR: Final = {"PIX": "switch", "PXB": "switches", "PHB": "socket", "NODE": "numa"}
"""Names of the levels that join GPUs no farther apart."""


def draw_host(matrix: Matrix, gpu: Gpu, file: str, *, nodes: int = 1, nic: str | None = None) -> Drawn:
    """The topology of so many hosts like this one.

    Args:
        matrix: the table.
        gpu: what its GPUs are; the table does not name them.
        file: the file of the table, for messages.
        nodes: hosts.
        nic: fabric of one NIC port; the table does not tell rates.

    Raises:
        InputError: the table and the GPU disagree, or hosts are to be joined and nothing joins them.
    """
    left_out: list[str] = []
    links = _inside(matrix, gpu, file, left_out)
    if nic is not None and matrix.nics:
        links.append(_outside(matrix, nic, left_out))
    elif nodes > 1 or nic is not None:
        missing = "the table shows no NIC" if nic is not None else "the table does not tell the rate of the NICs"
        hint = "write the level into the file by hand" if nic is not None else "give --nic, such as --nic ib-ndr"
        raise InputError(Problem(f"{nodes} nodes need a link between them, and {missing}", Place(file), hint))
    elif matrix.nics:
        left_out.append(f"the NICs {', '.join(matrix.nics)}: the table does not tell their rate (--nic ib-ndr does)")
    left_out += _wider_domains(gpu.name, links[0].fabric)
    return Drawn(gpu.name, nodes, matrix.num_gpus, tuple(links), tuple(left_out))


def _inside(matrix: Matrix, gpu: Gpu, file: str, left_out: list[str]) -> list[DrawnLink]:
    """The levels inside the host: NVLink if it joins every pair, else PCIe, with bridges inside where they are."""
    others = [[count for at, count in enumerate(row) if at != self] for self, row in enumerate(matrix.nvlinks)]
    linked = [count for row in others for count in row if count]
    if linked:
        _check_nvlinks(max(linked), gpu, file)
    if linked and all(count for row in others for count in row):
        return [_nvlink(others, str(gpu.scale_up or gpu.bridge), left_out)]
    if gpu.host is None:
        hint = "describe the GPU's node by hand in a topology.yaml"
        raise InputError(Problem(f"some GPUs meet over PCIe, and the profile {gpu.name} names none", Place(file), hint))
    bridged = _bridged(matrix)
    links = _over_pcie(matrix, gpu.host, bridged, left_out)
    if bridged:
        joined = [[count for count in row if count] for row in matrix.nvlinks]
        bridge = _nvlink(joined, str(gpu.scale_up or gpu.bridge), left_out)
        links.insert(0, replace(bridge, level="bridge", gpus=bridged))
    elif linked:
        pairs = [f"GPU{a}-GPU{b}" for a, row in enumerate(matrix.nvlinks) for b in range(a) if row[b]]
        left_out.append(f"NVLink joins only {', '.join(pairs)}: all GPUs are taken to meet over PCIe, the slower path")
    return links


def _bridged(matrix: Matrix) -> int:
    """GPUs of each block that NVLink joins whole, where it joins equal blocks in a row and nothing else; else 0."""
    blocks = [{at for at, count in enumerate(row) if count} | {own} for own, row in enumerate(matrix.nvlinks)]
    size = len(blocks[0])
    even = all(block == set(range(own - own % size, own - own % size + size)) for own, block in enumerate(blocks))
    return size if size > 1 and even else 0


def _check_nvlinks(most: int, gpu: Gpu, file: str) -> None:
    """Refuse a GPU that cannot have the NVLinks of the table."""
    fabric = gpu.scale_up or gpu.bridge
    if fabric is None or not fabric.startswith("nvlink"):
        message = f"the table shows NV{most}, but {gpu.name} has no NVLink"
    elif most > load_fabric(fabric).num_links:
        message = f"the table shows NV{most}, but {gpu.name} has {load_fabric(fabric).num_links} NVLinks"
    else:
        return
    raise InputError(Problem(message, Place(file), "is --gpu right? `nvidia-smi -L` names the GPUs"))


def _nvlink(others: Sequence[Sequence[int]], name: str, left_out: list[str]) -> DrawnLink:
    """Behind a switch every pair shows all links of a GPU; in a mesh the links of its pairs add up."""
    fabric = load_fabric(name)
    totals = [sum(row) if sum(row) <= fabric.num_links else max(row) for row in others]
    count = min(totals)
    if max(totals) > count:
        left_out.append(f"NVLinks per GPU differ ({count} to {max(totals)}): the least is taken")
    if len(others[0]) > 1 and sum(others[0]) <= fabric.num_links:
        left_out.append("NVLink is a mesh: one pair alone has only its own links, not the sum")
    if count == fabric.num_links or fabric.link_bandwidth is None:
        return DrawnLink("node", name)
    each = fabric.link_bandwidth
    rate = f"{count * each.value / 1e9:g} GB/s"
    return DrawnLink("node", name, rate, f"{count} of {fabric.num_links} NVLinks, each as {each.source}", each.basis)


def _over_pcie(matrix: Matrix, fabric: str, bridged: int, left_out: list[str]) -> list[DrawnLink]:
    """A level for every kind of path that joins equal blocks of GPUs in a row, all by the same port of a GPU.

    The table tells that a path is longer, not what it carries: the levels differ by name until somebody
    says how far the outer one is oversubscribed.
    """
    kinds = [kind for kind in CLOSENESS if any(kind in row for row in matrix.paths)]
    links: list[DrawnLink] = []
    smaller = max(bridged, 1)
    for near, far in pairwise(kinds):
        groups = _groups(matrix, far)
        between = f"{far} between {' and '.join(_named(group) for group in groups)}"
        size = len(groups[0])
        if any(group != list(range(size * at, size * at + size)) for at, group in enumerate(groups)):
            left_out.append(f"{between}: it counts as {near}, because levels hold equal numbers of GPUs in a row")
        elif size > smaller:
            name = "numa" if far == CLOSENESS[-1] else _NEAR[near]
            links.append(DrawnLink(name, fabric, gpus=size, same_port=bool(links)))
            smaller = size
            left_out.append(
                f"what the way {between} carries: the table does not tell; where the GPUs of one side together reach "
                "half of what their slots carry, add `oversubscription: 2` to the level outside"
            )
    return [*links, DrawnLink("node", fabric, same_port=bool(links))]


def _named(group: Sequence[int]) -> str:
    return " ".join(f"GPU{at}" for at in group)


def _groups(matrix: Matrix, far: str) -> list[list[int]]:
    """GPUs that reach each other by anything nearer than `far`."""
    farther = CLOSENESS[CLOSENESS.index(far) :]
    left = list(range(matrix.num_gpus))
    groups = []
    while left:
        members = {left[0]}
        waiting = [left[0]]
        while waiting:
            row = matrix.paths[waiting.pop()]
            near = [at for at in left if at not in members and row[at] not in farther]
            members.update(near)
            waiting += near
        left = [at for at in left if at not in members]
        groups.append(sorted(members))
    return groups


def _outside(matrix: Matrix, name: str, left_out: list[str]) -> DrawnLink:
    """The level between hosts: each GPU's part of the NICs nearest to it."""
    nearest = [_nearest(row) for row in matrix.nic_paths]
    users = [[gpu for gpu, nics in enumerate(nearest) if nic in nics] for nic in range(len(matrix.nics))]
    parts = [sum(1 / len(users[nic]) for nic in nics) for nics in nearest]
    part = min(parts)
    if max(parts) > part:
        left_out.append(f"NICs per GPU differ ({part:g} to {max(parts):g}): the least is taken")
    in_a_row = _shared_in_a_row(nearest)
    if part < 1 and not in_a_row:
        shared = [
            f"{matrix.nics[nic]} ({' '.join(f'GPU{g}' for g in on)})" for nic, on in enumerate(users) if len(on) > 1
        ]
        left_out.append(f"shared NICs {', '.join(shared)}: each GPU has its part; one alone could use a NIC whole")
    if part > 1:
        left_out.append(f"{part:g} NICs per GPU are counted; take away those that serve storage or management")
    idle = [matrix.nics[nic] for nic, on in enumerate(users) if not on]
    if idle:
        left_out.append(f"the NICs {', '.join(idle)}: every GPU has a nearer one")
    port = load_fabric(name).bandwidth
    if part == 1 or in_a_row:
        return DrawnLink("cluster", name, shared_by=in_a_row or 1)
    why = f"{part:g} NICs per GPU, each as {port.source}"
    return DrawnLink("cluster", name, f"{part * port.value * 8 / 1e9:g} Gb/s", why, port.basis)


def _shared_in_a_row(nearest: Sequence[Sequence[int]]) -> int:
    """GPUs in a row that share each NIC, where every GPU has one NIC and all NICs as many GPUs; else 0."""
    size = sum(nics == nearest[0] for nics in nearest)
    blocks = [nearest[at : at + size] for at in range(0, len(nearest), size)]
    even = all(len(block) == size and all(nics == block[0] for nics in block) for block in blocks)
    one_each = all(len(nics) == 1 for nics in nearest) and len({tuple(block[0]) for block in blocks}) == len(blocks)
    return size if size > 1 and even and one_each else 0


def _nearest(row: Sequence[str]) -> list[int]:
    best = min(CLOSENESS.index(path) for path in row)
    return [nic for nic, path in enumerate(row) if path == CLOSENESS[best]]


def _wider_domains(gpu: str, fabric: str) -> list[str]:
    """What shipped nodes of this GPU say about NVLink beyond one host, which the table cannot show."""
    for name in sorted(profiles.names("nodes"), key=lambda name: not name.startswith(gpu)):  # those of no cloud first
        node = load_node(name)
        inner = node.links[0]
        if node.gpu == gpu and inner.nodes is not None and inner.fabric == fabric:
            said = f"NVLink between hosts: {inner.nodes} such hosts may be one domain (profile {name})"
            return [f'{said}, which one host does not show; if so write `topology: "{inner.nodes} x {name}"`']
    return []
