"""Opens a recording; which format it has is told by content, never by its name alone."""

from __future__ import annotations

import importlib
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from planner.errors import InputError, Place, Problem, UsageError
from planner.trace.importers import omni_infer
from planner.trace.importers.found import Found, Given
from planner.trace.importers.npy_file import MAGIC, open_npy
from planner.trace.importers.table import FORMATS
from planner.trace.importers.torch_file import TorchFile

_HEAD_BYTES: Final = 4 << 20
"""Of a file of text in which keys are looked for: a response may begin with all that the model wrote."""
_BASE64_NPY: Final = b"k05VTVBZ"  # of the six bytes that open a .npy
_FEW: Final = 32
"""More numbers than this along the last axis are experts, not choices."""


def opened(sources: Sequence[Path], name: str | None, given: Given) -> tuple[str, Found]:
    """Open files of one recording, in the format named or found.

    Raises:
        UsageError: a file is not there, or an option is missing.
        InputError: of no known format, of different ones, or broken.
    """
    if len({path.resolve() for path in sources}) < len(sources):
        twice = next(
            path for index, path in enumerate(sources) if path.resolve() in [p.resolve() for p in sources[:index]]
        )
        raise UsageError(f"{twice} is given twice", hint="its tokens would count twice")
    for path in sources:
        if not path.exists():
            raise UsageError(f"{path}: no such file")
        if not path.is_file() and not path.is_dir():
            raise UsageError(f"{path} is a device or a pipe, a file is needed")
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path}: permission denied")
    name = name or _detected(sources, given)
    if given.physical_map is not None and not FORMATS[name].slots:
        raise UsageError(f"--physical-map means nothing for {name}: its ids are logical, or its files hold the map")
    module = importlib.import_module(f"planner.trace.importers.{FORMATS[name].module}")
    found: Found = module.read(sources, given)
    return name, found


def _detected(sources: Sequence[Path], given: Given) -> str:
    names = {path: _of_folder(path) if path.is_dir() else _of_file(path, given) for path in sources}
    if len(set(names.values())) > 1:
        found = ", ".join(f"{path.name} is {name}" for path, name in list(names.items())[:4])
        raise InputError(Problem(f"files of different formats: {found}", Place(str(sources[0])), "import them apart"))
    return names[sources[0]]


def _of_folder(folder: Path) -> str:
    names = [path.name for path in folder.iterdir()]
    if "meta_info.json" in names or any(re.fullmatch(r"rank\d+\.safetensors", name) for name in names):
        return "tensorrt-llm"
    if any(name.startswith("router_trace_rank") for name in names):
        return "megatron"
    if any(path.name.startswith("activation_counts_recordstep_") for path in folder.glob("**/*.txt")):
        return "omni-infer"
    if names and all(name.endswith(".pt") for name in names):
        return "sglang"
    if names and all(name.endswith((".npz", ".npy")) for name in names):
        return "vllm"
    hint = "give its files, or name the format with --from"
    raise InputError(Problem("a folder of no known format", Place(str(folder)), hint))


def _of_file(path: Path, given: Given) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(MAGIC):
        return _of_array(path, given)
    if head.startswith(b"PK"):
        return _of_zip(path)
    if head.startswith(b"\x80"):
        TorchFile(path)  # refuses it, with the reason
    if head.startswith(_BASE64_NPY):
        return "vllm"
    if omni_infer.NAME.fullmatch(path.name) or omni_infer.MARK.encode() in head:
        return "omni-infer"
    name = _of_json(head) if head.lstrip()[:1] in (b"{", b"[") else None
    if name is None and re.match(rb"[\w.\- ]*,[\w.\-, ]+\r?\n", head):
        name = "matrix"
    if name is None:
        known = ", ".join(FORMATS)
        hint = f"known formats: {known}; name one with --from to see what is wrong with the file"
        raise InputError(Problem("of no known format" if head else "empty", Place(str(path)), hint))
    return name


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        hint = "cut off while it was copied? copy it again"
        raise InputError(Problem(f"not a readable zip ({error})", Place(str(path)), hint)) from None
    if "routed_experts.npy" in members:
        return "vllm"
    if any(name.endswith("/data.pkl") for name in members):
        return "sglang" if isinstance(TorchFile(path).content, dict) else "matrix"
    return "native"


def _of_array(path: Path, given: Given) -> str:
    array = open_npy(path)
    if len(array.shape) != 3:
        return "matrix" if len(array.shape) == 2 else "vllm-ascend" if len(array.shape) == 4 else "vllm"
    if given.physical_map is not None:
        return "vllm-ascend"
    last = array.shape[2]
    experts, choices = given.experts(), given.choices()
    if last in (experts, choices) and experts != choices:
        return "matrix" if last == experts else "vllm"
    if last > _FEW:
        return "matrix"
    if array.dtype in ("u1", "u2"):
        return "vllm"
    message = f"{array.shape} of {array.dtype}: routes [tokens, layers, top_k], or counts [windows, layers, experts]?"
    raise InputError(Problem(message, Place(str(path)), "say which with --from vllm or --from matrix, or give --model"))


def _of_json(head: bytes) -> str | None:
    keys = set(re.findall(rb'"(\w+)"\s*:', head))
    for key, name in (
        (b"top_indices", "megatron"),
        (b"record_type", "vllm-load-stats"),
        (b"meta_info", "sglang-routes"),
        (b"routed_experts", "vllm"),
        (b"topk_ids", "token-lines"),
        (b"topk_experts", "token-lines"),
        (b"load_history", "matrix"),
        (b"logical_count", "matrix"),
        (b"counts", "matrix"),
        (b"logical_expert_load", "matrix"),
        (b"choices", "vllm"),
    ):
        if key in keys:
            return name
    return "matrix" if re.match(rb"\s*\[\s*\[", head) else None
