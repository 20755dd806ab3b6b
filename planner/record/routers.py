"""Finds the routers of a Hugging Face MoE model and listens to the choice that each of them makes.

The choice is never recomputed from logits: routers with a correction bias or group limits (DeepSeek-V3,
GLM-4.5 and their kin) choose other experts than the largest logits. Two ways of listening:

- the router returns expert numbers (all families of transformers 5, DeepSeek's routers and gpt-oss in 4):
  they are taken from its output;
- the router returns scores only (a plain linear layer in transformers 4, Llama-4, DBRX): the call of
  `torch.topk` that the router or its block makes is overheard, and its own result taken.

Legend: N tokens of one forward pass (padding included), E experts, K choices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from planner.errors import InputError, Problem

_ROUTER_NAMES: Final = ("gate", "router")
_EXPERT_NAMES: Final = ("experts", "input_linear")
"""`input_linear`: the experts of GraniteMoe and JetMoe in transformers 4."""
_TOP_K: Final = (torch.topk, torch.Tensor.topk)


@dataclass(frozen=True)
class Choice:
    """What one router chose in one forward pass."""

    experts_NK: torch.Tensor
    weights_NK: torch.Tensor
    """As handed to the experts where the router says so, else the scores by which they were chosen."""


class _Overheard(TorchFunctionMode):
    """Remembers the last `topk` among all experts that is called while it is active."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self._num_experts = num_experts
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _TOP_K:
            scores = args[0] if args else kwargs["input"]
            if scores.shape[-1] >= self._num_experts:  # not the choice of groups
                self.last = (result.values, result.indices)
        return result


@dataclass
class Router:
    """One router of a model: the hidden layer it serves, and what it has chosen since last asked."""

    layer: int
    name: str
    module: torch.nn.Module
    block: torch.nn.Module
    """The module that holds router and experts."""
    num_experts: int
    chosen: list[Choice] = field(default_factory=list)
    _output: Any = None
    _ear: _Overheard | None = None
    _speaks: bool = False
    """Its output holds expert numbers, so nothing need be overheard."""

    def attach(self) -> Iterator[Any]:
        """Register the hooks; yields their handles."""
        yield self.block.register_forward_pre_hook(self._enter)
        yield self.module.register_forward_hook(self._hear)
        yield self.block.register_forward_hook(self._leave, always_call=True)

    def _enter(self, _block: torch.nn.Module, _args: Any) -> None:
        self._output = None
        if not self._speaks:
            self._ear = _Overheard(self.num_experts)
            self._ear.__enter__()

    def _hear(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._output = output

    def _leave(self, _block: torch.nn.Module, _args: Any, _result: Any) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.__exit__(None, None, None)
        output, self._output = self._output, None
        if output is None:  # the forward pass failed before the router ran
            return
        parts = [part for part in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(part)]
        said = [part for part in parts if _are_numbers(part)]
        self._speaks = bool(said)
        if said:
            experts_NK, scores_NK = _rows(said[-1]), None
        elif ear is not None and ear.last is not None:
            scores_NK, experts_NK = (_rows(part) for part in ear.last)
        else:
            kind = type(self.module).__name__
            message = f"{self.name} ({kind}) neither returns expert numbers nor calls torch.topk"
            hint = "this router cannot be recorded yet; write trace.npz from your own hook instead"
            raise InputError(Problem(message, hint=hint))
        weights_NK = _weights(parts, experts_NK, alone=not isinstance(output, tuple))
        if weights_NK is None:
            weights_NK = torch.ones_like(experts_NK, dtype=torch.float32) if scores_NK is None else scores_NK
        self.chosen.append(Choice(experts_NK.detach(), weights_NK.detach()))


def _are_numbers(part: torch.Tensor) -> bool:
    """Whether a part of a router's output is a matrix of expert numbers."""
    return part.dim() >= 2 and not part.is_floating_point() and part.dtype != torch.bool


def _rows(part: torch.Tensor) -> torch.Tensor:
    return part.reshape(-1, part.shape[-1])


def _weights(parts: list[torch.Tensor], experts_NK: torch.Tensor, *, alone: bool) -> torch.Tensor | None:
    """The weights in a router's output: [N, K] as they stand, or a row over all experts to look them up in.

    A lone output is raw logits, and so is a row over all experts beside weights [N, K].
    """
    floats = [_rows(part) for part in parts if part.is_floating_point() and part.dim() >= 2]
    floats = [part for part in floats if len(part) == len(experts_NK)]
    for part in floats:
        if part.shape == experts_NK.shape:
            return part
    if alone or not floats:
        return None
    return floats[0].gather(1, experts_NK)


def find_routers(model: torch.nn.Module) -> list[Router]:
    """The routers of a model, in the order of its layers.

    Raises:
        InputError: there are none, or they belong to more than one decoder.
    """
    found, stems = [], set()
    for block_name, block in model.named_modules():
        children = dict(block.named_children())
        experts = next((children[name] for name in _EXPERT_NAMES if name in children), None)
        router = next((name for name in _ROUTER_NAMES if name in children), None)
        if experts is None or router is None:
            continue
        name = f"{block_name}.{router}" if block_name else router
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        stems.add(name[: number.start()] if number else name)
        found.append(
            Router(int(number[1]) if number else 0, name, children[router], block, _count(experts, children[router]))
        )
    kind = type(model).__name__
    if not found:
        hint = "recorded are modules named gate or router that stand beside experts: is this a mixture of experts?"
        raise InputError(Problem(f"no router found in {kind}", hint=hint))
    found.sort(key=lambda router: router.layer)
    layers = [router.layer for router in found]
    if len(stems) > 1 or len(set(layers)) < len(layers):
        names = ", ".join(sorted(stems))
        hint = "record one decoder at a time: pass that module to planner.record.Recorder"
        raise InputError(Problem(f"{kind} has routers in several places: {names}", hint=hint))
    return found


def _count(experts: torch.nn.Module, router: torch.nn.Module) -> int:
    """How many experts stand beside a router."""
    if isinstance(experts, torch.nn.ModuleList | torch.nn.ModuleDict):
        return len(experts)
    for module in (experts, *experts.children(), router):
        for name in ("num_experts", "moe_num_experts"):
            number = getattr(module, name, None)
            if isinstance(number, int):
                return number
    for parameter in experts.parameters():
        if parameter.dim() == 3:
            return int(parameter.shape[0])
    raise InputError(Problem(f"{type(experts).__name__}: the number of experts is not known"))
