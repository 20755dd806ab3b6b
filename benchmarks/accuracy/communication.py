"""Communication kernels: constants fitted to measured collectives and exchanges, judged on what the fit has not seen.

The forms are those of docs/model.md, "Traffic" and "Collectives"; `--fit` prints them as the kernel profiles hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import traffic_points as tables
from benchmarks.accuracy.compute import SOURCE, text_of
from benchmarks.accuracy.fitting import summary
from benchmarks.accuracy.traffic_points import BANDWIDTH, NIC, Travel
from planner.inputs.efficiency import Errors

Floats = NDArray[np.float64]
Values = dict[str, float]
_FIRST: Final[Values] = {
    "launch": 1e-5,
    "combine launch": 1e-5,
    "step": 3e-7,
    "softness": 0.8,
    "scale_up": 0.6,
    "scale_out": 0.8,
    "slower": 1.0,
    "per_token": 1e-8,
    "per_doubling": 1e-6,
    "between": 3e-5,
    "combine between": 3e-5,
    "copied": 0.3,
    "all_reduce": 0.9,
    "one_shot": 5e-6,
    "handshake": 1e-5,
    "handshake_bytes": 5e4,
}
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "softness": (0.3, 1.0),
    "scale_up": (0.05, 1.0),
    "scale_out": (0.05, 1.0),
    "slower": (0.5, 2.0),
    "copied": (1e-3, 1.5),
    "all_reduce": (0.3, 1.5),
    "handshake_bytes": (1e2, 1e8),
}
_NCCL: Final = ("launch", "step", "softness", "scale_up", "copied", "all_reduce")
_SMALL: Final = ("launch", "one_shot", "step", "scale_up")
_ALL_TO_ALL: Final = ("launch", "handshake", "handshake_bytes", "scale_up", "copied")
_OF_ALL_GPUS: Final = ("per_doubling",)
"""Of the all-to-all: one number for all GPUs, as few numbers of ranks were measured on each."""
_EXCHANGE: Final = ("launch", "combine launch", "scale_up", "slower", "per_token")


def predicted(travel: Travel, values: Values) -> Floats:
    """Seconds of each measurement."""
    rate = values["scale_up"] * BANDWIDTH[travel.gpu]
    if "step" in values:
        return _collective(travel, values, rate)
    combines = travel.phases_N == 2
    constant = np.where(combines, values.get("combine launch", values["launch"]), values["launch"])
    beyond = np.where(combines, values.get("combine between", 0.0), values.get("between", 0.0))
    constant = constant + np.where(travel.nodes_N > 1, beyond, 0.0)
    constant = constant + values.get("per_doubling", 0.0) * np.log2(travel.ranks_N)
    if "handshake" in values:
        message_N = travel.inside_N / (travel.ranks_N - 1)
        constant = constant + values["handshake"] * message_N / (message_N + values["handshake_bytes"])
    stretch_N = 1 + values.get("copied", 0.0) / (travel.ranks_N - 1)
    volume = np.maximum(travel.inside_N * stretch_N / rate, travel.beyond_N / (values.get("scale_out", 1.0) * NIC))
    slower = np.where(combines, values.get("slower", 1.0), 1.0)
    return np.asarray(constant + slower * volume + values.get("per_token", 0.0) * travel.tokens_N)


def _collective(travel: Travel, values: Values, rate: float) -> Floats:
    """In one domain; the engines' own kernels are all-reduces."""
    others_N, p = travel.ranks_N - 1, values.get("softness", 1.0)
    steps_N = values["step"] * travel.phases_N * others_N
    stretch_N = (1 + values.get("copied", 0.0) / others_N) * np.where(
        travel.phases_N == 2, values.get("all_reduce", 1.0), 1.0
    )
    volume_N = np.maximum(travel.inside_N * stretch_N / rate, travel.inside_N / BANDWIDTH[travel.gpu])
    seconds_N = ((values["launch"] + steps_N) ** p + volume_N**p) ** (1 / p)
    if "one_shot" in values:
        whole_N = travel.inside_N * travel.ranks_N / travel.phases_N / rate
        seconds_N = np.minimum(seconds_N, values["one_shot"] + steps_N + whole_N)
    return np.asarray(seconds_N)


def fit(every: Sequence[Travel], own: Sequence[str], shared: Sequence[str], fixed: Values) -> list[Values]:
    """The constants that meet measurements best; residuals are logarithms of predicted over measured.

    Several GPUs have constants of their own beside those that they share.
    """
    from scipy.optimize import least_squares  # noqa: PLC0415  # only fitting needs it

    names = [*shared, *[name for _ in every for name in own]]
    bounds = [_BOUNDS.get(name, (1e-10, 1e-3)) for name in names]
    low, high = np.log([b[0] for b in bounds]), np.log([b[1] for b in bounds])

    def values(logs: Floats) -> list[Values]:
        figures = np.exp(logs)
        common = fixed | dict(zip(shared, figures.tolist(), strict=False))
        each = figures[len(shared) :].reshape(len(every), -1).tolist()
        return [common | dict(zip(own, mine, strict=True)) for mine in each]

    def residuals(logs: Floats) -> Floats:
        pairs = zip(every, values(logs), strict=True)
        return np.concatenate([np.log(predicted(travel, found) / travel.seconds_N) for travel, found in pairs])

    first = np.clip(np.log([_FIRST[name] for name in names]), low + 1e-6, high - 1e-6)
    found = least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.1, x_scale="jac")
    return [{name: float(f"{value:.3g}") for name, value in one.items()} for one in values(found.x)]


@dataclass(frozen=True)
class Judged:
    """One library on one GPU with its constants."""

    travel: Travel
    what: str
    owed: str
    values: Values
    fitted: Errors
    held_out: Errors | None


def judged(travel: Travel, what: str, owed: str, names: Sequence[str], fixed: Values | None = None) -> Judged:
    """Fit, and leave out one group at a time."""
    return next(judged_together([travel], what, owed, names, (), fixed))


def judged_together(
    every: Sequence[Travel],
    what: str,
    owed: str,
    own: Sequence[str],
    shared: Sequence[str],
    fixed: Values | None = None,
) -> Iterator[Judged]:
    """Fit several GPUs at once, and leave out one group of one GPU at a time."""
    fixed = fixed or {}
    for number, (travel, values) in enumerate(zip(every, fit(every, own, shared, fixed), strict=True)):
        errors, groups = np.empty(len(travel)), np.unique(travel.group_N)
        for group in groups if len(groups) > 1 else ():
            out_N = travel.group_N == group
            seen = [one.some(~out_N) if one is travel else one for one in every]
            errors[out_N] = _errors(travel.some(out_N), fit(seen, own, shared, fixed)[number])
        held_out = summary(errors) if len(groups) > 1 else None
        yield Judged(travel, what, owed, values, summary(_errors(travel, values)), held_out)


def _errors(travel: Travel, values: Values) -> Floats:
    return np.abs(predicted(travel, values) / travel.seconds_N - 1)


def fit_communication(folder: Path) -> list[Judged]:
    """Everything that the tables hold."""
    found = [
        judged(one, "collectives", "8 / 20", _NCCL)
        if one.library == "nccl"
        else judged(one, "small all-reduces", "-", _SMALL)
        for one in tables.collectives(folder)
    ]
    found += judged_together(tables.nccl_all_to_all(folder), "all-to-all", "8 / 20", _ALL_TO_ALL, _OF_ALL_GPUS)
    inside: dict[tuple[str, str], Values] = {}
    for one in tables.deepep(folder):
        library, _, several = one.library.partition(", ")
        if several:
            continue
        owed = "15 / 40" if library == "deepep-low-latency" else "10 / 25"
        found.append(judged(one, "one node", owed, _EXCHANGE))
        inside[one.gpu, library] = found[-1].values
    for one in tables.deepep(folder):
        library, _, several = one.library.partition(", ")
        if several:
            known = {name: value for name, value in inside[one.gpu, library].items() if name != "slower"}
            few = one.some(one.nodes_N <= 4) if library == "deepep-normal" else one
            names = ("scale_out", "slower", "between", "combine between")
            normal = few is not one
            where, owed = ("2 to 4 nodes", "-") if normal else ("2 to 8 nodes", "12 / 30")
            found.append(judged(few, where, owed, names, known))
    for one in tables.nvlink(folder):
        owed = "8 / 25" if "two" in one.library else "20 / 45"
        found.append(judged(one, "NVL72, EP 2 to 64", owed, (*_EXCHANGE, "per_doubling")))
    return found


def rows(found: Sequence[Judged]) -> Iterator[tuple[str, ...]]:
    """Library, what, GPU, measurements, errors fitted and held out, what a good form owes."""
    for one in found:
        library = one.travel.library.partition(", ")[0]
        errors = text_of(one.fitted), text_of(one.held_out)
        yield library, one.what, one.travel.gpu, f"{len(one.travel):,}", *errors, one.owed


def profile_lines(found: Sequence[Judged]) -> Iterator[str]:
    """Constants as the kernel profiles hold them."""
    for one in found:
        told = ", ".join(f"{name}: {_shown(name, value)}" for name, value in one.values.items())
        errors = ", ".join(
            f"{name}: {{median: {e.median:.1%}, p90: {e.p90:.1%}}}"
            for name, e in (("fit", one.fitted), ("held_out", one.held_out))
            if e is not None
        )
        of = f"{one.travel.library} on {one.travel.gpu}, {one.what}"
        yield f"{of}: {told}; {errors}; {SOURCE}, {len(one.travel)} measurements"


def _shown(name: str, value: float) -> str:
    if name in ("scale_up", "scale_out"):
        return f"{value:.0%}"
    if name in ("softness", "slower", "copied", "all_reduce"):
        return f"{value:.2f}"
    if name == "handshake_bytes":
        return f"{value / 1000:.0f} kB"
    return f"{value * 1e6:.3g} us" if value >= 1e-7 else f"{value * 1e9:.3g} ns"
