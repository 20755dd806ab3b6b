"""A checkpoint permuted from one folder into another: file by file, resumable, the original only ever read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from planner.errors import InputError, MissingEnvironmentError, Place, Problem, UsageError
from planner.export.checkpoint import progress as record
from planner.export.checkpoint.moves import Move, moves_of
from planner.export.checkpoint.progress import Progress
from planner.export.checkpoint.shard import write_shard
from planner.export.checkpoint.source import Source, read_source
from planner.export.layout import Layout
from planner.files import sha256_of, write_whole
from planner.inputs.checkpoint import INDEX_NAME, read_index
from planner.inputs.safetensors import Header
from planner.inputs.units import format_bytes
from planner.rules import torn_group

ROUTERS: Final = "routers.safetensors"
_SMALL_FILE_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Work:
    """What there is to do, known before anything is written."""

    source: Source
    moves: Mapping[str, Move]
    progress: Progress

    @property
    def renamed(self) -> int:
        """Tensors written that take another expert's name."""
        return sum(move.name != name for name, move in self.written.items())

    @property
    def reordered(self) -> int:
        """Tensors written whose rows move."""
        return sum(move.rows != tuple(range(len(move.rows))) for move in self.written.values())

    @property
    def written(self) -> Mapping[str, Move]:
        """Tensors that new files hold: all that move, or the router's alone."""
        if not self.progress.router_only:
            return self.moves
        return {name: move for name, move in self.moves.items() if move.is_router}


def prepare(layout: Layout, plan_file: Path, weights: Path, *, router_only: bool) -> Work:
    """Check plan and checkpoint against each other; raises with all problems, nothing is written."""
    check_plan(layout, plan_file)
    if record.load(weights) is not None:
        message = (
            f"--weights {weights}: these weights are permuted already ({record.NAME}), the plan numbers the original"
        )
        raise UsageError(message, hint="give the original checkpoint")
    source = read_source(weights, layout)
    moves = moves_of(source, layout)
    return Work(source, moves, record.begun(source, layout, sha256_of(plan_file), router_only=router_only))


def check_plan(layout: Layout, plan_file: Path) -> None:
    """Raise `InputError` unless the plan's placement is one that a permuted checkpoint realises."""
    if layout.for_checkpoint:
        _check_rows(layout, plan_file)
        return
    message = "this plan was not solved for a checkpoint"
    if layout.redundant_experts:
        message += f", and has {layout.redundant_experts} redundant experts per layer; a checkpoint holds each once"
    hint = "solve again with solve: {target: checkpoint}, or ep-plan solve --target checkpoint"
    raise InputError(Problem(message, Place(str(plan_file), key="inputs.target"), hint))


def _check_rows(layout: Layout, plan_file: Path) -> None:
    """Whatever the plan says it was solved for: every row is a permutation that moves groups as a whole."""
    experts, groups = layout.num_experts, layout.model.moe.num_groups
    for layer, row in zip(layout.placement.layer_ids, layout.placement.expert_LP, strict=True):
        torn = None
        if np.array_equal(np.sort(row), np.arange(experts)):
            torn = torn_group(row, experts, groups)
            if torn is None:
                continue
        what = "no permutation of the experts" if torn is None else f"tears routing groups apart at group {torn}"
        where = Place(str(plan_file), key="placement.physical_to_logical")
        raise InputError(Problem(f"layer {layer}: {what}", where, f"see: ep-plan check {plan_file}"))


def rewrite(work: Work, output: Path) -> Progress:
    """Write the permuted checkpoint, or go on where an earlier run was stopped.

    Raises:
        UsageError: the folder is the source, lies in it, or holds something else.
        MissingEnvironmentError: the disk is full; what is done stays, and the original is as it was.
        KeyboardInterrupt: interrupted; what is done stays.
    """
    done = _opened(work, output)
    if done.state == "finished":
        return done
    _check_room(work, output, done)
    try:
        with _told(work, output):
            for name, header, moves in _files(work):
                if name not in done.sha256:
                    done = done.with_file(name, _shard(header, moves, output / name))
                    record.save(done, output)
            if not work.progress.router_only:
                done = _rest(work, output, done)
            done = done.model_copy(update={"state": "finished"})
            record.save(done, output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_state(work, output)}") from None
    return done


def _files(work: Work) -> Iterator[tuple[str, Header, Mapping[str, Move]]]:
    """New files of weights: name, old header, moves."""
    moves = work.written
    for header in work.source.headers:
        if not work.progress.router_only:
            yield header.path.name, header, moves
        elif not moves.keys().isdisjoint(header.tensors):
            yield f"{header.path.stem}.{ROUTERS}", header, moves


def _opened(work: Work, output: Path) -> Progress:
    """The state of the folder, with every finished file held against its hash; a new folder is made."""
    source = work.source.folder.resolve()
    target = output.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise UsageError(f"-o {output}: the original is never written to", hint="give a folder apart from --weights")
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o {output} is a file, a folder is needed")
    found = record.load(output) if output.is_dir() else None
    if found is None:
        if output.is_dir() and any(output.iterdir()):
            raise UsageError(f"-o {output}: the folder is not empty", hint="give a new one: nothing is written over")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingEnvironmentError(f"cannot make {output}: {error.strerror or error}") from None
        record.save(work.progress, output)
        return work.progress
    if not found.same_work(work.progress):
        message = f"-o {output}: holds what another plan, or other weights, began"
        raise UsageError(message, hint="give a new folder, or remove that one")
    good = {name: digest for name, digest in found.sha256.items() if _is_good(output / name, digest)}
    if good == found.sha256:
        return found
    return found.model_copy(update={"sha256": good, "state": "unfinished"})


def _is_good(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_of(path) == digest


def _check_room(work: Work, output: Path, done: Progress) -> None:
    """Refuse before the first byte where the disk surely lacks room for the rest."""
    files = _files(work)
    if work.progress.router_only:
        needs = sum(
            end - first for _, header, moves in files for first, end in map(header.span, moves.keys() & header.tensors)
        )
    else:
        needs = sum(header.begin + header.room for name, header, _ in files if name not in done.sha256)
    free = shutil.disk_usage(output).free
    if needs > free:
        message = f"{output}: {format_bytes(needs)} are still to be written, {format_bytes(free)} are free"
        raise MissingEnvironmentError(message, hint=f"{_state(work, output)}\nthe original is as it was")


def _shard(header: Header, moves: Mapping[str, Move], target: Path) -> str:
    """One file under a temporary name, verified, then renamed; rests of a killed run are cleared away."""
    part = target.with_name(f".{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        digest = write_shard(header, moves, part)
        os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return digest


def _rest(work: Work, output: Path, done: Progress) -> Progress:
    """The index with the new names, and every other file as it is."""
    if work.source.index is not None:
        data = json.loads(work.source.index.read_text(encoding="utf-8"))
        weight_map, _ = read_index(work.source.index)
        named = {work.moves[tensor].name: file for tensor, file in weight_map.items()}
        data["weight_map"] = dict(sorted(named.items()))
        write_whole(output / INDEX_NAME, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        done = done.with_file(INDEX_NAME, sha256_of(output / INDEX_NAME))
    for path in work.source.copied:
        if path.name == record.NAME:
            continue  # of an earlier permutation; this folder has its own
        target = output / path.name
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(path, part)
        os.replace(part, target)
        digest = sha256_of(target)
        if digest != sha256_of(path):
            raise AssertionError(f"{target.name}: read back otherwise than written")
        done = done.with_file(target.name, digest)
    return done


@contextlib.contextmanager
def _told(work: Work, output: Path) -> Iterator[None]:
    """Turn a full disk into words that say what is done and that the original is whole."""
    try:
        yield
    except (OSError, MissingEnvironmentError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error.problems[0].message
        message = f"cannot write to {output}: {why}"
        hint = f"{_state(work, output)}\nthe original is as it was; free some space and run the same command again"
        raise MissingEnvironmentError(message, hint=hint) from None


def _state(work: Work, output: Path) -> str:
    files = [name for name, _, _ in _files(work)]
    found = record.load(output)
    done = sum(name in found.sha256 for name in files) if found else 0
    return f"{done} of {len(files)} files are done, the same command goes on from there"
