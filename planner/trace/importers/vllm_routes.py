"""vLLM's routed experts: what requests return with --enable-return-routed-experts.

Source: vLLM 0.33.0, `CompletionOutput.routed_experts` and its base64 .npy over HTTP: [tokens,
num_hidden_layers, top_k], logical ids, zeros in dense layers, one token less than the sequence. Read
are .npy files, base64 text, responses as JSON or JSONL, and .npz files of one request with
`routed_experts`, `prompt_token_ids` and `output_token_ids`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from planner.trace.importers.found import DECODE, PREFILL, Found, Given, Ints, TokenBlock, bad
from planner.trace.importers.json_lines import responses
from planner.trace.importers.npy_file import MAGIC, array_of, open_npy
from planner.trace.npz import NpzFile

_TEXT_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Request:
    """What one request routed; a large one may come in several pieces."""

    ids_TLK: Ints
    first: int
    """Position of the first token; below 0: counted back from `total`."""
    prompt: int | None
    """Tokens of the prompt, if told."""
    new: bool = True


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of requests."""
    del given
    files = [file for path in sources for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return found_of((request for path in files for request in _requests(path)), sources[0])


def found_of(requests: Iterator[Request], path: Path) -> Found:
    """Requests as blocks of tokens: each is a sequence."""
    first = next(requests, None)
    if first is None:
        raise bad(path, "no routed experts in it", "switch their return on in the engine and in the request")
    top_k = first.ids_TLK.shape[2]
    return Found(path, "hidden", _blocks(chain([first], requests), path), per_token=True, top_k=top_k)


def _blocks(requests: Iterator[Request], path: Path) -> Iterator[TokenBlock]:
    shape, sequence = None, -1
    for request in requests:
        sequence += request.new
        ids = request.ids_TLK
        shape = shape or ids.shape[1:]
        if ids.shape[1:] != shape:
            told = f"{ids.shape[1]} layers of top-{ids.shape[2]}, the first {shape[0]} of top-{shape[1]}"
            raise bad(path, f"request {sequence} has {told}", "give requests of one model")
        pos = request.first + np.arange(len(ids), dtype=np.int64)
        phase = None
        if request.prompt is not None:
            phase = np.where(pos < request.prompt, PREFILL, DECODE).astype(np.int8)
        yield TokenBlock(ids, np.full(len(ids), sequence, dtype=np.int64), pos, phase_T=phase)


def _requests(path: Path) -> Iterator[Request]:
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(MAGIC):
        array = open_npy(path)
        _shape(array.shape, array.dtype, path)
        first = 0
        for block in array.blocks():
            yield Request(block, first, None, new=first == 0)
            first += len(block)
    elif head.startswith(b"PK"):
        yield _npz(path)
    elif head.lstrip()[:1] in (b"{", b"["):
        yield from (request for line, response in responses(path) for request in _choices(response, path, line))
    else:
        with path.open("rb") as file:
            raw = file.read(_TEXT_BYTES + 1)
        if len(raw) > _TEXT_BYTES:
            raise bad(path, f"base64 text of more than {_TEXT_BYTES >> 30} GiB", "save it as .npy")
        yield Request(decoded(raw, path, ""), 0, None)


def _npz(path: Path) -> Request:
    file = NpzFile(path)
    if "routed_experts" not in file.headers:
        found = ", ".join(file.headers) or "no arrays"
        raise bad(path, f"no routed_experts: it holds {found}", "expected one request as .npz")
    header = file.headers["routed_experts"]
    _shape(header.shape, header.dtype, path)
    ids = file.whole("routed_experts")
    names = [name for name in ("prompt_token_ids", "output_token_ids") if name in file.headers]
    tokens = [math.prod(file.headers[name].shape) for name in names]
    if len(tokens) < 2:
        return Request(ids, 0, None)
    return Request(ids, max(0, sum(tokens) - 1 - len(ids)), tokens[0])


def _choices(record: dict[str, Any], path: Path, line: int) -> Iterator[Request]:
    usage = record.get("usage")
    prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    choices = record.get("choices", [record])
    for choice in choices if isinstance(choices, list) else []:
        text = choice.get("routed_experts") if isinstance(choice, dict) else None
        if text is None:
            continue
        if not isinstance(text, str):
            raise bad(path, "not a text", "expected base64 of a .npy file", line=line, key="routed_experts")
        ids = decoded(text.encode(), path, "routed_experts", line)
        alone = len(choices) == 1 and type(prompt) is int and type(total) is int
        if alone and total is not None and total - 1 >= len(ids):
            yield Request(ids, total - 1 - len(ids), prompt)
        else:
            yield Request(ids, 0, None)


def decoded(text: bytes, path: Path, key: str, line: int | None = None) -> Ints:
    """The array in base64 of a .npy file."""
    try:
        raw = base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "cut off? expected base64 of a .npy file"
        raise bad(path, f"not base64: {error}", hint, line=line, key=key) from None
    array = array_of(raw, path, key)
    _shape(array.shape, array.dtype, path, line)
    return array


def _shape(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, line: int | None = None) -> None:
    if len(shape) != 3 or dtype.kind not in "iu" or 0 in shape[1:]:
        hint = "expected whole numbers [tokens, layers, top_k]"
        raise bad(path, f"{shape} of {dtype} found", hint, line=line, key="routed_experts")
