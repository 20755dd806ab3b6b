"""Writing a map and reading it again: no file takes its name before it says what the plan says."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from planner.errors import InputError, Place, Problem, UsageError
from planner.export.fits import check_fits, check_version
from planner.export.layout import Layout
from planner.export.maps import FileMap, placement_of_map
from planner.export.table import MAPS, Format
from planner.files import why_no_file, write_whole

_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True)
class Written:
    """What was written, for which engine version, and how it is loaded."""

    path: Path | None
    """None: a dry run."""
    format: str
    version: str
    how_to_load: str
    notes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """What else there is to say, as plain data."""


def module_of(kind: Format) -> Any:
    """The module that writes and reads a format."""
    return importlib.import_module(f"planner.export.{kind.module}")


def map_bytes(layout: Layout, name: str) -> bytes:
    """A map in a format, not yet written anywhere."""
    module = module_of(MAPS[name])
    write = module.write_parquet if name == "parquet" else module.write
    made: bytes = write(layout)
    return made


def write_map(layout: Layout, name: str, plan_file: Path, output: Path, version: str | None = None) -> Written:
    """Write a map, read it again and compare it with the plan; only then it takes its name.

    Args:
        layout: the plan.
        name: a format of `MAPS`.
        plan_file: where the plan stands, for messages.
        output: the file.
        version: of the engine; default: the one whose reader is known.

    Raises:
        UsageError: an unknown engine version.
        InputError: the format cannot say what the plan needs.
        MissingEnvironmentError: the file cannot be written.
    """
    kind = MAPS[name]
    chosen = check_version(name, kind, version)
    check_fits(layout, name, kind, str(plan_file))
    if name == "vllm-ascend" and output.suffix != ".json":
        raise UsageError(f"{output}: vllm-ascend refuses a map whose name does not end in .json", hint="rename it")
    write_whole(output, map_bytes(layout, name), lambda raw: verify(layout, name, raw, str(output)))
    load = module_of(kind).how_to_load(layout, str(output))
    return Written(output, name, chosen, load, tuple(_notes(layout, name, kind)))


def verify(layout: Layout, name: str, raw: bytes, file: str) -> None:
    """Read a map again and compare it with the plan, expert by expert.

    Raises:
        AssertionError: they differ, which is a bug.
    """
    found = read_map(raw, name, file)
    again = placement_of_map(found, layout.model, layout.split.ep)
    expected = layout.placement.expert_LP
    if name == "megatron":  # says where ranks are; the order of experts is always linear
        expected = again.expert_LP
    agrees = {
        "layers": again.layer_ids == layout.placement.layer_ids,
        "experts": np.array_equal(again.expert_LP, expected) and found.num_experts in (None, layout.num_experts),
        "GPUs": all(layout.gpus_of_ranks()[stage] == gpus for stage, gpus in found.gpus.items()),
    }
    wrong = [what for what, is_same in agrees.items() if not is_same]
    if wrong:  # not an assert: it must hold under python -O, too
        raise AssertionError(f"{name}: read back with other {' and '.join(wrong)}")


def read_map(raw: bytes, name: str, file: str) -> FileMap:
    """A map from bytes; raises `InputError` if the engine would not take it."""
    found: FileMap = module_of(MAPS[name]).read(raw, file)
    return found


def read_map_file(path: Path, name: str) -> FileMap:
    """Read anybody's map; raises `UsageError` if it is not there, `InputError` if the engine would not take it."""
    if not path.is_file():
        raise UsageError(f"{path}: {why_no_file(path)}")
    if path.stat().st_size > _LIMIT_BYTES:
        raise InputError(Problem(f"larger than {_LIMIT_BYTES >> 30} GiB: this is no map of experts", Place(str(path))))
    return read_map(path.read_bytes(), name, str(path))


def _notes(layout: Layout, name: str, kind: Format) -> list[str]:
    """What to know before the file is used."""
    notes = [kind.needs] if kind.needs else []
    if layout.redundant_experts and name == "sglang":
        if layout.copy_rule == "even":
            notes.append(
                "with an all-to-all backend SGLang serves a token by a copy on its own GPU, else on its own node; the "
                "plan takes copies to share evenly: communication: {copies: nearest} plans for that"
            )
        notes.append("without an all-to-all backend use a version with sgl-project/sglang#32962")
    if name == "tensorrt-llm":
        notes.append("some versions make the balancer for DeepseekV3, Mixtral, Llama4, Qwen2Moe and Qwen3Moe only")
    if layout.split.pp > 1 and name in ("sglang", "tensorrt-llm"):
        notes.append("layers are cut into stages as the plan says only if the launch says so: see --to launch-" + name)
    return notes
