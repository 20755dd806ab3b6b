"""Writes fitted curves into the profiles: `efficiency:` of the GPUs measured, and the curves for all others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.accuracy.compute import SOURCE, WORKS, ComputeFits
from benchmarks.accuracy.fitting import Fit
from planner.inputs import profiles
from planner.inputs.efficiency import Errors, Work

_REST: Final = re.compile(r"\n(?=(?:#[^\n]*\n)*overlap:)")
"""Before what follows the curves in `efficiency.yaml`, with its comment."""


def write_profiles(fits: ComputeFits) -> Iterator[Path]:
    """Replace the curves in `profiles/`, everything else as it stands; yields the files written.

    In a GPU's profile `efficiency:` comes last; in `efficiency.yaml` what is no curve follows them.
    """
    for gpu, block in _gpu_blocks(fits):
        path = profiles.folder() / "gpus" / f"{gpu}.yaml"
        before, _, _ = path.read_text(encoding="utf-8").partition("\nefficiency:\n")
        path.write_text(f"{before.rstrip()}\n{block}\n", encoding="utf-8", newline="\n")
        yield path
    path = profiles.folder() / "efficiency.yaml"
    before, _, curves = path.read_text(encoding="utf-8").partition("\nexperts:\n")
    _, after = _REST.split(curves, maxsplit=1)
    path.write_text(f"{before}\n{_default_block(fits)}\n{after}", encoding="utf-8", newline="\n")
    yield path


def _gpu_blocks(fits: ComputeFits) -> Iterator[tuple[str, str]]:
    by_gpu: dict[str, dict[Work, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (gpu, work, name), chosen in fits.fastest.items():
        curves = []
        for number, one in enumerate(chosen.kernels):
            source = f"{SOURCE}, {one.points.kernel}, {len(one.points)} measurements"
            curves.append(
                _curve_text(
                    one.fit, "fitted", source, one.points.engine, fit=one.fit_errors, held_out=chosen.errors_of(number)
                )
            )
        single = len(curves) == 1
        by_gpu[gpu][work] += (
            [f"    {name}: {curves[0]}"] if single else [f"    {name}:", *(f"      - {c}" for c in curves)]
        )
    for gpu in sorted(by_gpu):
        lines = ["efficiency:"]
        for work in WORKS:
            lines += [f"  {work}:", *by_gpu[gpu][work]] if by_gpu[gpu][work] else []
        yield gpu, "\n".join(lines)


def _default_block(fits: ComputeFits) -> str:
    lines = []
    for work in WORKS:
        if any(of == work for of, _ in fits.transferred):
            lines.append(f"{work}:")
        for (of, name), pooled in sorted(fits.transferred.items()):
            if of == work:
                kernels = dict.fromkeys(group.kernel for group in pooled.groups)
                gpus = ", ".join(group.gpu.name for group in pooled.groups)
                source = f"{SOURCE}, {' or '.join(kernels)} on {gpus}"
                text = _curve_text(pooled.fit, "transferred", source, held_out=pooled.carried_over)
                lines.append(f"  {name}: {text}")
    return "\n".join(lines)


def _curve_text(curve: Fit, basis: str, source: str, engine: str | None = None, **errors: Errors | None) -> str:
    r = curve.roofline
    values = [f"base: {r.base * 1e6:.3g} us"]
    if r.per_expert:
        values.append(f"per_expert: {r.per_expert * 1e9:.3g} ns")
    values += [f"compute: {round(r.compute * 100)}%", f"memory: {round(r.memory * 100)}%"]
    if r.activation is not None:
        values.append(f"activation: {round(r.activation * 100)}%")
    if r.serial:
        values.append(f"serial: {r.serial * 1e9:.3g} ns")
    values.append(f"exponent: {r.exponent:g}")
    told = [f"{name}: {{median: {one.median:.1%}, p90: {one.p90:.1%}}}" for name, one in errors.items() if one]
    of = [] if engine is None else [f"engine: {engine}"]
    parts = [f"value: {{{', '.join(values)}}}", *of, f"basis: {basis}", *told, f'source: "{source}"']
    return f"{{{', '.join(parts)}}}"
