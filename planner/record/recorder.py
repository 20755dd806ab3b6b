"""`Recorder`: listens to a model's routers while somebody else runs it, and keeps a native trace.

Legend: B sequences of a batch, X positions of the forward passes since the last `add` (padding included),
N = B * X, T tokens kept, L MoE layers, K choices.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from planner.errors import InputError, MissingEnvironmentError, Problem, UsageError
from planner.record.routers import Choice, Router, find_routers
from planner.trace.write import Column, Spool, write_npz


class Recorder:
    """Records what a model's routers choose. Use it as a context manager around your loop.

    After each batch call `add`; the choices then go to a temporary file, so that a recording may be larger than
    memory. `save` writes `trace.npz`; it may be called inside the `with` block or after it.

    Args:
        model: any module with MoE layers, of transformers 4 or 5; it is not changed, and hooks are removed at the end.

    Raises:
        InputError: no router was found, or several decoders were.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.routers: list[Router] = find_routers(model)
        self.num_experts = max(router.num_experts for router in self.routers)
        self.layer_ids = [router.layer for router in self.routers]
        self._handles: list[Any] = []
        folder = Path(tempfile.mkdtemp(prefix="ep-plan-"))
        self._spool = Spool(folder)
        weakref.finalize(self, _discard, self._spool, folder)
        self._domains: list[str] = []
        self._sequences = 0
        self.num_tokens = 0
        """Tokens recorded so far."""

    def __enter__(self) -> Recorder:
        for router in self.routers:
            router.chosen.clear()
            self._handles += router.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def add(
        self,
        mask: ArrayLike | torch.Tensor,
        *,
        domain: str | Sequence[str] | None = None,
        seq_id: ArrayLike | None = None,
        pos: ArrayLike | None = None,
        step_id: int | None = None,
    ) -> None:
        """Keep what was chosen since the last `add`: after one forward pass, or after several of one batch.

        Args:
            mask: [B, X], nonzero where there is a token to keep: the attention mask of the batch. After several
                passes (a prompt, then steps that add a token to every sequence) their positions side by side.
            domain: what the tokens are about: one name, or one for each sequence.
            seq_id: [B] numbers of the sequences; left out, each row is a new sequence.
            pos: [B, X] or [X] positions in the sequence; left out, tokens are counted from 0 in each row.
            step_id: number of the engine step, if the trace shall have a window for each.

        Raises:
            InputError: the shapes do not fit what the routers saw, or they saw nothing.
        """
        keep_BX = _as_array(mask) != 0
        if keep_BX.ndim != 2:
            raise InputError(Problem(f"mask has {keep_BX.ndim} axes", hint="expected [sequences, positions]"))
        rows, width = keep_BX.shape
        shape = (rows, width)
        pos_BX = np.cumsum(keep_BX, axis=1) - 1 if pos is None else np.broadcast_to(_as_array(pos), shape)
        first = self._sequences
        seq_B = np.arange(first, first + rows) if seq_id is None else _as_array(seq_id).reshape(rows)
        self._sequences = max(first, int(seq_B.max(initial=-1)) + 1)
        experts_TLK, weights_TLK = self._taken(keep_BX)
        columns: dict[str, NDArray[Any]] = {
            "seq_id": np.broadcast_to(seq_B[:, None], shape)[keep_BX].astype(np.int32),
            "pos": pos_BX[keep_BX].astype(np.int32),
        }
        if domain is not None:
            domain_B = self._numbered([domain] * rows if isinstance(domain, str) else list(domain))
            columns["domain_id"] = np.broadcast_to(domain_B[:, None], shape)[keep_BX].astype(np.int16)
        if step_id is not None:
            columns["step_id"] = np.full(len(experts_TLK), step_id, dtype=np.int64)
        self._keep({"expert_ids": experts_TLK, "weights": weights_TLK, **columns})

    def _keep(self, columns: dict[str, NDArray[Any]]) -> None:
        known = self._spool.names()
        if self.num_tokens and set(columns) != set(known):
            odd = ", ".join(sorted(set(columns) ^ set(known)))
            raise InputError(
                Problem(f"{odd}: given in some calls of add() only", hint="give it in all of them or in none")
            )
        try:
            for name, values in columns.items():
                self._spool.append(name, values)
        except OSError as error:
            hint = "set TMPDIR to a folder with more room"
            raise MissingEnvironmentError(f"cannot keep the recording: {error.strerror or error}", hint=hint) from None
        self.num_tokens += len(columns["expert_ids"])

    def _numbered(self, names: list[str]) -> NDArray[np.int64]:
        self._domains += [name for name in dict.fromkeys(names) if name not in self._domains]
        return np.array([self._domains.index(name) for name in names])

    def _taken(self, keep_BX: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
        """The choices of the kept tokens [T, L, K], sequence after sequence; the routers' memory is emptied."""
        top_k = max((choice.experts_NK.shape[1] for router in self.routers for choice in router.chosen), default=0)
        shape = (int(keep_BX.sum()), len(self.routers), top_k)
        experts_TLK = np.full(shape, -1, dtype=np.int16)
        weights_TLK = np.zeros(shape, dtype=np.float16)
        for row, router in enumerate(self.routers):
            chosen, router.chosen = router.chosen, []
            experts, weights = _side_by_side(router, chosen, keep_BX.shape)
            kept = experts[keep_BX]
            known = (kept >= 0) & (kept < router.num_experts)  # not so: identity experts, or none
            experts_TLK[:, row, : kept.shape[1]] = np.where(known, kept, -1)
            weights_TLK[:, row, : kept.shape[1]] = np.where(known, weights[keep_BX], 0)
        return experts_TLK, weights_TLK

    def save(self, path: str | Path) -> Path:
        """Write everything recorded as a native trace, whole or not at all; returns its path."""
        if not self.num_tokens:
            raise UsageError("nothing was recorded", hint="call add() after each forward pass")
        arrays: dict[str, NDArray[Any] | Column] = {name: self._spool.column(name) for name in self._spool.names()}
        arrays["num_experts"] = np.array(self.num_experts)
        arrays["layer_ids"] = np.array(self.layer_ids)
        if self._domains:
            arrays["domain_names"] = np.array(self._domains)
        write_npz(Path(path), arrays)
        return Path(path)


def _discard(spool: Spool, folder: Path) -> None:
    """Remove the temporary files, when their recorder is gone or the program ends."""
    spool.close()
    shutil.rmtree(folder, ignore_errors=True)


def _as_array(values: ArrayLike | torch.Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _side_by_side(
    router: Router, chosen: list[Choice], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The forward passes of one router put together: [B, X, K] each."""
    rows, width = shape
    seen = sum(len(choice.experts_NK) for choice in chosen)
    if seen != rows * width:
        message = f"{router.name} routed {seen} tokens since the last add(), but the mask has {rows} x {width}"
        hint = "call add() once after each forward pass, with a mask of every position, padding included"
        raise InputError(Problem(message, hint=hint))
    experts = [_by_row(choice.experts_NK, rows).to(torch.int64) for choice in chosen]
    weights = [_by_row(choice.weights_NK, rows).to(torch.float32) for choice in chosen]
    return torch.cat(experts, dim=1).numpy(), torch.cat(weights, dim=1).numpy()


def _by_row(values_NK: torch.Tensor, rows: int) -> torch.Tensor:
    return values_NK.cpu().reshape(rows, -1, values_NK.shape[-1])
