"""The checkpoint that is read: which tensor lies in which file, checked before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.errors import InputError, Place, Problem, ProblemLog, UsageError
from planner.export.checkpoint.families import FAMILIES
from planner.export.layout import Layout
from planner.inputs.checkpoint import INDEX_NAME, read_config, read_index
from planner.inputs.huggingface import model_from_config
from planner.inputs.safetensors import Header, read_header

_OTHER_WEIGHTS: Final = frozenset({".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5", ".ckpt", ".safetensors"})
_EXPERT_MODULE: Final = re.compile(r"experts\.\d")


@dataclass(frozen=True)
class Source:
    """A checkpoint folder: headers of its weights, files to copy as they are, and what is left out."""

    folder: Path
    headers: tuple[Header, ...]
    index: Path | None
    copied: tuple[Path, ...]
    left_out: tuple[str, ...]


def read_source(folder: Path, layout: Layout) -> Source:
    """Read all headers of a checkpoint and hold them against its index, its config and the plan.

    Raises:
        UsageError: no such folder, or a family whose tensors are not known.
        InputError: with everything that does not fit.
    """
    if not folder.is_dir():
        raise UsageError(f"--weights {folder}: no such folder")
    family = layout.model.family
    if family not in FAMILIES:
        hint = f"known: {', '.join(FAMILIES)}; a wrong guess would give a model that answers nonsense"
        raise UsageError(f"how {family} names its experts in a checkpoint is not known", hint=hint)
    _check_config(folder, layout)
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map, _ = read_index(index)
        headers = _indexed(folder, weight_map)
    else:
        headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
        _check_once(headers)
    if not headers:
        raise UsageError(f"--weights {folder}: no .safetensors file is there")
    for header in headers:
        check_spans(header)
    names = {header.path.name for header in headers} | {INDEX_NAME}
    copied, left_out = _others(folder, names)
    return Source(folder, tuple(headers), index if index.is_file() else None, copied, left_out)


def _check_config(folder: Path, layout: Layout) -> None:
    """The model of the folder is the plan's."""
    path = folder / "config.json"
    config = read_config(path)
    model, planned = model_from_config(config, str(path)), layout.model
    log = ProblemLog()
    for what, found, expected in (
        ("model_type", model.family, planned.family),
        ("experts", model.moe.num_experts, planned.moe.num_experts),
        ("experts per token", model.moe.top_k, planned.moe.top_k),
        ("routing groups", model.moe.num_groups, planned.moe.num_groups),
        ("hidden size", model.hidden_size, planned.hidden_size),
        ("MoE layers", model.moe_layer_ids, planned.moe_layer_ids),
    ):
        if found != expected:
            message = f"{what}: {_short(found)}, but the plan was made for {_short(expected)}"
            log.add(message, where=Place(str(path)), hint="give the weights of the planned model")
    section = config.get("quantization_config") if isinstance(config, dict) else None
    named = _expert_modules(section)
    if named:
        message = f"quantization_config names single experts ({named}), which would be others after permuting"
        log.add(message, where=Place(str(path), key="quantization_config"), hint="quantise the permuted model instead")
    log.raise_if_any()


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return f"{len(value)} of them, {value[0]}..{value[-1]}"


def _expert_modules(section: Any) -> str:
    """The first name of a single expert anywhere in a section, else nothing."""
    if isinstance(section, str):
        return section if _EXPERT_MODULE.search(section) else ""
    parts: list[Any] = []
    if isinstance(section, dict):
        parts = [*section.keys(), *section.values()]
    elif isinstance(section, list):
        parts = section
    return next(filter(None, map(_expert_modules, parts)), "")


def _header(path: Path) -> Header:
    if not path.is_file():
        raise InputError(Problem("no such file", Place(str(path)), "download the whole checkpoint"))
    return read_header(path)


def _indexed(folder: Path, weight_map: dict[str, str]) -> list[Header]:
    """The headers of all files of an index, if each holds exactly the tensors that the index says."""
    log = ProblemLog()
    headers = []
    for name in sorted(set(weight_map.values())):
        try:
            header = _header(folder / name)
        except InputError as error:
            log.extend(error.problems)
            continue
        expected = {tensor for tensor, file in weight_map.items() if file == name}
        for tensor in sorted(expected ^ header.tensors.keys())[:5]:
            where = "the file lacks it" if tensor in expected else "the index does not name it there"
            log.add(f"{tensor}: {where}", where=Place(str(folder / name)), hint=f"compare with {INDEX_NAME}")
        headers.append(header)
    log.raise_if_any()
    return headers


def _check_once(headers: list[Header]) -> None:
    seen: dict[str, Path] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor in seen:
                message = f"{tensor} is in {seen[tensor].name}, too, and there is no {INDEX_NAME} to tell which counts"
                raise InputError(Problem(message, Place(str(header.path)), "keep the files of one checkpoint"))
            seen[tensor] = header.path


def check_spans(header: Header) -> None:
    """Refuse a file whose tensors overlap or leave holes: the format forbids both, and neither can be moved."""
    end = 0
    for name in sorted(header.tensors, key=header.span):
        first, last = header.span(name)
        if first != end:
            message = f"its numbers begin at byte {first}, those before it end at {end}"
            hint = "tensors of a safetensors file follow each other without holes; download it again"
            raise InputError(Problem(message, Place(str(header.path), key=name), hint))
        end = last
    if end != header.room:
        message = f"{header.room - end} bytes after the last tensor"
        raise InputError(Problem(message, Place(str(header.path)), "download it again"))


def _others(folder: Path, weights: set[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Files that belong to the checkpoint and stay as they are; and what is left out, because it holds weights."""
    copied, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.name in weights:
            continue
        other = path.suffix in _OTHER_WEIGHTS or path.name.endswith(".index.json")
        if path.is_dir() or other or path.name.startswith(".") or not path.is_file():
            left_out.append(path.name + ("/" if path.is_dir() else ""))
        else:
            copied.append(path)
    return tuple(copied), tuple(left_out)
