"""The formats that are read. Light: the command line and the docs read this table, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Format:
    """One format: where it is read, what it is, how an engine records it, and what is lost."""

    module: str
    what: str
    record: str
    lost: str
    slots: bool = False
    """Whether --physical-map means something."""


FORMATS: Final[dict[str, Format]] = {
    "megatron": Format(
        "megatron",
        "Megatron-LM router trace, `router_trace_rank<R>.jsonl`",
        "`--moe-routing-trace-path DIR`; give one tensor-parallel rank of each data-parallel replica and stage",
        "requests and positions; multi-token prediction; logits and hidden states",
    ),
    "vllm": Format(
        "vllm_routes",
        "vLLM `routed_experts`: `.npy`, base64, responses (JSON, JSONL), `.npz` per request",
        "`--enable-return-routed-experts`; the token ids in an `.npz` tell the phases",
        "engine steps, router weights",
    ),
    "sglang-routes": Format(
        "sglang_routes",
        "SGLang `meta_info.routed_experts`: responses (JSON, JSONL)",
        "`--enable-return-routed-experts`, `return_routed_experts: true` in the request; needs `--model`",
        "engine steps, router weights",
    ),
    "sglang": Format(
        "sglang_records",
        "SGLang expert distribution recorder, `.pt`: `stat`, `per_pass`, `per_token`",
        "`--expert-distribution-recorder-mode`, then `/start_…`, `/stop_…` and `/dump_expert_distribution_record`",
        "`stat`, `per_pass`: tokens; `per_token`: requests; idle and draft-model passes",
    ),
    "tensorrt-llm": Format(
        "tensorrt_llm",
        "TensorRT-LLM statistics, a folder of `meta_info.json` and `rank<r>.safetensors`",
        "`EXPERT_STATISTIC_ITER_RANGE=100-200`, `EXPERT_STATISTIC_PATH=DIR`",
        "tokens; files `*_raw` and `cooccurrence_*` are not read",
        slots=True,
    ),
    "vllm-load-stats": Format(
        "vllm_load_stats",
        "vLLM offline EPLB statistics, JSONL of `eplb_load_stats`",
        "`--eplb-config.expert_load_stats_path` of pull request 41141 (not in a release)",
        "tokens",
    ),
    "vllm-ascend": Format(
        "vllm_ascend",
        "vllm-ascend `moe_load` [layers, ranks, slots]: `.npy`, `.pt`, `.json`",
        "save `moe_load` of the EPLB worker; needs `--physical-map`, the expert map of that run",
        "tokens",
        slots=True,
    ),
    "omni-infer": Format(
        "omni_infer",
        "omni-infer activation dumps: `activation_counts_recordstep_*_rank_*.txt`, log lines `[dump activation]`",
        "`enable_dump: true` and `dump_dir` in the placement config",
        "tokens",
        slots=True,
    ),
    "matrix": Format(
        "matrices",
        "counts [layers, experts] or with windows in front: `.npy`, `.pt`, `.json`, `.csv` of EPLB, LMDeploy, ADRS",
        "what a balancer takes; LMDeploy: `LMDEPLOY_EPLB_EXPERTS_STATISTIC_FILE`",
        "tokens",
    ),
    "token-lines": Format(
        "token_lines",
        "per-token JSONL with `layer` and `topk_ids`",
        "a hook on the router that writes a line for each token and layer",
        "router weights, requests",
    ),
    "native": Format("native", "`trace.npz` itself, to check, join or convert it", "", "arrays that are not known"),
}
