"""Loads a model folder without the network and runs texts through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from planner.errors import InputError, MissingEnvironmentError, Place, Problem, UsageError
from planner.record.recorder import Recorder
from planner.record.texts import Passage

try:
    import transformers
except ImportError as error:  # told as what is missing, not as a bug
    hint = "pip install 'ep-plan[record]'"
    raise MissingEnvironmentError(f"recording needs transformers ({error})", hint=hint) from None

_REFUSED: Final = (OSError, ValueError, KeyError, RuntimeError)
"""What transformers raises for folders that it cannot load."""


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
        UsageError: no such folder, or no such device.
        InputError: the folder cannot be loaded.
        MissingEnvironmentError: a package is missing, or the model does not fit into memory.
    """
    if not folder.is_dir():
        hint = "give the folder of a downloaded model; nothing is fetched from a hub"
        raise UsageError(f"{folder}: no such folder", hint=hint)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen != "auto":
        _check_device(chosen)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        placed = {"device_map": "auto"} if chosen == "auto" else {}
        model = transformers.AutoModel.from_pretrained(folder, torch_dtype="auto", **placed, **options)
        if chosen != "auto":
            model = model.to(chosen)
    except torch.cuda.OutOfMemoryError as error:
        raise _no_room(error) from None
    except ImportError as error:  # such as accelerate for device_map, or what remote code needs
        raise MissingEnvironmentError(" ".join(str(error).split()), hint="install what is named") from None
    except _REFUSED as error:
        message = " ".join(str(error).split())
        hint = "a folder with config.json, weights and tokenizer is needed, of a model that this transformers knows"
        raise InputError(Problem(f"cannot be loaded: {message}", Place(str(folder)), hint)) from None
    return LocalModel(model.eval(), tokenizer, str(model.device))


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).strip().partition("\n")[0]
        raise UsageError(f"device {device}: {message}", hint="cpu, cuda, cuda:0, ... or auto") from None


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
        MissingEnvironmentError: a batch does not fit into the device's memory.
    """
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
