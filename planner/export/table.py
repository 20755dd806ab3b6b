"""The formats that are written. Light: the command line and the docs read this table, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Need = Literal[
    "copies",
    "uneven ranks",
    "layers that differ",
    "several stages",
    "no expert parallelism",
    "attention without data parallelism",
    "any placement",
]
"""What a plan may ask for and a format may be unable to say."""


@dataclass(frozen=True)
class Format:
    """One format: which module writes and reads it, what it is, and what it cannot say."""

    module: str
    what: str
    suffix: str
    versions: tuple[str, ...] = ()
    """Versions of the engine whose reader is known, the one assumed first; none: no engine reads it."""
    engine: str | None = None
    """Engine profile whose rules the plan's split must keep."""
    needs: str = ""
    """What it takes to load the file, where a released engine does not."""
    family: str = ""
    """The only model family that the reader is for."""
    cannot: Mapping[Need, str] = field(default_factory=dict)
    """What it cannot say, and why."""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Versions that are known not to read it, and why."""


_EVEN: Final = "slots must divide by the EP size"
_EPLB_OFF: Final = "expert parallelism is off, and nothing is loaded"
_STOCK: Final = {"0.33.0": "vLLM 0.33.0 loads no static placement; permute the checkpoint instead (--to checkpoint)"}
_STAGES: Final = "how pipeline stages count their layers is not settled there"
_ONE_SERVER: Final = "the reader counts layers from 0 in every stage, so one file cannot serve several"

MAPS: Final[dict[str, Format]] = {
    "sglang": Format(
        "sglang",
        "SGLang `physical_to_logical_map`, for `--init-expert-location`",
        ".json",
        versions=("0.5.23",),
        engine="sglang",
        cannot={"uneven ranks": _EVEN, "no expert parallelism": _EPLB_OFF},
    ),
    "tensorrt-llm": Format(
        "tensorrt_llm",
        "TensorRT-LLM load balancer, for `moe_config.load_balancer`",
        ".yaml",
        versions=("1.3",),
        engine="tensorrt-llm",
        cannot={
            "uneven ranks": "num_slots must divide by the EP size",
            "no expert parallelism": "the balancer is made only where EP > 1",
            "attention without data parallelism": "the section is ignored without a word (NVIDIA/TensorRT-LLM#18626)",
        },
    ),
    "vllm-ascend": Format(
        "vllm_ascend",
        "vllm-ascend expert map, for `eplb_config.expert_map_path`",
        ".json",
        versions=("0.25.0",),
        engine="vllm-ascend",
        cannot={
            "uneven ranks": "all devices must list the same number of experts",
            "several stages": _ONE_SERVER,
            "no expert parallelism": _EPLB_OFF,
        },
        gone={"0.25.1": "static EPLB is announced for removal there (vllm-project/vllm-ascend#12816)"},
    ),
    "vllm-pr41141": Format(
        "vllm_pr41141",
        "vLLM offline EPLB mapping, JSONL, for `eplb_config.initial_mapping_path`",
        ".jsonl",
        versions=("pr-41141",),
        engine="vllm",
        needs="needs vLLM with pull request 41141, which is in no release",
        cannot={"uneven ranks": _EVEN, "several stages": _STAGES, "no expert parallelism": _EPLB_OFF},
        gone=_STOCK,
    ),
    "vllm-pr49572": Format(
        "vllm_slots",
        "vLLM initial expert map, JSON, for `eplb_config.initial_expert_map_path`",
        ".json",
        versions=("pr-49572",),
        engine="vllm",
        needs="needs vLLM with pull request 49572, which is in no release",
        cannot={"uneven ranks": _EVEN, "several stages": _STAGES, "no expert parallelism": _EPLB_OFF},
        gone=_STOCK,
    ),
    "vllm-pr53022": Format(
        "vllm_slots",
        "vLLM expert map of DeepSeek-V4, JSON, for `eplb_config.expert_map_path`",
        ".json",
        versions=("pr-53022",),
        engine="vllm",
        needs="needs vLLM with pull request 53022, which is in no release",
        family="deepseek_v4",
        cannot={"uneven ranks": _EVEN, "several stages": _STAGES, "no expert parallelism": _EPLB_OFF},
        gone=_STOCK,
    ),
    "vllm-pr34811": Format(
        "vllm_pr34811",
        "vLLM expert placement file, for `--expert-placement-file`",
        ".json",
        versions=("pr-34811",),
        engine="vllm",
        needs="needs vLLM with pull request 34811, which is in no release",
        cannot={
            "copies": "each expert has one rank",
            "uneven ranks": "whether ranks may hold unequal numbers of experts is not settled there",
            "layers that differ": "one placement holds for all layers",
            "no expert parallelism": _EPLB_OFF,
        },
        gone=_STOCK,
    ),
    "omni-infer": Format(
        "omni_infer",
        "omni-infer placement pattern, 0/1 [ranks, MoE layers, experts], for `pattern_path`",
        ".npy",
        versions=("c8bc2bbb",),
        cannot={
            "uneven ranks": "every rank must hold the same number of experts in a layer",
            "several stages": "its ranks are those of one stage",
            "no expert parallelism": _EPLB_OFF,
        },
    ),
    "eplb": Format(
        "eplb",
        "EPLB's three arrays `phy2log`, `log2phy`, `logcnt`, as an npz",
        ".npz",
        versions=("d52c72d5b2f2",),
        cannot={"uneven ranks": "the number of replicas must divide by the GPUs"},
    ),
    "megatron": Format(
        "megatron",
        "Megatron-LM rank groups (tp, dp, ep, etp, edp, pp) with the GPU of each rank",
        ".json",
        versions=("d98e8a64",),
        engine="megatron",
        cannot={
            "copies": "an expert cannot have several copies",
            "uneven ranks": "the number of experts must divide by the EP size",
            "any placement": "experts are laid out in order, and no placement can be given; "
            "solve with target: checkpoint and permute the weights (--to checkpoint)",
        },
    ),
    "csv": Format("plain_table", "plain table: layer, stage, rank, slot, expert, copies, GPUs", ".csv"),
    "parquet": Format("plain_table", "the same table as Parquet (needs pyarrow)", ".parquet"),
}

CHECKPOINT: Final[dict[str, Format]] = {
    "checkpoint": Format(
        "checkpoint.rewrite",
        "Hugging Face checkpoint whose linear layout is the plan (--weights DIR), for every engine unmodified",
        "",
        cannot={
            "copies": "a checkpoint holds each expert once",
            "any placement": "only what was solved with target: checkpoint",
        },
    ),
}

_PULL_REQUESTS: Final = ("pr-41141", "pr-49572", "pr-53022")
LAUNCHES: Final[dict[str, Format]] = {
    "launch-vllm": Format("launch.vllm", "shell script that starts vLLM", ".sh", ("0.33.0", *_PULL_REQUESTS), "vllm"),
    "launch-vllm-ascend": Format(
        "launch.vllm",
        "shell script that starts vllm-ascend",
        ".sh",
        MAPS["vllm-ascend"].versions,
        "vllm-ascend",
        gone=MAPS["vllm-ascend"].gone,
    ),
    "launch-sglang": Format("launch.sglang", "shell script that starts SGLang", ".sh", ("0.5.23",), "sglang"),
    "launch-tensorrt-llm": Format(
        "launch.tensorrt_llm", "shell script that starts TensorRT-LLM", ".sh", ("1.3",), "tensorrt-llm"
    ),
    "launch-megatron": Format(
        "launch.torchrun", "shell script that starts Megatron-LM with torchrun", ".sh", ("d98e8a64",), "megatron"
    ),
    "torchrun": Format("launch.torchrun", "shell script that starts any program with torchrun", ".sh"),
    "slurm": Format("launch.slurm", "Slurm batch script that starts any program, one task per GPU", ".sbatch"),
    "kubernetes": Format("launch.kubernetes", "Kubernetes Job and Service that start any program", ".yaml"),
}
FORMATS: Final[dict[str, Format]] = {**MAPS, **CHECKPOINT, **LAUNCHES}
