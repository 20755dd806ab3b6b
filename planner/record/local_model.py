"""Loads a model folder without the network and runs texts through it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from planner.errors import InputError, MissingEnvironmentError, Place, Problem, UsageError
from planner.record.recorder import Recorder
from planner.record.routers import find_routers
from planner.record.texts import Passage

try:
    import transformers
except ImportError as error:  # told as what is missing, not as a bug
    hint = "pip install 'ep-plan[record]'"
    raise MissingEnvironmentError(f"recording needs transformers ({error})", hint=hint) from None


@dataclass(frozen=True)
class LocalModel:
    """A model without its language-model head, in memory, and its tokenizer."""

    model: Any
    tokenizer: Any
    device: str


def load(folder: Path, *, device: str | None = None, trust_remote_code: bool = False) -> LocalModel:
    """Load a model folder; nothing is fetched.

    Args:
        folder: config.json, weights and tokenizer as transformers saves them.
        device: "cpu", "cuda", "cuda:1", ...; "auto" spreads over all GPUs (needs accelerate); default a GPU if any.
        trust_remote_code: run Python files of the folder, which some models bring.

    Raises:
        UsageError: no such folder, or a device of no known name.
        InputError: the folder cannot be loaded, lacks weights, or holds no mixture of experts.
        MissingEnvironmentError: a device or a package is missing, or the model does not fit into memory.
    """
    if not folder.is_dir():
        hint = "give the folder of a downloaded model; nothing is fetched from a hub"
        raise UsageError(f"{folder}: no such folder", hint=hint)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(chosen)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    needed = "config.json and weights of a model that this transformers knows are needed"
    model, loading = _loaded(folder, "model", needed, lambda: _model(folder, chosen, options))
    _check_weights(folder, loading)
    _check_routers(folder, model)
    needed = "the model's tokenizer is needed in its folder: tokenizer.json, or what else it is saved as"
    read = transformers.AutoTokenizer.from_pretrained
    tokenizer = _loaded(folder, "tokenizer", needed, lambda: read(folder, **options))
    return LocalModel(model.eval(), tokenizer, str(model.device))


def _model(folder: Path, device: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    placed = {"device_map": "auto"} if device == "auto" else {}
    model, loading = transformers.AutoModel.from_pretrained(
        folder, torch_dtype="auto", output_loading_info=True, **placed, **options
    )
    return (model if placed else model.to(device)), loading


def _loaded(folder: Path, what: str, needed: str, load_it: Callable[[], Any]) -> Any:
    """What transformers makes of a folder; every way in which it gives up is told, with what is needed."""
    try:
        return load_it()
    except torch.cuda.OutOfMemoryError as error:
        raise _no_room(error) from None
    except ImportError as error:  # what remote code or a quantised checkpoint needs
        raise MissingEnvironmentError(" ".join(str(error).split()), hint="install what is named") from None
    except Exception as error:  # noqa: BLE001 - a broken folder shows itself in any of them, from deep in a library
        message = " ".join(str(error).split()) or type(error).__name__
        raise InputError(Problem(f"the {what} cannot be loaded: {message}", Place(str(folder)), needed)) from None


def _check_weights(folder: Path, loading: dict[str, Any]) -> None:
    """Weights that are not there would be random, and their routing with them."""
    missing = sorted(loading["missing_keys"])
    if missing:
        count = f" ({len(missing)} in all)" if len(missing) > 1 else ""
        hint = "they would be made up at random: download the folder again, or use the transformers that saved it"
        raise InputError(Problem(f"no weights for {missing[0]}{count}", Place(str(folder)), hint))


def _check_routers(folder: Path, model: Any) -> None:
    try:
        find_routers(model)
    except InputError as error:
        raise InputError([replace(problem, where=Place(str(folder))) for problem in error.problems]) from None


def _check_device(device: str) -> None:
    if device == "auto":
        if importlib.util.find_spec("accelerate") is None:
            raise MissingEnvironmentError("--device auto needs accelerate", hint="pip install accelerate")
        return
    try:
        torch.device(device)
    except RuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        raise UsageError(f"device {device}: {message}", hint="cpu, cuda, cuda:0, ... or auto") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = str(error).strip().partition("\n")[0]
        raise MissingEnvironmentError(
            f"device {device}: {message}", hint="this machine has none: --device cpu"
        ) from None


def _no_room(error: Exception) -> MissingEnvironmentError:
    message = str(error).partition("\n")[0]
    return MissingEnvironmentError(message, hint="a smaller --batch or --length, --device auto or cpu")


def record_passages(
    loaded: LocalModel, passages: Sequence[Passage], *, batch: int, advance: Callable[[], None]
) -> Recorder:
    """Run sequences through the model in batches, padded on the right, and keep what its routers choose.

    Args:
        loaded: the model.
        passages: the sequences, in order.
        batch: sequences of one forward pass.
        advance: called after each batch.

    Raises:
        InputError: the tokenizer knows tokens that the model does not.
        MissingEnvironmentError: a batch does not fit into the device's memory.
    """
    _check_vocabulary(loaded, passages)
    recorder = Recorder(loaded.model)
    padding = next((i for i in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id) if i is not None), 0)
    with recorder, torch.inference_mode():
        for start in range(0, len(passages), batch):
            part = passages[start : start + batch]
            width = max(len(passage.tokens) for passage in part)
            ids = torch.full((len(part), width), padding, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, passage in enumerate(part):
                ids[row, : len(passage.tokens)] = torch.tensor(passage.tokens)
                mask[row, : len(passage.tokens)] = 1
            try:
                loaded.model(input_ids=ids.to(loaded.device), attention_mask=mask.to(loaded.device), use_cache=False)
            except torch.cuda.OutOfMemoryError as error:
                raise _no_room(error) from None
            recorder.add(mask, domain=[passage.domain for passage in part])
            advance()
    return recorder


def _check_vocabulary(loaded: LocalModel, passages: Sequence[Passage]) -> None:
    known = int(loaded.model.get_input_embeddings().weight.shape[0])
    largest = max((max(passage.tokens) for passage in passages), default=0)
    if largest >= known:
        message = f"the tokenizer gives token {largest}, but the model knows {known:,} tokens"
        raise InputError(Problem(message, hint="a tokenizer of another model?"))
