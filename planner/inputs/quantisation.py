"""Which formats a config.json says its weights are stored in.

A `quantization_config` names its method in one of several ways: a bare method (`fp8`, `mxfp4`), bits
and group size (GPTQ, AWQ), an algorithm (NVIDIA ModelOpt), or groups of modules with the numbers of
each (compressed-tensors, newer ModelOpt). Modules left in the plain format are listed; planning only
tells experts from everything else, and looks there for attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from planner.inputs.config_reader import ConfigReader
from planner.inputs.precision import WeightName

_DTYPES: Final[dict[str, WeightName]] = {
    "bfloat16": "bf16",
    "float16": "bf16",  # the same two bytes
    "float32": "fp32",
}
_ALGORITHMS: Final[dict[str, WeightName]] = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK": "fp8_block",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP8": "mxfp8",
    "W4A16_AWQ": "int4",
    "INT4_AWQ": "int4",
    "W8A16": "int8",
}
_METHODS: Final = ("fp8", "fbgemm_fp8", "mxfp4", "gptq", "awq", "auto-round", "compressed-tensors", "modelopt")
_UNQUANTISED: Final = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
_MIXERS: Final = ("attn", "attention", "mixer")
_HINT: Final = "give precision.weights (or .experts and .dense) in the deployment, and remove the section"


def weight_formats(config: ConfigReader) -> tuple[WeightName, WeightName]:
    """Formats of expert and of dense weights, from `dtype` and `quantization_config`."""
    name, dtype = config.find("dtype", "torch_dtype")
    plain = _DTYPES.get(str(dtype).removeprefix("torch."), "bf16")
    if name and str(dtype).removeprefix("torch.") not in _DTYPES:
        hint = f"known: {', '.join(_DTYPES)}"
        config.log.add(f"{dtype!r} is not a known number format", where=config.place(name), hint=hint)
    if config.values.get("quantization_config") is None:
        return plain, plain
    section = config.inside("quantization_config")
    experts, dense = _quantised(section, plain)
    if "fp4" in (config.values.get("expert_dtype"), section.values.get("expert_dtype")):
        # DeepSeek-V4: fp4 with a shared exponent per 32
        experts = experts if experts == "nvfp4" else "mxfp4"
    return experts, plain if _attention_is_plain(section) else dense


def _quantised(section: ConfigReader, plain: WeightName) -> tuple[WeightName, WeightName]:
    """Formats of experts and of the rest, modules left out not yet considered."""
    method = section.values.get("quant_method")
    if method is not None and not _is_known(str(method)):  # its groups may mean something else
        return _unknown_method(section, plain)
    layers = section.values.get("quantized_layers")
    if isinstance(layers, dict) and layers:
        return _by_layer(section, layers, plain)
    groups = section.values.get("config_groups")
    if isinstance(groups, dict) and groups:
        return _by_group(section, groups, plain)
    algorithm = section.values.get("quant_algo")
    if algorithm is not None:
        made = _algorithm(section, "quant_algo", algorithm, plain)
        return made, made
    return _by_method(section, plain)


def _by_method(section: ConfigReader, plain: WeightName) -> tuple[WeightName, WeightName]:
    method = str(section.values.get("quant_method", ""))
    if method in ("fp8", "fbgemm_fp8"):
        made: WeightName = "fp8_block" if section.values.get("weight_block_size") else "fp8"
        return made, made
    if method == "mxfp4":
        return "mxfp4", plain  # the kernels exist for experts only
    if method in ("gptq", "awq", "auto-round", "autoround"):
        bits = section.integer("bits", "w_bit", default=4)
        size = section.integer("group_size", "q_group_size", default=128, minimum=-1)
        made = _integer_format(section, bits, size)
        return made, made
    return _unknown_method(section, plain)


def _is_known(method: str) -> bool:
    return method in _METHODS or method == "autoround" or method.startswith("modelopt")


def _unknown_method(section: ConfigReader, plain: WeightName) -> tuple[WeightName, WeightName]:
    method = str(section.values.get("quant_method", ""))
    where, hint = section.place("quant_method"), f"known: {', '.join(_METHODS)}; or {_HINT}"
    told = f"quantisation method {method!r} is not known"
    if _is_known(method):
        told = f"quantisation method {method!r} names neither an algorithm nor groups"
    section.log.add(told, where=where, hint=hint)
    return plain, plain


def _algorithm(section: ConfigReader, key: str, name: Any, plain: WeightName) -> WeightName:
    made = _ALGORITHMS.get(str(name).upper())
    if made is None:
        hint = f"known: {', '.join(_ALGORITHMS)}; or {_HINT}"
        section.log.add(f"quantisation {name!r} is not known", where=section.place(key), hint=hint)
    return made or plain


def _integer_format(section: ConfigReader, bits: Any, group_size: Any) -> WeightName:
    if bits == 8:
        return "int8"
    if bits == 4 and group_size == 32:
        return "int4_group32"
    if bits == 4 and (group_size is None or group_size in (-1, 128)):
        return "int4"  # without groups the scales are fewer still
    message = f"{bits} bits in groups of {group_size}"
    section.log.add(message, where=section.place(), hint=f"known: 8 bits; 4 bits in groups of 32 or 128; or {_HINT}")
    return "int4"


def _by_layer(section: ConfigReader, layers: dict[str, Any], plain: WeightName) -> tuple[WeightName, WeightName]:
    """ModelOpt's mixed precision names every module that is quantised; a method may hold for the rest."""
    found: dict[bool, WeightName] = {}
    for module, details in layers.items():
        is_expert = "experts" in module and "shared" not in module
        if is_expert not in found and isinstance(details, dict):
            found[is_expert] = _algorithm(section, "quantized_layers", details.get("quant_algo"), plain)
    rest = plain
    if section.values.get("quant_method") == "fp8":
        rest = _by_method(section, plain)[1]
    return found.get(True, rest), found.get(False, rest)


def _by_group(section: ConfigReader, groups: dict[str, Any], plain: WeightName) -> tuple[WeightName, WeightName]:
    experts: WeightName | None = None
    dense: WeightName | None = None
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            continue
        made = _group_format(section, name, weights)
        targets = group.get("targets")
        listed = [str(item) for item in targets] if isinstance(targets, list) else []
        named = [item for item in listed if item.lower() != "linear"]
        routed = [item for item in named if "experts" in item and "shared" not in item]
        if not named or routed:
            experts = experts or made
        if not named or len(routed) < len(named):
            dense = dense or made
    if experts is None and dense is None:
        section.log.add("no group says how weights are stored", where=section.place("config_groups"), hint=_HINT)
    return experts or plain, dense or plain


def _group_format(section: ConfigReader, name: str, weights: dict[str, Any]) -> WeightName:
    bits, size = _number(weights.get("num_bits")), _number(weights.get("group_size"))
    if weights.get("type") == "float":
        known: dict[Any, WeightName] = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}
        if (bits, size) in known:
            return known[bits, size]
        if bits == 8:
            return "fp8_block" if weights.get("strategy") == "block" else "fp8"
        hint = f"known: 8 bits; 4 bits in groups of 16 (nvfp4) or 32 (mxfp4); or {_HINT}"
        where = section.place(f"config_groups.{name}.weights")
        section.log.add(f"{bits}-bit floats in groups of {size}", where=where, hint=hint)
        return "fp8"
    return _integer_format(section, bits, size)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _attention_is_plain(section: ConfigReader) -> bool:
    """Whether the modules left in the plain format are those of attention."""
    return any(_is_projection(entry.rstrip(".*$")) for entry in _left_out(section))


def _is_projection(module: str) -> bool:
    """A whole token mixer or one of its matrices; norms, biases and indexers do not count."""
    if module.endswith(_MIXERS):
        return True
    inside = any(name in module for name in _MIXERS)
    return inside and module.endswith("_proj") and "index" not in module


def _left_out(section: ConfigReader) -> Iterator[str]:
    for key in _UNQUANTISED:
        listed = section.values.get(key)
        if isinstance(listed, list):
            yield from (item.lower() for item in listed if isinstance(item, str))
