"""What engines take and leave free, working space, and the heaviest stage: by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.cost.grid import stages_of
from planner.cost.instance import Instance
from planner.cost.memory import StageMemory, stage_memories
from planner.errors import InputError
from planner.inputs import profiles
from planner.inputs.deployment import load_deployment
from planner.inputs.engines import load_engine
from planner.inputs.workload import Phase
from planner.plan.split import Split
from planner.rules import Limits
from planner.rules.ruled import ruled
from tests import building

GIB, MIB = 2**30, 2**20
FOUR = Split(tp=1, dp=4, pp=1, ep=4)


def stages(instance: Instance, split: Split) -> tuple[StageMemory, ...]:
    """Memory of all stages."""
    return stage_memories(instance, stages_of(split, instance.topology), instance.model.moe.num_experts)


def lines(instance: Instance, split: Split = FOUR) -> dict[str, int]:
    """Bytes by line of a GPU of the first stage with all layers."""
    found = stages(instance, split)[0].lines(range(instance.model.num_layers), 4)
    return {line.name: line.num_bytes for line in found}


def run_by(engine: str, tokens: int = 64) -> Instance:
    """The small model on 4 GPUs of 80 GiB, run by an engine."""
    constants = building.constants().model_copy(update={"engine_memory": load_engine(engine).memory})
    return building.instance(tokens=tokens, using=constants)


# --- engines ------------------------------------------------------------------------------------------


def test_vllm_leaves_a_tenth_free() -> None:
    made = run_by("vllm")
    found = lines(made)
    assert made.usable_G.tolist() == [72 * GIB] * 4  # 90 % of 80 GiB
    assert found["CUDA graphs"] == 1_300_000_000
    assert found["CUDA context and libraries"] == GIB


@pytest.mark.parametrize(("tokens", "captured"), [(64, 64), (1000, 512)])
def test_sglang_reserves_by_sequences_and_gpus(tokens: int, captured: int) -> None:
    """sgl-project/sglang#10975: 512 MiB, 2 MiB per sequence captured, 1 GiB for every 8 GPUs."""
    found = lines(run_by("sglang", tokens))
    assert found["attention backend"] == 512 * MIB
    assert found["CUDA graphs"] == captured * 2 * MIB
    assert found["large groups"] == 4 * 128 * MIB
    assert run_by("sglang").usable_G.tolist() == [80 * GIB] * 4


def test_no_graphs_are_captured_in_prefill() -> None:
    made = run_by("sglang")
    prefill = replace(made, workload=made.workload.model_copy(update={"phase": "prefill"}))
    assert "CUDA graphs" not in lines(prefill)


def test_tensorrt_llm_fills_nine_tenths_of_what_is_left() -> None:
    """free_gpu_memory_fraction 0.9: a cache of 9 needs 10 to be free."""
    found = lines(run_by("tensorrt-llm"))
    assert found["left free beside the KV cache"] == 2 * -(
        -found["KV cache"] // 2 // 9
    )  # rounded up in each of 2 layers


@pytest.mark.parametrize("name", [name for name in profiles.names("engines") if name != "any"])
def test_every_engine_says_what_it_takes_and_where_that_is_from(name: str) -> None:
    engine = load_engine(name)
    assert engine.version
    assert engine.rules.source
    assert engine.memory.share.source
    for line in engine.memory.lines:
        assert line.source
        assert line.basis == "assumed"  # nobody has measured one yet
        assert line.fixed + line.per_gpu + line.per_sequence > 0


def deployment(folder: Path, extra: str) -> Path:
    """A deployment with one more line."""
    path = folder / "deployment.yaml"
    path.write_text(
        "schema: ep-plan/deployment/1\nmodel: mixtral-8x7b\ntopology: 1 x hgx-h100\nengine: vllm\n"
        f"workload: {{phase: decode, tokens_per_gpu: 64, context_length: 4096}}\n{extra}\n"
    )
    return path


def test_a_deployment_may_set_the_share(tmp_path: Path) -> None:
    share = load_deployment(deployment(tmp_path, "memory_share: 95%")).engine_memory.share
    assert (share.value, share.basis, share.source) == (0.95, "given", "memory_share of the deployment")
    assert load_deployment(deployment(tmp_path, "")).engine_memory.share.value == 0.9
    for wrong in ("0%", "101%"):
        with pytest.raises(InputError, match="memory_share"):
            load_deployment(deployment(tmp_path, f"memory_share: {wrong}"))


def test_a_kernel_takes_the_sizes_that_the_engine_asks_for(tmp_path: Path) -> None:
    usual = load_deployment(deployment(tmp_path, ""))
    assert usual.communication.kernel == "allgather-reducescatter"  # what vLLM runs on one node
    wide = deployment(tmp_path, "communication: {kernel: deepep-low-latency}")
    buffer = load_deployment(wide).kernel.buffer
    assert buffer.kind == "deepep_low_latency"
    assert buffer.tokens.value == 256  # vLLM's own default, not the library's 128


# --- working space ------------------------------------------------------------------------------------


def with_chunk(phase: Phase, chunk: int) -> dict[str, int]:
    """Lines with prompts worked on in chunks."""
    made = building.instance(phase=phase)
    return lines(replace(made, workload=made.workload.model_copy(update={"prefill_chunk": chunk})))


def test_prompts_beside_decode_need_working_space() -> None:
    """64 sequences and 192 prompt tokens: 256 at once; 4 x 256 tokens x top-2 / 4 ranks x 2 = 1024 rows."""
    alone, beside = with_chunk("decode", 0), with_chunk("decode", 192)
    assert alone["activations"] == 2 * 64 * 8 * 64
    assert beside["activations"] == 2 * 256 * 8 * 64
    assert beside["expert workspace"] == 2 * 1024 * (2 * 64 + 3 * 96) == 4 * alone["expert workspace"]
    assert beside["logits"] == 4 * (64 + 1) * 128  # the sequences, and the prompt that ends in the chunk
    assert beside["KV cache"] == alone["KV cache"]


def test_chunks_bound_the_working_space_of_prefill() -> None:
    whole, chunked = with_chunk("prefill", 0), with_chunk("prefill", 16)
    assert chunked["activations"] == whole["activations"] // 4  # 16 of 64 tokens at once
    assert chunked["expert workspace"] == whole["expert workspace"] // 4
    assert chunked["KV cache"] == whole["KV cache"]
    assert with_chunk("prefill", 10**6) == whole


# --- stages -------------------------------------------------------------------------------------------


def test_the_heaviest_stage_counts() -> None:
    """NVIDIA-NeMo/Megatron-Bridge#5077: dividing evenly under-reported the heaviest stage by 31.8 %.

    Five layers on two stages: one has three. With memory for half of all layers on each, nothing fits.
    """
    model = building.model(layers=5, hidden=2048, width=8192, experts=16)
    split = Split(tp=1, dp=2, pp=2, ep=2, micro_batches=2)
    limits = Limits(building.FREE, "engine", keep_groups=False)
    roomy = ruled(building.instance(model), split, 0, limits)
    assert roomy.held is not None
    cuts = roomy.held.cuts
    assert sorted(len(layers) for layers in cuts) == [2, 3]
    totals = [m.total(layers, 8 * len(layers)) for m, layers in zip(roomy.held.memories, cuts, strict=True)]
    heaviest, average = max(totals), sum(totals) // 2
    assert heaviest > 1.1 * average
    for memory, fits in ((heaviest, True), (heaviest - 1, False), (average, False)):
        on = building.topology(of=building.gpu(memory=f"{memory} B"))
        candidate = ruled(building.instance(model, on), split, 0, limits)
        assert candidate.is_feasible is fits
        if not fits:
            stage = totals.index(heaviest)
            assert candidate.reasons[0].rule == f"memory of GPU {2 * stage}, stage {stage}"
