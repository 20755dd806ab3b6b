"""A Hugging Face `config.json` as a `Model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from planner.errors import InputError, Place, Problem, ProblemLog
from planner.inputs.config_reader import ConfigReader
from planner.inputs.families import FAMILIES, read_layers
from planner.inputs.model import LIMIT_LAYERS, Model, repeated
from planner.inputs.precision import WeightName

_DTYPES: Final[dict[str, WeightName]] = {
    "bfloat16": "bf16",
    "float16": "bf16",  # the same two bytes
    "float32": "fp32",
}


def model_from_config(data: Any, file: str) -> Model:
    """Read a config.json.

    Args:
        data: the parsed JSON.
        file: its path, for messages and as fall-back name of the model.

    Raises:
        InputError: an unknown family, or keys missing or wrong, all at once.
    """
    if not isinstance(data, dict):
        raise InputError(Problem("a config.json is a JSON object", Place(file)))
    log = ProblemLog()
    config = ConfigReader(data, file, log)
    family_name = _family_name(data)
    family = FAMILIES.get(family_name)
    if family is None:
        raise InputError(_unknown_family(family_name, file))
    layers = config.integer("num_hidden_layers", "n_layer", "num_layers")
    if layers > LIMIT_LAYERS:
        log.add(
            f"{layers:,} layers", where=config.place("num_hidden_layers"), hint=f"at most {LIMIT_LAYERS:,} are read"
        )
    hidden, vocabulary = config.integer("hidden_size"), config.integer("vocab_size")
    tied = config.flag("tie_word_embeddings", default=family.tied_by_default)
    expert_weights, dense_weights = _weights(config)
    try:
        parts = read_layers(family, config, min(layers, LIMIT_LAYERS))
        log.raise_if_any()
        return Model(
            name=_name(data, file),
            family=family_name,
            hidden_size=hidden,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
            layers=repeated(parts),
            expert_weights=expert_weights,
            dense_weights=dense_weights,
            source=Path(file).name,  # not as typed: the same inputs give the same plan
        )
    except ValidationError as error:
        # A number that was already noted as wrong breaks the records built from it; do not repeat.
        if not log.problems:
            for details in error.errors():
                log.add(details["msg"].removeprefix("Value error, "), where=Place(file))
        raise InputError(log.problems) from None


def _family_name(data: dict[str, Any]) -> str:
    inner = data.get("text_config")
    if isinstance(inner, dict) and inner.get("model_type") in FAMILIES:
        return str(inner["model_type"])
    return str(data.get("model_type", ""))


def _unknown_family(name: str, file: str) -> Problem:
    known = ", ".join(sorted(FAMILIES))
    if not name:
        return Problem("model_type is missing", Place(file), f"known families: {known}")
    hint = f"known families: {known}\nfor another one describe the model in a model.yaml (schema: ep-plan/model/1)"
    return Problem(f"unknown model family {name!r}", Place(file, key="model_type"), hint)


def _name(data: dict[str, Any], file: str) -> str:
    given = data.get("_name_or_path")
    if isinstance(given, str) and given:
        return given.rstrip("/").rsplit("/", 1)[-1]
    path = Path(file)
    return path.parent.resolve().name if path.name == "config.json" else path.stem


def _weights(config: ConfigReader) -> tuple[WeightName, WeightName]:
    """Formats of expert and of dense weights, from `dtype` and `quantization_config`."""
    name, dtype = config.find("dtype", "torch_dtype")
    plain = _DTYPES.get(str(dtype), "bf16")
    if name and str(dtype) not in _DTYPES:
        config.log.add(f"{dtype!r} is not a known number format", where=config.place(name))
    quantisation = config.values.get("quantization_config")
    if quantisation is None:
        return plain, plain
    if not isinstance(quantisation, dict):
        config.log.add(f"{quantisation!r} is not a section", where=config.place("quantization_config"))
        return plain, plain
    method = str(quantisation.get("quant_method", ""))
    if method == "fp8":
        block = quantisation.get("weight_block_size")
        return ("fp8_block", "fp8_block") if block else ("fp8", "fp8")
    if method == "mxfp4":
        return "mxfp4", plain
    config.log.add(
        f"quantisation method {method!r} is not known",
        where=config.place("quantization_config.quant_method"),
        hint="known: fp8, mxfp4; or remove the section and give precision.weights in the deployment",
    )
    return plain, plain
