"""A Hugging Face `config.json` as a `Model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.errors import InputError, Place, Problem, ProblemLog
from planner.inputs.config_reader import ConfigReader
from planner.inputs.families import FAMILIES, LAYER_COUNTS, Family, read_layers
from planner.inputs.model import LIMIT_LAYERS, Model, repeated
from planner.inputs.quantisation import weight_formats


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
    try:
        return _model(config, family, family_name, _name(data, file))
    except ValidationError as error:
        # A number that was already noted as wrong breaks the records built from it; do not repeat.
        if not log.problems:
            for details in error.errors():
                log.add(details["msg"].removeprefix("Value error, "), where=Place(file))
        raise InputError(log.problems) from None


def _model(config: ConfigReader, family: Family, family_name: str, name: str) -> Model:
    log = config.log
    layers = family.layers(config)
    if layers > LIMIT_LAYERS:
        where = config.place(config.find(*LAYER_COUNTS)[0])
        log.add(f"{layers:,} layers", where=where, hint=f"at most {LIMIT_LAYERS:,} are read")
    # Records are built last: a number that breaks one must not hide the faults of the other keys.
    hidden_size, vocab_size = config.integer("hidden_size", "d_model"), config.integer("vocab_size")
    tied = config.flag("tie_word_embeddings", "tie_embedding", default=family.tied_by_default)
    expert_weights, dense_weights = weight_formats(config)
    layer_extra, extra_parameters = family.layer_extra(config), family.model_extra(config)
    parts = read_layers(family, config, min(layers, LIMIT_LAYERS))
    log.raise_if_any()
    runs = repeated(parts, norms=family.norms, extra_parameters=layer_extra)
    return Model(
        name=name,
        family=family_name,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        layers=runs,
        extra_parameters=extra_parameters,
        expert_weights=expert_weights,
        dense_weights=dense_weights,
        source=Path(config.file).name,  # not as typed: the same inputs give the same plan
    )


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
