"""SGLang's routed experts over HTTP: `meta_info.routed_experts` of responses, as JSON or JSONL.

Source: SGLang 0.5.23, state_capturer/routed_experts.py (--enable-return-routed-experts): base64 of
raw int32, [tokens, num_hidden_layers, num_experts_per_tok], logical ids, zeros in dense layers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.errors import UsageError
from planner.trace.importers.found import Found, Given, bad
from planner.trace.importers.json_lines import responses
from planner.trace.importers.vllm_routes import Request, found_of


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of responses; the model tells the shape, which they do not hold."""
    if given.model is None:
        hint = "give --model: its layers and top-k give the numbers their shape"
        raise UsageError(f"{sources[0]}: SGLang sends routed experts without a shape", hint=hint)
    shape = (given.model.num_layers, given.choices() or given.model.moe.top_k)
    return found_of((request for path in sources for request in _requests(path, shape)), sources[0])


def _requests(path: Path, shape: tuple[int, int]) -> Iterator[Request]:
    for line, response in responses(path):
        meta = response.get("meta_info")
        if not isinstance(meta, dict) or meta.get("routed_experts") is None:
            continue
        ids = _decoded(meta["routed_experts"], path, line, shape)
        prompt, output = meta.get("prompt_tokens"), meta.get("completion_tokens")
        if type(prompt) is int and type(output) is int and prompt + output - 1 >= len(ids):
            yield Request(ids, prompt + output - 1 - len(ids), prompt)
        else:
            yield Request(ids, 0, None)


def _decoded(text: Any, path: Path, line: int, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    key = "meta_info.routed_experts"
    if not isinstance(text, str):
        raise bad(path, "not a text", "expected base64 of int32 numbers", line=line, key=key)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(path, f"not base64: {error}", "cut off? leave this response out", line=line, key=key) from None
    row = 4 * shape[0] * shape[1]
    if len(raw) % row:
        message = f"{len(raw):,} bytes are no whole number of tokens of {shape[0]} layers x top-{shape[1]} int32"
        raise bad(path, message, "another model, or cut off", line=line, key=key)
    return np.frombuffer(raw, "<i4").reshape(-1, *shape)
