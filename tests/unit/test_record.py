"""Recorded choices against what the experts really received.

The oracle shares nothing with the recorder: it runs each MoE block again with one expert's weights
changed. Tokens whose output then changes are those that this expert served.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="recording needs torch")
transformers = pytest.importorskip("transformers", reason="recording needs transformers")
torch.set_num_threads(1)  # small work, many test processes

from planner.errors import InputError, PlannerError, UsageError  # noqa: E402
from planner.record import Recorder  # noqa: E402
from planner.trace.native import read_trace  # noqa: E402
from planner.trace.trace import TokenTrace  # noqa: E402

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": 24,
}
GROUPED = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# family: its keys, MoE layers, experts, experts per token
FAMILIES: dict[str, tuple[dict[str, Any], list[int], int, int]] = {
    "mixtral": ({"num_local_experts": 8, "num_experts_per_tok": 2}, [0, 1, 2], 8, 2),
    "qwen3_moe": (
        {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
        [0, 2],
        16,
        4,
    ),
    "olmoe": ({"num_experts": 16, "num_experts_per_tok": 4}, [0, 1, 2], 16, 4),
    "gpt_oss": ({"num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 8}, [0, 1, 2], 8, 4),
    "deepseek_v3": (GROUPED | LATENT, [1, 2], 16, 4),
    "glm4_moe": (GROUPED | {"head_dim": 8}, [1, 2], 16, 4),
    "llama4_text": (
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 32,
            "interleave_moe_layer_step": 2,
            "num_hidden_layers": 4,
            "head_dim": 8,
        },
        [1, 3],
        8,
        1,
    ),
}


def built(family: str) -> Any:
    """A random model of a family: correction biases too, which decide in DeepSeek's and GLM's routers."""
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family][0]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(0, 1)
    return model


def batch(padding: str = "right") -> tuple[Any, Any]:
    """Three sequences of 9, 5 and 7 tokens, padded on one side."""
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 7:] = 0
    return ids, mask if padding == "right" else mask.flip(1)


def first_of(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def served(block: Any, given: Any, expert: int) -> Any:
    """Which tokens an expert serves in a block: those whose output moves when its weights do. [N] bool"""
    experts = block.experts
    if isinstance(experts, torch.nn.ModuleList):
        parts = list(experts[expert].parameters())
    else:
        parts = [parameter[expert] for parameter in experts.parameters() if parameter.dim() >= 2]
    with torch.no_grad():
        before = first_of(block(given)).reshape(-1, given.shape[-1])
        kept = [part.clone() for part in parts]
        for part in parts:
            part.add_(0.5)
        after = first_of(block(given)).reshape(-1, given.shape[-1])
        for part, old in zip(parts, kept, strict=True):
            part.copy_(old)
    return ((after - before).abs() > 1e-6).any(dim=1)


def blocks_of(model: Any) -> dict[int, Any]:
    """Hidden layer -> the module that holds its experts."""
    found = {}
    for layer, module in enumerate(model.model.layers):
        for inner in module.modules():
            if hasattr(inner, "experts"):
                found[layer] = inner
    return found


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_choices_are_what_the_experts_received(family: str, padding: str, tmp_path: Path) -> None:
    _, layers, experts, top_k = FAMILIES[family]
    model = built(family)
    ids, mask = batch(padding)
    inputs: dict[int, Any] = {}
    blocks = blocks_of(model)
    assert list(blocks) == layers
    spies = [
        block.register_forward_pre_hook(lambda _module, args, layer=layer: inputs.update({layer: args[0].detach()}))
        for layer, block in blocks.items()
    ]
    with Recorder(model) as recorder, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        recorder.add(mask, domain="words")
    for spy in spies:
        spy.remove()
    recorder.save(tmp_path / "trace.npz")

    trace = read_trace(tmp_path / "trace.npz").trace
    assert isinstance(trace, TokenTrace)
    assert (trace.num_experts, trace.top_k, trace.num_tokens) == (experts, top_k, 21)
    assert trace.layer_ids_L.tolist() == layers
    assert trace.source.whole("seq_id").tolist() == [0] * 9 + [1] * 5 + [2] * 7
    assert trace.source.whole("pos").tolist() == [*range(9), *range(5), *range(7)]
    recorded = trace.source.whole("expert_ids")
    keep = mask.reshape(-1).bool()
    for row, layer in enumerate(layers):
        really = torch.stack([served(blocks[layer], inputs[layer], expert)[keep] for expert in range(experts)], dim=1)
        claimed = np.zeros((21, experts), dtype=bool)
        np.put_along_axis(claimed, recorded[:, row], values=True, axis=1)
        assert claimed.sum() == 21 * top_k  # no expert twice
        assert np.array_equal(claimed, really.numpy())


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_the_largest_logits_would_be_wrong(family: str, tmp_path: Path) -> None:
    """The trap that recording avoids: with a correction bias, top-k of the logits is another choice."""
    model = built(family)
    ids, mask = batch()
    with Recorder(model) as recorder, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        logits = torch.cat([router.chosen[0].experts_NK for router in recorder.routers])
        recorder.add(mask)
    router = recorder.routers[0]
    hidden = torch.randn(200, SMALL["hidden_size"])
    with torch.no_grad():
        naive = (hidden @ router.module.weight.T).topk(4).indices.sort().values
        real = next(part for part in router.module(hidden) if not part.is_floating_point()).sort().values
    assert (naive == real).all(dim=1).float().mean() < 0.2
    assert len(logits) == 2 * 27


def test_weights_are_those_of_the_router(tmp_path: Path) -> None:
    """Mixtral's weights are a softmax over the chosen: they sum to 1 and fall."""
    ids, mask = batch()
    model = built("mixtral")
    with Recorder(model) as recorder, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        recorder.add(mask)
    recorder.save(tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as file:
        weights = file["weights"].astype(float)
    assert weights.sum(axis=2) == pytest.approx(1, abs=2e-3)
    assert (weights[..., 0] >= weights[..., 1]).all()


def test_sequences_positions_domains_and_steps(tmp_path: Path) -> None:
    ids, mask = batch()
    model = built("mixtral")
    with Recorder(model) as recorder, torch.no_grad():
        for step in range(2):
            model(input_ids=ids, attention_mask=mask)
            recorder.add(mask, domain=["a", "b", "a"], step_id=step)
    recorder.save(tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as file:
        assert file["seq_id"].tolist() == [0] * 9 + [1] * 5 + [2] * 7 + [3] * 9 + [4] * 5 + [5] * 7
        assert file["pos"].tolist() == 2 * [*range(9), *range(5), *range(7)]
        assert file["domain_id"].tolist() == 2 * ([0] * 9 + [1] * 5 + [0] * 7)
        assert file["domain_names"].tolist() == ["a", "b"]
        assert file["step_id"].tolist() == [0] * 21 + [1] * 21
        first, second = np.split(file["expert_ids"], 2)
    assert np.array_equal(first, second)


def test_one_add_after_a_generation_is_the_same_as_one_pass_over_its_text(tmp_path: Path) -> None:
    """Prefill and decoding steps laid side by side: position by position the same choices."""
    model = built("olmoe")
    prompt = batch()[0][:, :4]
    with torch.no_grad():
        with Recorder(model) as recorder:
            text = model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
            recorder.add(np.ones((3, text.shape[1] - 1)))  # the last token is never routed
        recorder.save(tmp_path / "generated.npz")
        with Recorder(model) as again:
            model(text[:, :-1])
            again.add(np.ones((3, text.shape[1] - 1)))
        again.save(tmp_path / "read.npz")
    with np.load(tmp_path / "generated.npz") as one, np.load(tmp_path / "read.npz") as other:
        assert np.array_equal(np.sort(one["expert_ids"]), np.sort(other["expert_ids"]))
        assert np.array_equal(one["pos"], other["pos"])


class OldBlock(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is not typed here
    """A block as in transformers 4: a linear gate, the choice made in the block, one module per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(8, 6, bias=False)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(6)])

    def forward(self, hidden: Any) -> tuple[Any, Any]:
        logits = self.gate(hidden)
        groups = logits.reshape(len(hidden), 3, 2).amax(dim=2).topk(2).indices  # only two of three groups
        allowed = torch.zeros(len(hidden), 3).scatter(1, groups, 1).repeat_interleave(2, dim=1)
        weights, chosen = logits.softmax(dim=1).mul(allowed).topk(2)
        out = torch.zeros_like(hidden)
        for expert, module in enumerate(self.experts):
            token, choice = torch.where(chosen == expert)
            out.index_add_(0, token, module(hidden[token]) * weights[token, choice, None])
        return out, logits


class OldModel(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, blocks: list[Any]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), *blocks])

    def forward(self, hidden: Any) -> Any:
        for layer in self.layers:
            hidden = first_of(layer(hidden))
        return hidden


def test_a_choice_that_a_block_makes_itself_is_overheard(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = OldModel([OldBlock(), OldBlock()])
    hidden = torch.randn(40, 8)
    with Recorder(model) as recorder, torch.no_grad():
        model(hidden)
        recorder.add(np.ones((4, 10)))
    recorder.save(tmp_path / "trace.npz")
    recorded = read_trace(tmp_path / "trace.npz").trace
    assert isinstance(recorded, TokenTrace)
    assert recorded.layer_ids_L.tolist() == [1, 2]
    experts: NDArray[Any] = recorded.source.whole("expert_ids")
    given = model.layers[0](hidden).detach()
    for row, block in enumerate(model.layers[1:]):
        for expert in range(6):
            assert np.array_equal((experts[:, row] == expert).any(axis=1), served(block, given, expert).numpy())
        given = block(given)[0].detach()


def test_the_model_is_left_as_it_was() -> None:
    model = built("mixtral")
    with Recorder(model):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pass_that_fails_does_not_spoil_the_next() -> None:
    model = OldModel([OldBlock()])
    with Recorder(model) as recorder, torch.no_grad():
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 9))
        model(torch.randn(4, 8))
        recorder.add(np.ones((1, 4)))
        assert recorder.num_tokens == 4
    assert torch.overrides._get_current_function_mode() is None


def test_wrong_use_is_told(tmp_path: Path) -> None:
    ids, mask = batch()
    model = built("mixtral")
    with pytest.raises(InputError, match="no router found in Linear"):
        Recorder(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="several places"):
        Recorder(torch.nn.ModuleDict({"one": OldModel([OldBlock()]), "two": OldModel([OldBlock()])}))
    with Recorder(model) as recorder, torch.no_grad():
        with pytest.raises(UsageError, match="nothing was recorded"):
            recorder.save(tmp_path / "trace.npz")
        model(input_ids=ids, attention_mask=mask)
        with pytest.raises(InputError, match="routed 27 tokens since the last add"):
            recorder.add(mask[:, :5])
    with Recorder(model) as recorder, torch.no_grad():
        for name in ("first", None):
            model(input_ids=ids, attention_mask=mask)
            if name:
                recorder.add(mask, domain=name)
            else:
                with pytest.raises(InputError, match="domain_id: given in some calls"):
                    recorder.add(mask)
    gc.collect()
    assert not list(tmp_path.iterdir())


class Silent(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A block whose choice cannot be heard."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(8, 2)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])

    def forward(self, hidden: Any) -> Any:
        first = self.gate(hidden).argmax(dim=1)[:, None] == 0
        return torch.where(first, self.experts[0](hidden), self.experts[1](hidden))


def test_a_router_that_cannot_be_heard_is_refused_by_name() -> None:
    with (
        Recorder(OldModel([Silent()])) as _,
        pytest.raises(PlannerError, match=r"layers.1.gate \(Linear\) neither returns expert numbers"),
    ):
        _.routers[0].block(torch.randn(3, 8))
