"""Figures of a drop-in study: quality against memory and time, and how fast singular values decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cab.report.figures import MUTED, WIDTH, bars, freeze, plain_ticks, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class StudyPoint:
    """Memory and time relative to exact attention, and quality, with intervals where there are any."""

    memory: float
    time: float
    time_low: float | None
    time_high: float | None
    quality: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """A mechanism: its budgets, from the largest."""

    attention: str
    points: tuple[StudyPoint, ...]


@dataclass(frozen=True)
class StudyFigure:
    name: str
    title: str
    y_label: str
    higher_is_better: bool
    attentions: tuple[str, ...]
    curves: tuple[Curve, ...]

    def draw(self) -> Canvas:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(2 * WIDTH, 4.6), layout="constrained")
        canvas.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        memory, time = canvas.subplots(1, 2, sharey=True)
        for axes, label, of_time in ((memory, "peak memory", False), (time, "time", True)):
            _draw(axes, self, of_time)
            axes.set_xlabel(f"{label} of the attention, relative to exact attention (log)")
        better = "higher" if self.higher_is_better else "lower"
        memory.set_ylabel(f"{self.y_label}, {better} is better")
        handles, labels = memory.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside right center", fontsize=8.5, frameon=False)
        freeze(canvas)
        return canvas


def _draw(axes: Axes, figure: StudyFigure, of_time: bool) -> None:
    axes.set_xscale("log")
    values = [point.quality for curve in figure.curves for point in curve.points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    plain_ticks(axes)
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for curve in figure.curves:
        colour, marker, dash = style(curve.attention, figure.attentions)
        x = [point.time if of_time else point.memory for point in curve.points]
        y = [point.quality for point in curve.points]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.2, linestyle=dash, label=curve.attention)
        colours = [colour] * len(x)
        bars(axes.vlines, [(at, p.low, p.high) for at, p in zip(x, curve.points, strict=True)], colours, linewidth=1)
        if of_time:
            bars(axes.hlines, [(p.quality, p.time_low, p.time_high) for p in curve.points], colours, linewidth=1)


@dataclass(frozen=True)
class SpectrumFigure:
    """By layer the singular values of the dense weights, the mean over heads, the largest being one."""

    name: str
    title: str
    layers: tuple[tuple[float, ...], ...]

    def draw(self) -> Canvas:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(WIDTH, 3.6), layout="constrained")
        canvas.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        axes = canvas.subplots()
        names: Sequence[str] = [f"layer {number}" for number in range(1, len(self.layers) + 1)]
        for name, values in zip(names, self.layers, strict=True):
            colour, _, dash = style(name, names)
            axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=dash, linewidth=1.3, label=name)
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(1e-6, min(min(values) for values in self.layers)))
        axes.set_xlabel("number of the singular value, from the largest")
        axes.set_ylabel("relative to the largest")
        axes.legend(fontsize=8, frameon=False, ncols=2)
        freeze(canvas)
        return canvas
