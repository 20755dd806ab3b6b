"""Importers: hand-made tables and Slurm files after the public formats, whole and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import InputError, Place, UsageError
from planner.inputs.importers.choose import Given, drawn
from planner.inputs.importers.drawn import Drawn
from planner.inputs.topology import Topology, load_topology


def _table(cells: list[list[str]], nics: int, *, names: list[str] | None = None, affinity: str = "0-55 0 N/A") -> str:
    gpus = len(cells)
    columns = [f"GPU{i}" for i in range(gpus)] + (names or [f"NIC{i}" for i in range(nics)])
    lines = ["\t" + "\t".join(columns) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"]
    lines += [f"GPU{i}\t" + "\t".join(f" {cell} " for cell in row) + f"\t{affinity}" for i, row in enumerate(cells)]
    lines += [f"NIC{i}\t" + "\t".join(["SYS"] * (gpus + nics)) for i in range(nics)]
    lines += ["", "Legend:", "", "  X    = Self", "  NV#  = Connection traversing a bonded set of # NVLinks", ""]
    lines += ["NIC Legend:", "", *(f"  NIC{i}: mlx5_{i}" for i in range(nics))]
    return "\n".join(lines) + "\n"


def _cells(gpus: int, between: str, nic_rows: list[list[str]]) -> list[list[str]]:
    return [["X" if a == b else between for b in range(gpus)] + nic_rows[a] for a in range(gpus)]


def _hgx() -> str:
    """8 GPUs, one NIC each beside it, and a storage NIC far from all."""
    return _table(_cells(8, "NV18", [["PIX" if n == g else "SYS" for n in range(8)] + ["SYS"] for g in range(8)]), 9)


def _pcie_box() -> str:
    """2 NUMA nodes of 2 GPUs, a NIC on each."""
    side = [0, 0, 1, 1]
    cells = [
        ["X" if a == b else "PHB" if side[a] == side[b] else "SYS" for b in range(4)]
        + ["NODE" if side[a] == n else "SYS" for n in range(2)]
        for a in range(4)
    ]
    return _table(cells, 2)


def _tray() -> str:
    """4 GPUs of an NVL72: two by two beside a CPU with two NICs."""
    return _table(_cells(4, "NV18", [["NODE", "NODE", "SYS", "SYS"]] * 2 + [["SYS", "SYS", "NODE", "NODE"]] * 2), 4)


def _import(text: str, **given: str | int) -> Drawn:
    return drawn(text, "topo.txt", Given(**given))  # type: ignore[arg-type]


def _load(made: Drawn, folder: Path) -> Topology:
    path = folder / "topology.yaml"
    path.write_text(made.text("topo.txt"))
    return load_topology(path)


def test_hgx_box(tmp_path: Path) -> None:
    made = _import(_hgx(), gpu="h100-sxm", nic="ib-ndr", nodes=4)
    topology = _load(made, tmp_path)
    assert (topology.num_gpus, topology.num_nodes) == (32, 4)
    assert [link.bandwidth.value for link in topology.links] == [450e9, 50e9]
    assert any("mlx5_8" in sentence for sentence in made.left_out)
    assert "# Not expressed: the NICs mlx5_8" in made.text("x")


def test_fewer_nvlinks_are_counted(tmp_path: Path) -> None:
    made = _import(_hgx().replace("NV18", "NV8"), gpu="h800-sxm")
    link = _load(made, tmp_path).links[0]
    assert link.bandwidth.value == 200e9
    assert "8 of 18 NVLinks" in link.bandwidth.source


def test_a_mesh_adds_its_links_up(tmp_path: Path) -> None:
    made = _import(_table(_cells(4, "NV4", [[]] * 4), 0), gpu="a100-sxm-80")
    assert _load(made, tmp_path).links[0].bandwidth.value == 300e9
    assert any("mesh" in sentence for sentence in made.left_out)


def test_pcie_box_with_two_numa_nodes(tmp_path: Path) -> None:
    made = _import(_pcie_box(), gpu="l40s", nic="roce-200")
    topology = _load(made, tmp_path)
    assert [(link.level, link.bandwidth.value) for link in topology.links] == [
        ("numa", 32e9),
        ("node", 32e9),
        ("cluster", 25e9),
    ]
    assert topology.unit_VG[:2].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert topology.ports == (0, 0, 2)  # both ways over PCIe leave by a GPU's slot
    assert topology.port_VG[2].tolist() == [0, 0, 1, 1]  # a NIC for two GPUs
    (said,) = made.left_out
    assert "SYS between GPU0 GPU1 and GPU2 GPU3" in said
    assert "`oversubscription: 2`" in said


def test_switches_inside_numa_nodes_are_a_level_too(tmp_path: Path) -> None:
    """8 GPUs, two on each PCIe switch, four beside each CPU."""

    def path(a: int, b: int) -> str:
        return "X" if a == b else "PIX" if a // 2 == b // 2 else "NODE" if a // 4 == b // 4 else "SYS"

    made = _import(_table([[path(a, b) for b in range(8)] for a in range(8)], 0), gpu="l4")
    topology = _load(made, tmp_path)
    assert [(link.level, link.gpus) for link in topology.links] == [("switch", 2), ("numa", 4), ("node", None)]
    assert topology.ports == (0, 0, 0)
    assert len(made.left_out) == 2


def test_numa_nodes_of_unequal_size_are_told(tmp_path: Path) -> None:
    side = [0, 0, 0, 1]
    cells = [["X" if a == b else "NODE" if side[a] == side[b] else "SYS" for b in range(4)] for a in range(4)]
    made = _import(_table(cells, 0), gpu="l4")
    assert [link.level for link in _load(made, tmp_path).links] == ["node"]
    (said,) = made.left_out
    assert "SYS between GPU0 GPU1 GPU2 and GPU3: it counts as NODE" in said


def test_bridged_cards_beside_two_cpus(tmp_path: Path) -> None:
    def path(a: int, b: int) -> str:
        return "X" if a == b else "NV12" if a // 2 == b // 2 else "NODE" if a // 4 == b // 4 else "SYS"

    made = _import(_table([[path(a, b) for b in range(8)] for a in range(8)], 0), gpu="h100-nvl")
    topology = _load(made, tmp_path)
    assert [(link.level, link.gpus) for link in topology.links] == [("bridge", 2), ("numa", 4), ("node", None)]
    assert topology.ports == (0, 1, 1)  # the bridge is a port of its own


def test_nics_shared_across_the_order_of_gpus_are_taken_in_parts(tmp_path: Path) -> None:
    text = _table(_cells(4, "SYS", [["PIX", "SYS"], ["SYS", "PIX"]] * 2), 2)
    made = _import(text, gpu="l40s", nic="roce-200")
    assert _load(made, tmp_path).links[1].bandwidth.value == 12.5e9
    assert any("mlx5_0 (GPU0 GPU2)" in sentence for sentence in made.left_out)


def test_tray_of_a_rack(tmp_path: Path) -> None:
    made = _import(_tray(), gpu="gb200", nic="ib-ndr")
    topology = _load(made, tmp_path)
    assert [link.bandwidth.value for link in topology.links] == [900e9, 50e9]
    assert any("18 x gb200-nvl72" in sentence for sentence in made.left_out)


def test_bridges_between_some_cards_only(tmp_path: Path) -> None:
    cells = _cells(4, "SYS", [[]] * 4)
    for a, b in ((0, 1), (2, 3)):
        cells[a][b] = cells[b][a] = "NV12"
    made = _import(_table(cells, 0), gpu="h100-nvl")
    topology = _load(made, tmp_path)
    assert [link.bandwidth.value for link in topology.links] == [300e9, 64e9]
    assert topology.unit_VG.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert made.left_out == ()


def test_bridges_between_cards_that_are_no_neighbours(tmp_path: Path) -> None:
    cells = _cells(4, "SYS", [[]] * 4)
    for a, b in ((0, 2), (1, 3)):
        cells[a][b] = cells[b][a] = "NV12"
    made = _import(_table(cells, 0), gpu="h100-nvl")
    assert [link.bandwidth.value for link in _load(made, tmp_path).links] == [64e9]
    assert any("GPU2-GPU0, GPU3-GPU1" in sentence for sentence in made.left_out)


def test_one_gpu_and_old_headers(tmp_path: Path) -> None:
    text = "\x1b[4m\tGPU0\tmlx5_0\tCPU Affinity\x1b[0m\nGPU0\t X \tPIX\t0-7\nmlx5_0\tPIX\t X \n"
    topology = _load(_import(text, gpu="l4", nic="roce-100"), tmp_path)
    assert topology.num_gpus == 1
    assert topology.links[1].bandwidth.value == 12.5e9


def test_text_around_the_table_and_gpus_that_do_not_count_from_zero(tmp_path: Path) -> None:
    table = "\tGPU4\tGPU5\tCPU Affinity\nGPU4\t X \tNV18\t0-7\nGPU5\tNV18\t X \t0-7\n"
    around = f"\x1b]0;title\x07$ nvidia-smi topo -m\r\n{table}".replace("\n", "\r\n")
    assert _load(_import(around, gpu="h100-sxm"), tmp_path).num_gpus == 2


def test_mig_instances_are_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match="MIG instances: GPU0 MIG") as caught:
        _import("\tGPU0\tMIG 1g.10gb\tCPU Affinity\nGPU0\t X \tNV18\t0-7\n", gpu="h100-sxm")
    assert "MIG is off" in caught.value.problems[0].hint


def test_without_a_rate_the_nics_are_left_out_not_guessed() -> None:
    made = _import(_hgx(), gpu="h100-sxm")
    assert [link.level for link in made.links] == ["node"]
    assert any("--nic" in sentence for sentence in made.left_out)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("GPU2\t NV18 \t NV18 \t X ", "GPU2\t NV18 \t NV18 \t OK "), 4, "GPU2 to GPU2: unknown path 'OK'"),
        (("GPU1\t NV18 ", "GPU1\t NV17 "), 3, "GPU1 to GPU0: NV17"),
        (("\nGPU3\t", "\nGPUx\t"), 1, "no row for GPU3"),
        (("\nGPU3\t", "\nGPU2\t"), 5, "row GPU2 stands twice"),
        (("GPU3\t NV18 ", "GPU3\t"), 5, "row GPU3"),
    ],
)
def test_broken_tables_name_the_line(change: tuple[str, str], line: int, message: str) -> None:
    text = _tray().replace(*change)
    assert text != _tray()
    if "row GPU3" in message:
        text = text.replace("\t0-55 0 N/A", "")
    with pytest.raises(InputError) as caught:
        _import(text, gpu="gb200")
    found = [problem for problem in caught.value.problems if message in problem.message]
    assert found, caught.value
    assert found[0].where is not None
    assert found[0].where.line == line
    assert found[0].hint


def test_all_bad_cells_are_told_at_once() -> None:
    text = _tray().replace("GPU1\t NV18 ", "GPU1\t ?? ").replace("GPU3\t NV18 ", "GPU3\t !! ")
    with pytest.raises(InputError) as caught:
        _import(text, gpu="gb200")
    assert [problem.where.line for problem in caught.value.problems if problem.where] == [3, 5]


def test_a_gpu_that_cannot_be_in_the_table() -> None:
    for name, message in (("a100-sxm-80", "has 12 NVLinks"), ("l4", "has no NVLink")):
        with pytest.raises(InputError, match=message):
            _import(_hgx(), gpu=name)


def test_several_hosts_need_a_rate() -> None:
    with pytest.raises(InputError, match="2 nodes need a link"):
        _import(_hgx(), gpu="h100-sxm", nodes=2)


TREE = """# Slurm topology/tree
SwitchName=leaf1 Nodes=gpu[01-04]
SwitchName=leaf2 Nodes=gpu[05-07],spare1
SwitchName=spine Switches=leaf[1-2]
"""
SCONTROL = """SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=gpu[01-04]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=gpu[05-07],spare1
SwitchName=spine Level=1 LinkSpeed=1 Nodes=gpu[01-07],spare1 Switches=leaf[1-2]
"""
BLOCKS = "BlockName=b1 Nodes=tray[001-018]\nBlockName=b2 Nodes=tray[019-036]\nBlockSizes=18\n"


@pytest.mark.parametrize("text", [TREE, SCONTROL])
def test_slurm_tree(text: str, tmp_path: Path) -> None:
    made = _import(text, node="hgx-h100")
    topology = _load(made, tmp_path)
    assert (topology.num_nodes, topology.num_gpus) == (8, 64)
    assert [link.bandwidth.value for link in topology.links] == [450e9, 50e9, 50e9]
    assert (topology.file.spans(), topology.ports) == ([1, 4, 8], (0, 1, 1))
    (said,) = made.left_out
    assert "uplinks of leaf switches" in said
    assert "# Node 0: gpu01 gpu02 gpu03 gpu04 gpu05 gpu06 gpu07 spare1" in made.text("x")
    assert "`oversubscription: 2`" in said


PODS = """SwitchName=l0 Nodes=n[0-3]
SwitchName=l1 Nodes=n[4-7] # beside l3
SwitchName=l2 \\
  Nodes=n[8-11]
SwitchName=l3 Nodes=n[12-13],\\
  n[14-15]
SwitchName=s0 Switches=l0,l2
SwitchName=s1 Switches=l1,l3
SwitchName=core Switches=s[0-1]
"""


def test_slurm_tiers_are_levels_and_their_order_is_that_of_the_nodes(tmp_path: Path) -> None:
    made = _import(PODS, node="hgx-h100")
    topology = _load(made, tmp_path)
    assert [link.level for link in topology.links] == ["node", "leaf", "spine", "cluster"]
    assert (topology.file.spans(), topology.ports) == ([1, 4, 8, 16], (0, 1, 1, 1))
    assert made.hosts[:8] == ("n0", "n1", "n2", "n3", "n8", "n9", "n10", "n11")
    assert made.hosts[8:] == ("n4", "n5", "n6", "n7", "n12", "n13", "n14", "n15")
    (said,) = made.left_out
    assert "leaf and spine switches" in said


def test_slurm_tiers_of_unequal_size_are_told(tmp_path: Path) -> None:
    made = _import(
        PODS.replace("Switches=l0,l2", "Switches=l0").replace("Switches=l1", "Switches=l2,l1"), node="hgx-h100"
    )
    assert _load(made, tmp_path).file.spans() == [1, 4, 16]
    assert any("with 4 and 12 nodes: they are no level" in sentence for sentence in made.left_out)


def test_aggregated_blocks_of_scontrol_are_passed_over(tmp_path: Path) -> None:
    lines = BLOCKS.replace("BlockSizes=18\n", "AggregatedBlock=b[1-2] BlockIndex=2 Nodes=tray[001-036] BlockSize=36\n")
    assert _load(_import(lines, node="gb200-nvl72"), tmp_path).file.spans() == [18, 36]


def test_slurm_leaves_of_unequal_size_are_one_level(tmp_path: Path) -> None:
    made = _import(TREE.replace(",spare1", ""), node="hgx-h100")
    assert _load(made, tmp_path).file.spans() == [1, 7]
    assert any("2 leaf switches of 3 or 4 nodes (and 1 above" in sentence for sentence in made.left_out)


def test_slurm_blocks_of_racks(tmp_path: Path) -> None:
    made = _import(BLOCKS, node="gb200-nvl72")
    topology = _load(made, tmp_path)
    assert topology.num_gpus == 144
    assert topology.file.spans() == [18, 36]
    assert made.left_out == ()


def test_slurm_one_rack_needs_no_further_level(tmp_path: Path) -> None:
    made = _import("BlockName=b1 BlockIndex=0 Nodes=tray[01-18] BlockSize=18\n", node="gb300-nvl72")
    assert _load(made, tmp_path).file.spans() == [18]


def test_slurm_smaller_blocks_say_so(tmp_path: Path) -> None:
    made = _import(BLOCKS.replace("-018]", "-016]").replace("-036]", "-034]"), node="gb200-nvl72")
    assert _load(made, tmp_path).file.spans() == [16, 32]
    assert any("blocks of 16 nodes" in sentence and "16 share a link" in sentence for sentence in made.left_out)


def test_slurm_blocks_of_several_racks_are_cut_into_racks(tmp_path: Path) -> None:
    made = _import("BlockName=b1 Nodes=n[00-35]\nBlockName=b2 Nodes=n[36-71]\n", node="gb200-nvl72")
    assert _load(made, tmp_path).file.spans() == [18, 72]
    assert any("blocks of 36 nodes" in sentence and "18 share a link" in sentence for sentence in made.left_out)


@pytest.mark.parametrize(
    ("first", "second", "sizes", "line", "repair"),
    [
        ("00-17", "20-36", "17 and 18", 1, 17),
        ("00-16", "20-37", "17 and 18", 2, 17),
        ("00-17", "20-55", "18 and 36", 2, 18),
        ("00-26", "30-56", "27", 1, 18),
    ],
)
def test_slurm_blocks_that_share_a_domain_with_the_next_are_refused(
    first: str, second: str, sizes: str, line: int, repair: int
) -> None:
    """Levels count nodes through: the last of the larger block would be in the domain of the other."""
    text = f"BlockName=b1 Nodes=n[{first}]\nBlockName=b2 Nodes=n[{second}]\n"
    with pytest.raises(InputError, match=f"blocks of {sizes} nodes: 18 nodes share a link") as caught:
        _import(text, node="gb200-nvl72")
    (problem,) = caught.value.problems
    assert problem.where == Place("topo.txt", line, 11)
    assert problem.hint == f"leave nodes out of the file, so that every block has {repair}"


def test_slurm_blocks_of_unequal_size_without_a_shared_link_are_one_level(tmp_path: Path) -> None:
    made = _import("BlockName=b1 Nodes=n[0-3]\nBlockName=b2 Nodes=n[4-6]\n", node="hgx-h100")
    assert _load(made, tmp_path).file.spans() == [1, 7]
    assert any("2 blocks of 3 or 4 nodes" in sentence for sentence in made.left_out)


def test_slurm_with_a_gpu_instead_of_a_node(tmp_path: Path) -> None:
    made = _import(TREE, gpu="h800-sxm", gpus_per_node=4, nic="roce-400")
    topology = _load(made, tmp_path)
    assert topology.num_gpus == 32
    assert [link.bandwidth.value for link in topology.links] == [200e9, 50e9, 50e9]


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("gpu[01-04]", "gpu[04-01]"), 2, "'gpu[04-01]' is not a host list"),
        (("gpu[01-04]", "gpu[01-04],gpu02"), 2, "'gpu02' stands twice in a host list"),
        (("gpu[05-07]", "gpu[05-07],gpu[06-08]"), 3, "'gpu06' stands twice in a host list"),
        (("gpu[01-04]", "gpu[01-02,02-04]"), 2, "'gpu02' stands twice in a host list"),
        (("leaf[1-2]", "leaf[1-2],leaf1"), 4, "'leaf1' stands twice in a host list"),
        (("gpu[01-04]", "gpu[01-04"), 2, "is not a host list"),
        (("leaf2 Nodes", "leaf1 Nodes"), 3, "switch 'leaf1' stands twice"),
        (("gpu[05-07]", "gpu[04-07]"), 3, "node 'gpu04' under switch 'leaf2'"),
        (("leaf[1-2]", "leaf[1-3]"), 4, "'leaf3', which no line defines"),
        (("SwitchName=leaf2 ", ""), 3, "not a line of a switch or block"),
        (("SwitchName=leaf2", "BlockName=leaf2"), 3, "block 'leaf2' beside a switch"),
        ((" Nodes=gpu[01-04]", ""), 2, "switch 'leaf1' has no nodes"),
        (("Nodes=gpu[01-04]", "Nodes=ALL"), 2, "'ALL' does not tell"),
        (("leaf2 Nodes=gpu[05-07],spare1", "leaf2 Switches=spine"), 3, "switch 'leaf2' stands under itself"),
        (("leaf[1-2]", "leaf[1-2]\nSwitchName=top Switches=leaf1"), 5, "switch 'leaf1' under switch 'top'"),
    ],
)
def test_broken_slurm_files_name_the_line(change: tuple[str, str], line: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _import(TREE.replace(*change), node="hgx-h100")
    found = [problem for problem in caught.value.problems if message in problem.message]
    assert found, caught.value
    assert found[0].where is not None
    assert found[0].where.line == line
    assert found[0].hint


def test_trees_that_are_too_deep_are_refused() -> None:
    lines = [f"SwitchName=s{at + 1} Switches=s{at}" for at in range(20)]
    with pytest.raises(InputError, match="'s0' has too many switches above it"):
        _import("\n".join(["SwitchName=s0 Nodes=n[0-3]", *lines]), node="hgx-h100")


def test_huge_ranges_are_refused_quickly() -> None:
    for hosts in ("n[0-999999999]", "a[0-999]b[0-999]"):
        with pytest.raises(InputError, match="host list"):
            _import(f"SwitchName=s Nodes={hosts}\n", node="hgx-h100")


def test_formats_are_told_by_content() -> None:
    with pytest.raises(InputError, match="of no known format"):
        _import("hello\n", gpu="l4")
    with pytest.raises(InputError, match="no table of GPUs"):
        _import(TREE, gpu="l4", source="nvidia-smi")
    with pytest.raises(InputError, match="not a line of a switch"):
        _import(_hgx(), node="hgx-h100", source="slurm")


def test_missing_and_needless_options() -> None:
    with pytest.raises(UsageError, match="give --gpu"):
        _import(_hgx())
    with pytest.raises(UsageError, match="give --node, or --gpu, --gpus-per-node, --nic"):
        _import(TREE)
    with pytest.raises(UsageError, match="--gpus-per-node means nothing for nvidia-smi"):
        _import(_hgx(), gpu="h100-sxm", gpus_per_node=8)
    with pytest.raises(UsageError, match="--gpu means nothing for slurm with --node"):
        _import(TREE, gpu="h100-sxm", node="hgx-h100")
