"""Partial, completed and true cloud side by side, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

HEADINGS = ("partial", "completed", "truth")


def draw(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """A PNG with a row per shape (name and its three clouds, [N, 3] each), coloured by height."""
    figure = Figure(figsize=(7.0, 2.4 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(HEADINGS), subplot_kw={"projection": "3d"}, squeeze=False)
    for (name, clouds), line in zip(rows, panels, strict=True):
        truth = clouds[-1]
        centre, half = (truth.max(0) + truth.min(0)) / 2, np.ptp(truth, axis=0).max() / 2
        for cloud, heading, axes in zip(clouds, HEADINGS, line, strict=True):
            axes.scatter(*cloud.T, c=cloud[:, 2], s=2, cmap="viridis", linewidths=0)
            axes.set(**{f"{axis}lim": (c - half, c + half) for axis, c in zip("xyz", centre, strict=True)})
            axes.set_box_aspect((1, 1, 1), zoom=1.1)
            axes.set_axis_off()
            axes.set_title(f"{name}: {heading}" if heading == HEADINGS[0] else heading, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=75)
    return buffer.getvalue()
