"""Residuals of kernels that do not follow the form, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy.judged import Judged

_COLUMNS = 4


def plot_residuals(strays: Sequence[Judged], path: Path) -> None:
    """Predicted over measured time against measured time, a panel for each kernel; needs matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # only drawing needs it

    rows = -(-len(strays) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 2.3 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True)).ravel()
    for panel, one in zip(panels, strays, strict=False):
        measured_N = one.points.seconds_N
        panel.loglog(measured_N * 1e6, one.fit.seconds(one.points) / measured_N, ".", markersize=2, color="#3b6ea8")
        panel.axhline(1.0, color="black", linewidth=0.7)
        title = f"{one.points.gpu.name}, {one.points.work}, {one.points.name}\n{one.points.kernel}"
        panel.set_title(title, fontsize=6)
        panel.tick_params(labelsize=6)
    for panel in panels[len(strays) :]:
        panel.set_visible(False)
    figure.supxlabel("measured time, us", fontsize=8)
    figure.supylabel("predicted / measured", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72, metadata={"Software": None})
