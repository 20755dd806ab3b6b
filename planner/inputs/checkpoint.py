"""A downloaded checkpoint: its config.json, and what its safetensors files say that they hold.

Only headers are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from planner.errors import InputError, Place, Problem
from planner.inputs import documents
from planner.inputs.model import Model
from planner.inputs.parameters import count_parameters
from planner.inputs.precision import stored_bytes
from planner.inputs.safetensors import read_header

INDEX_NAME: Final = "model.safetensors.index.json"
_QUANTISATION_NAME: Final = "hf_quant_config.json"  # of NVIDIA ModelOpt
_MOST_FILES: Final = 10_000
# Next-token modules and vision towers are in a checkpoint, not in the plan: 2 % in DeepSeek-V3.
_TOLERANCE: Final = 0.05


def read_config(path: Path) -> Any:
    """A config.json, completed by the quantisation that ModelOpt keeps in a file beside it."""
    data = documents.read_json(path, infinity=True)
    beside = path.parent / _QUANTISATION_NAME
    if path.name != "config.json" or not isinstance(data, dict) or not beside.is_file():
        return data
    inner = data.get("text_config")
    if data.get("quantization_config") or (isinstance(inner, dict) and inner.get("quantization_config")):
        return data
    section = documents.read_json(beside)
    found = section.get("quantization") if isinstance(section, dict) else None
    if not isinstance(found, dict):
        raise InputError(Problem("quantization is missing", Place(str(beside)), "expected a mapping under that key"))
    return {**data, "quantization_config": {"quant_method": "modelopt", **found}}


def checkpoint_files(folder: Path) -> list[Path]:
    """Every file of a checkpoint folder that may be read: the configs, the index, the weights."""
    names = ("config.json", _QUANTISATION_NAME, INDEX_NAME)
    return [*(folder / name for name in names), *sorted(folder.glob("*.safetensors"))]


def weight_warnings(folder: Path, model: Model) -> tuple[str, ...]:
    """Where weights lie beside the config: in what their size disagrees with it.

    Raises:
        InputError: an index or a header that is damaged.
    """
    found = checkpoint_bytes(folder)
    if found is None:
        return ()
    expected = expected_bytes(model)
    if abs(found - expected) <= _TOLERANCE * expected:
        return ()
    formats = f"experts in {model.expert_weights}, the rest in {model.dense_weights}"
    sizes = f"the weights take {found / 1e9:.1f} GB, but {model.name} should take {expected / 1e9:.1f} GB"
    return (f"{folder}: {sizes} by its config.json ({formats}); the plan follows the config.json",)


def expected_bytes(model: Model) -> int:
    """Bytes of all weights in the formats of the config; embedding, head, norms and routers unquantised."""
    count = count_parameters(model)
    plain = count.embedding + count.lm_head + count.norms + count.routers
    dense = stored_bytes(count.attention + count.dense + count.shared, model.dense_weights)
    unquantised = stored_bytes(plain, "fp32" if model.dense_weights == "fp32" else "bf16")
    return stored_bytes(count.experts, model.expert_weights) + dense + unquantised


def checkpoint_bytes(folder: Path) -> int | None:
    """Bytes of the tensors in a folder: of the files that its index names, else of all; None without any."""
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map, total = read_index(index)
        names = sorted(set(weight_map.values()))
        files = [folder / name for name in names]
        if total is not None and not all(file.is_file() for file in files):
            return total  # only the index was downloaded
    else:
        files = sorted(folder.glob("*.safetensors"))
    present = [file for file in files if file.is_file()]
    if len(present) < len(files):
        missing = [file.name for file in files if not file.is_file()]
        message = f"{missing[0]} is named here, but missing ({len(missing)} of {len(files)} files)"
        raise InputError(Problem(message, Place(str(index), key="weight_map"), "download them all, or none"))
    return sum(tensor_bytes(file) for file in present) if present else None


def read_index(path: Path) -> tuple[dict[str, str], int | None]:
    """Tensor -> file of an index, and the total size if it states one.

    Raises:
        InputError: it is damaged, or names files outside its folder.
    """
    data = documents.read_json(path)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(Problem("weight_map is missing", Place(str(path)), "expected a mapping of tensors to files"))
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        hint = "expected names of .safetensors files in the same folder"
        raise InputError(Problem(f"{outside[0]!r} is not allowed", Place(str(path), key="weight_map"), hint))
    if len(names) > _MOST_FILES:
        raise InputError(Problem(f"{len(names)} files: at most {_MOST_FILES} are read", Place(str(path))))
    metadata = data.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return {str(tensor): str(name) for tensor, name in weight_map.items()}, int(total) if isinstance(
        total, int | float
    ) and total > 0 else None


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in one safetensors file, by its header alone.

    Raises:
        InputError: a header that is too long, not JSON, or claims bytes that the file does not have.
    """
    header = read_header(path)
    return sum(end - begin for begin, end in map(header.span, header.tensors))
