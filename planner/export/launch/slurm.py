"""A Slurm batch script: one task per GPU, ranks numbered node by node, names of hosts from the allocation.

What each task needs of its own is expanded by the task and not by the batch script, or every node would
take itself for the first (huggingface/accelerate#2816); and without scontrol the job ends instead of
meeting at localhost (mlc-ai/pith-train#91).
"""

from __future__ import annotations

import numpy as np

from planner import __version__
from planner.errors import InputError, Place, Problem
from planner.export.launch.nodes import check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions, joined
from planner.export.layout import Layout


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The script; the program and its arguments follow it on sbatch's command line."""
    del version
    shares = node_shares(layout, layout.ranks, "Slurm")
    check_equal(shares, "Slurm")
    if len({share.devices for share in shares}) > 1:
        message = "the nodes use different GPUs, and Slurm gives every task the same"
        raise InputError(Problem(message, Place("plan", key="stages"), "drain the GPUs that are out of service"))
    local = len(shares[0].ranks)
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --nodes={len(shares)}",
        f"#SBATCH --ntasks-per-node={local}",
        f"#SBATCH --gpus-per-node={local}",
        "#SBATCH --distribution=block",
    ]
    segment = segment_nodes(layout)
    if segment > 1:
        lines.append(f"#SBATCH --segment={segment}")
    lines += [
        f"# Written by ep-plan {__version__}: {summary(layout, shares)}",
        "# sbatch THIS_FILE PROGRAM ARGUMENTS: every task runs the program with RANK, LOCAL_RANK and WORLD_SIZE.",
        "set -euo pipefail",
        "",
        'command -v scontrol > /dev/null || { echo "scontrol is missing: no first host can be named" >&2; exit 7; }',
        'hosts="$(scontrol show hostnames "${SLURM_JOB_NODELIST:?run this with sbatch}")"',
        'MASTER_ADDR="$(head -n 1 <<< "$hosts")"',
        f"MASTER_PORT={options.port}",
        "export MASTER_ADDR MASTER_PORT",
        "# shellcheck disable=SC2016  # expanded by every task",
        f"exec srun --ntasks={layout.num_gpus} --kill-on-bad-exit=1 --distribution=block bash -c '",
        f"  export CUDA_VISIBLE_DEVICES={joined(shares[0].devices)}",
        '  export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"',
        '  exec "$@"',
        '\' ep-plan "$@"',
    ]
    return "\n".join(lines) + "\n"


def segment_nodes(layout: Layout) -> int:
    """Nodes that an all-to-all group must have in one block (NVIDIA-NeMo/Automodel#3914); 1: any will do.

    Of a level above the node, such as a rack, a group that fits into one unit must not lie across two.
    """
    topology, split = layout.topology, layout.split
    above = range(topology.file.node_level + 1, len(topology.links) - 1)
    for level in reversed(above):
        units = [set(topology.unit_VG[level][list(stage)].tolist()) for stage in layout.gpus]
        if all(len(unit) == 1 for unit in units) and split.ep > 1:
            return max(len(np.unique(topology.node_G[list(stage)])) for stage in layout.gpus)
    return 1
