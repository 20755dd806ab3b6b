"""How much of EPLB's excess on an unseen window could a plan remove at all? Knowledge that no plan has, step by step.

Each row of the tables is a recorded scenario of DeepSeek-V3, placed from the other five by plain load (rows only):

- plan: the search as it is in use;
- mixture: the search on the one window that mixes the other five best, the weights having been fitted to the
  unseen scenario itself, for each layer. They may be negative: the mixture may lie outside of what was seen;
- mixture and spread: the same, and told how far single experts depart from the mixture, but not which of them
  depart which way. The search sees many draws of that;
- unseen: the search on the unseen scenario itself.

What lies between the third and the fourth is the part of an expert's load that no mixture of known windows holds.

Legend: S windows, L layers, E experts, P slots, N draws.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, DEEPSEEK_NO_COPIES, Case, arrays_of, trace_in
from benchmarks.generalisation import DEEPSEEK_GROUPS, imbalance, placed
from planner.baselines import eplb_layer
from planner.solve.problem import plain_load_problem
from planner.solve.weights import Stretch, stretch_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EVERY = 4
_DRAWS = 32
_LEAST = 0.02
"""No expert of a mixture has less than this part of the mean load."""
_KNOWN = ("EPLB", "plan", "mixture", "mixture and spread", "unseen")


def best_mixture(seen_SE: Floats, unseen_E: Floats) -> Floats:
    """The affine combination of known windows nearest to an unseen one (least squares), kept above `_LEAST`."""
    origin_E, others_SE = seen_SE[-1], seen_SE[:-1]
    weight_S = np.linalg.lstsq((others_SE - origin_E).T, unseen_E - origin_E, rcond=None)[0]
    mixture_E = origin_E + np.einsum("s,se->e", weight_S, others_SE - origin_E)
    return np.asarray(np.maximum(mixture_E, _LEAST))


def draws(mixture_E: Floats, unseen_E: Floats, seed: int) -> Floats:
    """Windows [N, E] that depart from a mixture as much as the unseen one does, but each in its own way."""
    spread = float(np.log(unseen_E / mixture_E).std())
    noise_NE = np.random.default_rng(seed).standard_normal((_DRAWS, len(mixture_E)))
    return np.asarray(mixture_E * np.exp(spread * noise_NE))


def excesses(seen_SE: Floats, unseen_E: Floats, ranks: int, slots: int, seed: int) -> list[float]:
    """Excess of max/mean over 1 in the unseen window, in the order of `_KNOWN`."""
    slots_R = np.full(ranks, slots // ranks)
    share_SE = seen_SE / seen_SE.mean(axis=1, keepdims=True)
    share_E = unseen_E / unseen_E.mean()
    mixture_E = best_mixture(share_SE, share_E)

    def search(windows_SE: Floats, stretch: Stretch, groups: int = 1, *, polish: bool = True) -> Ints:
        return placed(plain_load_problem(windows_SE, slots_R), stretch, groups, polish=polish)

    placements = (
        eplb_layer(seen_SE.sum(axis=0), slots, 1, 1, ranks),
        search(share_SE, stretch_of(len(share_SE)), DEEPSEEK_GROUPS, polish=False),
        search(mixture_E[None], Stretch()),
        search(draws(mixture_E, share_E, seed), Stretch(), polish=False),
        search(share_E[None], Stretch()),
    )
    return [imbalance(expert_P, share_E, ranks) - 1 for expert_P in placements]


def _show(case: Case, data: Path, console: Console) -> None:
    trace = arrays_of(trace_in(data, case.trace))
    counts_SLE = trace["counts"].astype(float)
    slots = counts_SLE.shape[2] + case.redundant
    layers = range(0, counts_SLE.shape[1], _EVERY)
    title = f"{case.name}, {slots} slots on {case.ep} ranks, every fourth layer, one scenario left out"
    table = Table(title=title, box=None, title_justify="left")
    for column in ("judged on", *_KNOWN):
        table.add_column(column, justify="left" if column == "judged on" else "right")
    parts = []
    for left_out, name in enumerate(trace["scenario_names"]):
        seen_SLE = np.delete(counts_SLE, left_out, axis=0)
        found = [excesses(seen_SLE[:, at], counts_SLE[left_out, at], case.ep, slots, at) for at in layers]
        mean = np.mean(found, axis=0)
        parts.append(1 - mean / mean[0])
        table.add_row(str(name), *(f"{1 + value:.3f}" for value in mean))
    table.add_row("EPLB's excess gone", *(f"{value:.1%}" for value in np.mean(parts, axis=0)))
    console.print(table, "")


def run(data: Path | None, console: Console) -> None:
    """Print the tables, with and without copies."""
    if data is None:
        console.print("ceiling: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    for case in (DEEPSEEK, DEEPSEEK_NO_COPIES):
        _show(case, data, console)
