"""From a recording to the native trace: one pass to read and survey, one to write; memory for a block.

Legend: T tokens, L rows of layers, K choices, S windows, E experts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem, UsageError
from planner.inputs.units import format_number_of
from planner.trace.count_faults import counted_often, never_routed, token_sums
from planner.trace.faults import Fault, sort_out
from planner.trace.importers.formats import opened
from planner.trace.importers.found import (
    DECODE,
    PREFILL,
    CountBlock,
    Found,
    Given,
    TokenBlock,
    bad,
    needs_experts,
)
from planner.trace.importers.rows import Placed, place_rows
from planner.trace.importers.survey import Survey, dtype_for, mixed_phases, not_routed
from planner.trace.windows import LIMIT_COUNTS
from planner.trace.write import Array, Column, Spool, write_npz

Ints = NDArray[np.int64]
_LIMIT_COUNT: Final = 1 << 40
_COLUMNS: Final = ("seq_id", "pos", "step_id", "domain_id", "weights")


@dataclass(frozen=True)
class Imported:
    """What was written, and what should be said about it."""

    format: str
    kind: Literal["tokens", "counts"]
    rows: int
    """Tokens, or windows of counts."""
    num_experts: int
    top_k: int
    layer_ids: tuple[int, ...]
    warnings: tuple[str, ...]


def import_trace(sources: Sequence[Path], name: str | None, given: Given, output: Path) -> Imported:
    """Read a recording, check it, and write it as a native trace.

    Args:
        sources: files or folders of one recording.
        name: its format; None: told by content.
        given: what the user says.
        output: the trace.npz.

    Raises:
        InputError: broken files, or faults that were not accepted, all at once.
        UsageError: something is not said that the files do not tell.
    """
    if given.model is not None and given.num_experts not in (None, given.model.moe.num_experts):
        message = f"{given.model.name} has {given.model.moe.num_experts} experts, not {given.num_experts}"
        raise UsageError(message, hint="leave --num-experts out")
    name, found = opened(sources, name, given)
    if found.per_token:
        return _import_tokens(name, found, given, output)
    return _import_counts(name, found, given, output)


def _import_tokens(name: str, found: Found, given: Given, output: Path) -> Imported:
    experts = needs_experts(found.path, found.num_experts, given)
    survey = Survey(experts, given.without_weights())
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.resolve().parent) as folder:
        spool = Spool(Path(folder))
        try:
            _fill(spool, survey, cast("Iterator[TokenBlock]", found.blocks), found, given)
            if not survey.tokens:
                problems, _ = sort_out(survey.faults(found.path, split_phases=True), given.accepted)
                if problems:
                    raise InputError(problems)
                raise bad(found.path, "no token was routed", "nothing to import; see --phase and --filler if given")
            placed = place_rows(found, survey.live(), given)
            choices = survey.used_K
            faults = [*found.faults, *survey.faults(found.path, split_phases=given.phase is not None), *placed.faults]
            faults += _against_model(found, given, int(choices.sum()))
            warnings = _refuse_or_warn(faults, found, placed, survey.notes(), given)
            _check_columns(spool, survey.tokens, found.path)
            _pack(spool, survey, placed, found, output)
        finally:
            spool.close()
    layers = tuple(placed.layer_ids.tolist())
    return Imported(name, "tokens", survey.tokens, experts, int(choices.sum()), layers, warnings)


def _fill(spool: Spool, survey: Survey, blocks: Iterator[TokenBlock], found: Found, given: Given) -> None:
    dtype = None
    for block in blocks:
        keep_T = _of_phase(block, found, survey, given)
        seen = survey.look(block.ids_TLK if keep_T is None else block.ids_TLK[keep_T])
        if dtype is None:
            plain = seen.ids_TLK.dtype == np.uint8 and not given.without_weights()
            dtype = np.dtype(np.uint8) if plain else dtype_for(survey.num_experts, with_none=True)
        if dtype == np.uint8 and survey.none:
            spool.retype("expert_ids", dtype_for(survey.num_experts, with_none=True))
            dtype = dtype_for(survey.num_experts, with_none=True)
        spool.append("expert_ids", seen.ids_TLK.astype(dtype))
        columns = (block.seq_id_T, block.pos_T, block.step_id_T, block.domain_id_T, block.weights_TLK)
        for key, column in zip(_COLUMNS, columns, strict=True):
            if column is not None:
                chosen = column if keep_T is None else column[keep_T]
                chosen = chosen if seen.keep_T is None else chosen[seen.keep_T]
                spool.append(key, chosen if key == "weights" else chosen.astype(np.int64))


def _of_phase(block: TokenBlock, found: Found, survey: Survey, given: Given) -> NDArray[np.bool_] | None:
    if block.phase_T is not None:
        survey.note_phases(block.phase_T)
    if given.phase is None:
        return None
    if block.phase_T is None:
        hint = "leave --phase out, and record the phases apart"
        raise UsageError(f"{found.path}: it does not tell prefill from decode", hint=hint)
    chosen_T: NDArray[np.bool_] = block.phase_T == (PREFILL if given.phase == "prefill" else DECODE)
    return chosen_T


def _check_columns(spool: Spool, tokens: int, path: Path) -> None:
    for name in _COLUMNS:
        if spool.rows(name) not in (0, tokens):
            message = f"{name} is given for {spool.rows(name):,} of {tokens:,} tokens"
            raise bad(path, message, "import files with it and files without it apart", key=name)


def _pack(spool: Spool, survey: Survey, placed: Placed, found: Found, output: Path) -> None:
    used_K, keep_L = survey.used_K, placed.keep_L
    lacking = bool(survey.same_L[keep_L].any())
    dtype = dtype_for(survey.num_experts, with_none=survey.none or lacking)

    def kept_of(block: Array) -> Array:
        kept = block if keep_L.all() else block[:, keep_L]
        return kept if used_K.all() else kept[:, :, used_K]

    def chosen(block: Array) -> Array:
        kept = kept_of(block).astype(dtype)
        if lacking:
            kept[not_routed(np.moveaxis(kept, 2, 0), survey.num_experts)] = -1
        return kept

    arrays: dict[str, Array | Column] = {
        "expert_ids": spool.column("expert_ids", chosen),
        "layer_ids": placed.layer_ids,
        "num_experts": np.array(survey.num_experts),
    }
    for key in _COLUMNS:
        if key in spool.names():
            arrays[key] = spool.column(key, kept_of) if key == "weights" else spool.column(key)
    if found.domain_names:
        arrays["domain_names"] = np.array(found.domain_names)
    write_npz(output, arrays)


def _import_counts(name: str, found: Found, given: Given, output: Path) -> Imported:
    if given.fillers:
        raise UsageError(f"--filler means nothing for {name}: counts hold no ids of single choices")
    top_k = given.choices() or found.top_k
    if top_k is None:
        raise UsageError(
            f"{found.path}: counts do not say how many experts a token chose", hint="give --model or --top-k"
        )
    counts_SLE, names, phases, empty = _gathered(found, given)
    needs_experts(found.path, counts_SLE.shape[2], given)
    routed_L = ~never_routed(counts_SLE, max(top_k, 2))  # of a whole recording, so that top-1 is told, too
    placed = place_rows(found, routed_L, given)
    kept_SLE = np.ascontiguousarray(counts_SLE[:, placed.keep_L])
    where = Place(str(found.path))
    silent = _silent_windows(kept_SLE, placed.layer_ids, names, where)
    if silent and "zero-layer" in given.accepted:
        whole_S = (kept_SLE.sum(axis=2) > 0).all(axis=1)
        kept_SLE, names = kept_SLE[whole_S], tuple(np.array(names)[whole_S].tolist())
        if not names:
            raise bad(found.path, "no window has counts in all of its layers", "record again")
    faults = [*found.faults, *placed.faults, *([] if given.phase else mixed_phases(phases, where))]
    faults += _against_model(found, given, found.top_k or top_k)
    if kept_SLE.size:
        faults += silent
        faults += counted_often(kept_SLE, where)
        faults += token_sums(kept_SLE, placed.layer_ids, top_k, names, where)
    elif not placed.faults:
        raise bad(found.path, "no layer was routed: all counts are 0", "record again")
    notes = [f"{format_number_of(empty, 'window')} in which nothing ran left out"] if empty else []
    if kept_SLE.size and not any(fault.name == "token-sum" for fault in faults):
        slight = token_sums(kept_SLE, placed.layer_ids, top_k, names, where, tolerance=0.0)
        notes += [f"{fault.message} [{fault.name}]: too few to matter" for fault in slight]
    warnings = _refuse_or_warn(faults, found, placed, notes + _uneven(kept_SLE, phases), given)
    experts = counts_SLE.shape[2]
    arrays: dict[str, Array | Column] = {
        "counts": kept_SLE,
        "layer_ids": placed.layer_ids,
        "num_experts": np.array(experts),
        "topk": np.array(top_k),
        "scenario_names": np.array(names),
    }
    write_npz(output, arrays)
    return Imported(name, "counts", len(names), experts, top_k, tuple(placed.layer_ids.tolist()), warnings)


def _gathered(found: Found, given: Given) -> tuple[Ints, tuple[str, ...], set[int], int]:
    """Counts of all windows in which something ran, their names, their phases, and how many were empty."""
    windows: list[Ints] = []
    names: list[str] = []
    phases: set[int] = set()
    empty = 0
    wanted = None if given.phase is None else PREFILL if given.phase == "prefill" else DECODE
    for block in cast("Iterator[CountBlock]", found.blocks):
        if wanted is not None and block.phase is None:
            hint = "leave --phase out, and record the phases apart"
            raise UsageError(f"{found.path}: it does not tell prefill from decode", hint=hint)
        if wanted is not None and block.phase != wanted:
            continue
        if not block.counts_LE.any():
            empty += 1
            continue
        if windows and block.counts_LE.shape != windows[0].shape:
            message = f"{block.name}: {list(block.counts_LE.shape)} counts, but {list(windows[0].shape)} before"
            raise bad(found.path, message, "windows must have the same layers and experts")
        if (len(windows) + 1) * block.counts_LE.size > LIMIT_COUNTS:
            raise bad(found.path, f"more than {len(windows):,} windows", "add neighbouring windows up first")
        if block.counts_LE.min() < 0 or block.counts_LE.max() > _LIMIT_COUNT:
            strange = block.counts_LE.min() if block.counts_LE.min() < 0 else block.counts_LE.max()
            raise bad(found.path, f"{block.name}: a count of {strange:,}", f"expected 0..{_LIMIT_COUNT:,}")
        windows.append(block.counts_LE.astype(np.int64))
        names.append(block.name or f"window {len(names)}")
        if block.phase is not None:
            phases.add(block.phase)
    if not windows:
        raise bad(found.path, "all counts are 0, or of another phase", "was the recorder running?")
    return np.stack(windows), tuple(names), phases, empty


def _silent_windows(
    counts_SLE: Ints, layer_ids: NDArray[np.int64], names: tuple[str, ...], where: Place
) -> list[Fault]:
    silent = np.argwhere(counts_SLE.sum(axis=2) == 0)
    if not len(silent):
        return []
    windows = format_number_of(len(np.unique(silent[:, 0])), "window")
    window, row = silent[0]
    message = f"{names[window]}: layer {layer_ids[row]} has no counts, but others have ({len(silent)} such rows)"
    cure = f"a stage or rank did not write; accepted, {windows} of this kind are left out"
    return [Fault("zero-layer", message, where, cure)]


def _uneven(counts_SLE: Ints, phases: set[int]) -> list[str]:
    """A hint at pooled phases where the format does not tell them apart."""
    total_S = counts_SLE.sum(axis=(1, 2))
    if phases or not counts_SLE.size or total_S.max() < 32 * total_S.min():
        return []
    sizes = f"windows of {total_S.min():,} to {total_S.max():,} choices"
    return [f"{sizes}: if the long ones are prefill and the short ones decode, record them apart [mixed-phases]"]


def _against_model(found: Found, given: Given, top_k: int) -> list[Fault]:
    if given.model is None or top_k == given.model.moe.top_k:
        return []
    expected = given.model.moe.top_k
    message = f"top-{top_k} recorded, but {given.model.name} chooses {expected} experts per token"
    if top_k > expected and given.model.moe.shared_intermediate_size:
        cure = "the shared experts are recorded, too: name their ids with --filler"
        return [Fault("shared-experts", message, Place(str(found.path)), cure)]
    raise bad(found.path, message, "another model, or another recording")


def _refuse_or_warn(
    faults: Sequence[Fault], found: Found, placed: Placed, notes: Sequence[str], given: Given
) -> tuple[str, ...]:
    problems, warnings = sort_out(faults, given.accepted)
    if problems:
        raise InputError(problems)
    if not len(placed.layer_ids):
        raise InputError(Problem("no MoE layer was recorded", Place(str(found.path)), "another model?"))
    named = tuple(f"{found.path}: {note}" for note in (*found.notes, *notes, *placed.notes))
    return (*named, *warnings)
