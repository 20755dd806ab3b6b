"""torchrun: ranks are numbered node by node, so nodes must be started with their number."""

from __future__ import annotations

from planner.export.launch.nodes import check_equal, node_shares, summary
from planner.export.launch.options import LaunchOptions, joined
from planner.export.launch.shell import PASSED, NodeCommand, script
from planner.export.layout import Layout


def write(layout: Layout, options: LaunchOptions, version: str) -> str:
    """A script that runs its arguments on every rank."""
    del version
    return _script(layout, options, [], "torchrun: give the program and its arguments after the node")


def write_megatron(layout: Layout, options: LaunchOptions, version: str) -> str:
    """The same for Megatron-LM: its arguments for the split follow the program's."""
    about = f"Megatron-LM {version}: give the training or inference script and its arguments after the node"
    return _script(layout, options, megatron_words(layout), about)


def _script(layout: Layout, options: LaunchOptions, words: list[str], about: str) -> str:
    shares = node_shares(layout, layout.ranks, "torchrun")
    check_equal(shares, "torchrun")
    hosts = options.need_hosts(len(shares))
    commands = []
    for number, share in enumerate(shares):
        argv = ["torchrun", "--nnodes", f"{len(shares)}", "--node-rank", f"{number}"]
        argv += ["--nproc-per-node", f"{len(share.ranks)}"]
        if len(shares) > 1:
            argv += ["--master-addr", hosts[0], "--master-port", f"{options.port}"]
        commands.append(NodeCommand({"CUDA_VISIBLE_DEVICES": joined(share.devices)}, (*argv, PASSED, *words)))
    first = summary(layout, shares)
    return script([about + ".", first], commands)


def megatron_words(layout: Layout) -> list[str]:
    """Megatron-LM's arguments that make the split; layers of stages as a pipeline layout."""
    split, moe = layout.split, layout.model.moe
    words = ["--tensor-model-parallel-size", f"{split.tp}", "--pipeline-model-parallel-size", f"{split.pp}"]
    words += ["--expert-model-parallel-size", f"{split.ep}", "--expert-tensor-parallel-size", f"{split.etp}"]
    words += ["--num-experts", f"{moe.num_experts}", "--moe-router-topk", f"{moe.top_k}"]
    if moe.num_groups > 1:
        words += ["--moe-router-num-groups", f"{moe.num_groups}", "--moe-router-group-topk", f"{moe.groups_per_token}"]
    if split.pp > 1:
        parts = [f"t*{len(layers)}" for layers in layout.cuts]
        words += ["--pipeline-model-parallel-layout", f"E{'|'.join(parts)}L"]
    return words
