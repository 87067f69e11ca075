"""Figures of a drop-in study: quality against memory and time, and how fast singular values decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cab.report.figures import MUTED, WIDTH, bars, freeze, plain_ticks, style, wants_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class StudyPoint:
    """Memory and time relative to exact attention, and quality, with intervals where there are any.

    ``budget`` is the nominal share of the weights, where the setting has one.
    """

    budget: float | None
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
    wide: ClassVar[bool] = True  # of three panels: takes the width of a page

    def draw(self) -> Canvas:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(2.2 * WIDTH, 4.4), layout="constrained")
        canvas.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        columns = canvas.subplots(1, 3, sharey=True)
        for axes, (label, place) in zip(columns, _PLACES.items(), strict=True):
            _draw(axes, self, place)
            axes.set_xlabel(f"{label} ÷ exact attention's")
        better = "higher" if self.higher_is_better else "lower"
        columns[0].set_ylabel(f"{self.y_label}, {better} is better")
        canvas.legend(*columns[1].get_legend_handles_labels(), loc="outside right center", fontsize=8.5, frameon=False)
        freeze(canvas)
        return canvas


# What stands on the x axis, and the place with its interval.
_Place = tuple[float | None, float | None, float | None]
_PLACES: Mapping[str, Callable[[StudyPoint], _Place]] = {
    "weights kept (nominal)": lambda point: (point.budget, None, None),
    "peak memory": lambda point: (point.memory, None, None),
    "time": lambda point: (point.time, point.time_low, point.time_high),
}


def _draw(axes: Axes, figure: StudyFigure, place: Callable[[StudyPoint], _Place]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    values = [point.quality for curve in figure.curves for point in curve.points]
    if wants_log(values, figure.higher_is_better):
        axes.set_yscale("log")
    plain_ticks(axes)
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.axhline(figure.curves[0].points[0].quality, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for curve in figure.curves:
        colour, marker, dash = style(curve.attention, figure.attentions)
        points = [
            (point, at, low, high) for point in curve.points for at, low, high in [place(point)] if at is not None
        ]
        x, y = [at for _, at, _, _ in points], [point.quality for point, *_ in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.2, linestyle=dash, label=curve.attention)
        colours = [colour] * len(x)
        bars(axes.vlines, [(at, p.low, p.high) for p, at, _, _ in points], colours, linewidth=1)
        bars(axes.hlines, [(p.quality, low, high) for p, _, low, high in points], colours, linewidth=1)
    lowest, highest = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if highest < 50 * lowest else (1, 3)))


@dataclass(frozen=True)
class SpectrumFigure:
    """By layer the singular values of the dense weights, the mean over heads, the largest being one."""

    name: str
    title: str
    layers: tuple[tuple[float, ...], ...]
    wide: ClassVar[bool] = False

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
