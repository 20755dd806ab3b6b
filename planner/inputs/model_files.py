"""The model that a deployment or the command line names: a shipped profile, a model.yaml or a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from planner.errors import InputError, UsageError
from planner.inputs import documents, profiles
from planner.inputs.checkpoint import INDEX_NAME, checkpoint_files, read_config, weight_warnings
from planner.inputs.documents import Frozen
from planner.inputs.huggingface import model_from_config
from planner.inputs.model import Model
from planner.inputs.named_files import MODEL_OPTION, Named, existing_file
from planner.inputs.strict_yaml import read_yaml


def model_of(named: Named) -> tuple[Model, tuple[str, ...], tuple[Path, ...]]:
    """The model, in what the weights beside its config.json disagree with it, and the files read."""
    if named.is_profile:
        inline = "a path to a config.json, or a model.yaml (schema: ep-plan/model/1)"
        return read_model(profiles.path_of("models", named.text, named.where, inline)), (), ()
    path = existing_file(named)
    model = read_model(path)
    if path.name not in ("config.json", INDEX_NAME):
        return model, (), (path,)
    return model, weight_warnings(path.parent, model), tuple(checkpoint_files(path.parent))


class PublishedSize(Frozen):
    """How large its authors say a model is, in 1e9 parameters: what the count is compared with."""

    total_billion: Annotated[float, Field(gt=0)]
    active_billion: Annotated[float, Field(gt=0)]
    """Per token; some authors count embedding and LM head, others do not."""
    other_billion: Annotated[float, Field(ge=0)] = 0.0
    """Part of the total that is not in the language model: a vision tower."""
    source: str


class ConfigFile(Frozen):
    """A shipped model: the values of its public config.json that matter here, and their source."""

    source: str
    """Address of the public config.json."""
    published: PublishedSize | None = None
    config: dict[str, Any]
    """Its keys, as they stand there."""
    note: str = ""
    """Anything a reader should know."""


def model_named(text: str) -> Model:
    """The model that `--model` names: a shipped profile, a file, or a folder with a config.json.

    Raises:
        UsageError: there is none.
        InputError: its file is broken.
    """
    try:
        return model_of(Named(text, Path(), MODEL_OPTION))[0]
    except InputError as error:
        if any(problem.where == MODEL_OPTION for problem in error.problems):
            raise UsageError.of(error.problems) from None
        raise


def read_model(path: Path) -> Model:
    """Read a model.yaml, a shipped model, or a Hugging Face config.json (or the one beside an index of weights)."""
    if path.suffix not in (".yaml", ".yml"):
        config = path.with_name("config.json") if path.name == INDEX_NAME else path
        return model_from_config(read_config(config), str(config))
    document = read_yaml(path, keep_duplicates=True)
    if isinstance(document.data, dict) and document.data.get("schema") == "ep-plan/config/1":
        shipped = documents.validate(document, ConfigFile, "config")
        model = model_from_config(shipped.config, str(path))
        return model.model_copy(update={"source": shipped.source})
    return documents.validate(document, Model, "model")
