"""What of a plan's inputs is not what it was: which part, which values, by which hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from planner.inputs.deployment import DeploymentFile
from planner.inputs.units import format_bytes, format_compute, format_rate, format_seconds
from planner.plan.plan import PlanInputs

_HASH_DIGITS: Final = 12
_WORDS: Final = ("source", "note")
"""Keys that only explain."""
_OF_GPU: Final = re.compile(r"\.gpu(\.|$)|\.gpus\[\d+\]\.")
_NUMBER: Final = re.compile(r"(-?[\d.]+(?:e[+-]?\d+)?) (B/s|B|FLOP/s|s)")
_FORMATS: Final = {"B/s": format_rate, "B": format_bytes, "FLOP/s": format_compute, "s": format_seconds}


@dataclass(frozen=True)
class Cause:
    """A part of the inputs that changed."""

    part: str
    """In words, with the file or profile it comes from."""
    before: str
    """Hash of the part as the golden plan holds it."""
    after: str
    """Hash of the part as it is now."""
    values: tuple[str, ...]
    """Every value that changed."""
    only_words: bool
    """Whether only explanations changed."""

    def __str__(self) -> str:
        return f"{self.part} changed (golden {self.before}, now {self.after})"


def input_changes(golden: PlanInputs, now: PlanInputs, file: DeploymentFile) -> tuple[Cause, ...]:
    """The parts of the inputs that differ.

    Args:
        golden: what the golden plan was made from.
        now: the same, resolved today.
        file: the deployment, which says by which names its parts go.
    """
    before, after = (dict(_leaves(inputs.model_dump(mode="json"), "")) for inputs in (golden, now))
    differing = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    found = []
    for part in dict.fromkeys(_part(key) for key in differing):
        mine = [key for key in differing if _part(key) == part]
        values = tuple(f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}" for key in mine)
        old, new = (_hash(part, leaves) for leaves in (before, after))
        only_words = all(key.rpartition(".")[2] in _WORDS for key in mine)
        found.append(Cause(_name(part, file, now), old, new, values, only_words))
    return tuple(found)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{index}]")
    else:
        yield key, value


def _part(key: str) -> str:
    """The part of the inputs that a value belongs to."""
    first, *rest = re.split(r"[.\[]", key)
    if first == "topology":
        return "gpu" if _OF_GPU.search(key) else "topology"
    if first == "cost":
        known = ("kernel", "collectives", "small_collectives", "efficiency", "engine_memory")
        return rest[0] if rest[0] in known else "deployment"
    if first in ("engine", "engine_version", "rules"):
        return "engine"
    return {"name": "model", "model": "model", "traces": "traces", "windows": "windows"}.get(
        first, "windows" if first == "traced_layer_ids" else "deployment"
    )


def _name(part: str, file: DeploymentFile, now: PlanInputs) -> str:
    kernel = now.cost.communication.kernel
    return {
        "model": f"the model ({file.model})",
        "topology": f"the topology ({file.topology})",
        "gpu": f"the GPU ({', '.join(dict.fromkeys(_gpu_names(now)))})",
        "kernel": f"the communication profile {kernel}, or its calibration",
        "collectives": "the profile of collectives, or its calibration",
        "small_collectives": "the profile of small collectives, or its calibration",
        "efficiency": "the shipped kernel curves (profiles/efficiency.yaml)",
        "engine_memory": "the engine's memory (its profile, or memory_share)",
        "engine": f"the engine profile ({file.engine or 'none'})",
        "traces": f"the trace ({', '.join(file.traces) or 'none'})",
        "windows": "the windows cut from the traces",
        "deployment": "the deployment",
    }[part]


def _gpu_names(inputs: PlanInputs) -> list[str]:
    return [gpu if isinstance(gpu, str) else gpu.name for gpu in inputs.topology.gpu_kinds()]


def _hash(part: str, leaves: dict[str, Any]) -> str:
    mine = {key: value for key, value in leaves.items() if _part(key) == part}
    if part == "traces" and len(mine) == 2:  # of one trace its own hash is shown, as sha256sum prints it
        return next(str(value)[:_HASH_DIGITS] for key, value in mine.items() if key.endswith("sha256"))
    if not mine:
        return "none"
    text = json.dumps(mine, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def _shown(value: Any) -> str:
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value)):
        return _FORMATS[found[2]](float(found[1]), 4)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
