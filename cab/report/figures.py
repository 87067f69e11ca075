"""The two figures of a pattern: quality against time, and time against length. Same data, same bytes.

Text stays text in the SVG, and its colours are those of ``INK``, ``MUTED``, ``GRID``, ``PAPER`` and ``COLOURS`` only: a
page can map each of them to its light or dark scheme. The hues are those of Okabe and Ito (2008), darkened where they
would be too faint for text on white; no two lines are told apart by hue alone, as each carries its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tasks.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID, PAPER = "#1b1b1f", "#5a5a66", "#dcdce2", "#ffffff"
COLOURS = ("#0060a8", "#b84300", "#00735a", "#9c3f7d", "#7a5c00", "#20758c", "#a01f2e", "#54478c", "#3f6b1f", "#6b4a33")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))

MOST_NAMES = 16  # in a panel; of more, only the best are named, and the tables hold all
WIDTH = 5.6  # inches; at half of a page the text of 10 points is still 6 to 7 points
DRAWING = 7  # changes whenever the same data would be drawn in another way

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cab",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


@dataclass(frozen=True)
class QualityPoint:
    """A setting: time ratio x and quality y, each with its interval where there is one."""

    setting: str
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None


@dataclass(frozen=True)
class QualityPanel:
    """One task; ``floor`` is the value of the trivial predictor named in ``floor_label``."""

    task: str
    y_label: str
    higher_is_better: bool
    points: tuple[QualityPoint, ...]
    floor_label: str = ""
    floor: float | None = None


@dataclass(frozen=True)
class QualityFigure:
    name: str
    title: str
    x_label: str
    settings: tuple[str, ...]
    panels: tuple[QualityPanel, ...]

    def draw(self) -> Canvas:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(WIDTH, 0.3 + 3.5 * len(self.panels)), layout="constrained")
        canvas.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        settings = self.settings
        all_axes = canvas.subplots(len(self.panels), 1, squeeze=False)[:, 0]
        for axes, panel in zip(all_axes, self.panels, strict=True):
            _draw_panel(axes, panel, settings)
        all_axes[-1].set_xlabel(self.x_label)
        freeze(canvas)
        for axes, panel in zip(all_axes, self.panels, strict=True):
            _label_points(axes, panel, settings)
        return canvas


@dataclass(frozen=True)
class CostCurve:
    """A setting's points (length, ratio, low, high) and, where it crosses 1 once, its length, low and high."""

    setting: str
    points: tuple[tuple[float, float, float | None, float | None], ...]
    crossing: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True)
class CostFigure:
    name: str
    title: str
    y_label: str
    baseline: str
    settings: tuple[str, ...]
    curves: tuple[CostCurve, ...]

    def draw(self) -> Canvas:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(WIDTH, 4.0), layout="constrained")
        canvas.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        axes = canvas.subplots()
        _draw_curves(axes, self)
        freeze(canvas)
        _label_ends(axes, self)
        return canvas


Figure = QualityFigure | CostFigure


class Drawable(Protocol):
    """A figure of a page: a dataclass whose fields are all that it is drawn from."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    def draw(self) -> Canvas: ...


def freeze(canvas: Canvas) -> None:
    """Lays the axes out once: names are then put where there is room, and stay there."""
    canvas.draw_without_rendering()
    canvas.set_layout_engine(None)  # "none" would keep one that has every file drawn twice


def front(points: Sequence[QualityPoint], higher_is_better: bool) -> list[QualityPoint]:
    """The points that no other point beats in both time and quality, by time."""
    sign = 1.0 if higher_is_better else -1.0
    kept: list[QualityPoint] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y, point.setting)):
        if not kept or sign * point.y > sign * kept[-1].y:
            kept.append(point)
    return kept


def _named(panel: QualityPanel) -> list[QualityPoint]:
    """The points that get their name: all, or of many those on the front."""
    return list(panel.points) if len(panel.points) <= MOST_NAMES else front(panel.points, panel.higher_is_better)


def style(setting: str, settings: Sequence[str]) -> tuple[str, str, Any]:
    """Colour, marker and line of a setting: no two of a hundred have the same three."""
    number = settings.index(setting)
    turn = number // len(COLOURS)  # each turn of the colours meets other markers and lines
    return (
        COLOURS[number % len(COLOURS)],
        MARKERS[(number + 3 * turn) % len(MARKERS)],
        DASHES[(number + turn) % len(DASHES)],
    )


def _draw_panel(axes: Axes, panel: QualityPanel, settings: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    values = [point.y for point in panel.points] + ([panel.floor] if panel.floor is not None else [])
    if wants_log(values, panel.higher_is_better):
        axes.set_yscale("log")
    plain_ticks(axes)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    best = front(panel.points, panel.higher_is_better)
    axes.step(
        [point.x for point in best], [point.y for point in best], where="post", color=MUTED, linewidth=1.2, zorder=1
    )
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    if panel.floor is not None:
        axes.axhline(panel.floor, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(
            panel.floor_label,
            (0.995, panel.floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=MUTED,
        )
    styles = [style(point.setting, settings) for point in panel.points]
    colours = [colour for colour, _, _ in styles]
    bars(axes.hlines, [(p.y, p.x_low, p.x_high) for p in panel.points], colours, linewidth=1)
    bars(axes.vlines, [(p.x, p.y_low, p.y_high) for p in panel.points], colours, linewidth=1)
    on_front = set(best)
    for shape in MARKERS:
        drawn = [(p, colour) for p, (colour, marker, _) in zip(panel.points, styles, strict=True) if marker == shape]
        axes.scatter(
            [point.x for point, _ in drawn],
            [point.y for point, _ in drawn],
            s=36,
            marker=shape,
            facecolors=[colour if point in on_front else PAPER for point, colour in drawn],
            edgecolors=[colour for _, colour in drawn],
            clip_on=False,
            zorder=3,
        )
    axes.margins(0.16, 0.18)
    axes.set_title(panel.task, fontsize=10, loc="left")
    axes.set_ylabel(panel.y_label)


def _draw_curves(axes: Axes, figure: CostFigure) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_ticks(axes)
    lengths = sorted({point[0] for curve in figure.curves for point in curve.points})
    axes.plot([lengths[0] / 1.15, lengths[-1]], [1.0, 1.0], color=INK, linewidth=1.4)
    for curve in figure.curves:
        colour, marker, dash = style(curve.setting, figure.settings)
        x, y = [point[0] for point in curve.points], [point[1] for point in curve.points]
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.3, linestyle=dash)
    points = [(curve.setting, point) for curve in figure.curves for point in curve.points]
    colours = [style(setting, figure.settings)[0] for setting, _ in points]
    bars(axes.vlines, [(point[0], *point[2:]) for _, point in points], colours, linewidth=1)
    if crossings := [(curve.setting, curve.crossing) for curve in figure.curves if curve.crossing is not None]:
        colours = [style(setting, figure.settings)[0] for setting, _ in crossings]
        bars(axes.hlines, [(1.0, low, high) for _, (_, low, high) in crossings], colours, linewidth=2, zorder=5)
        axes.scatter(
            [at for _, (at, _, _) in crossings],
            [1.0] * len(crossings),
            s=64,
            marker="D",
            facecolors=PAPER,
            edgecolors=colours,
            linewidths=1.6,
            clip_on=False,
            zorder=6,
        )
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(lengths) > 6:
        axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * (1.15 if len(lengths) == 1 else (lengths[-1] / lengths[0]) ** 0.42))
    few = f"\nthe fastest {MOST_NAMES} of {len(figure.curves)} are named" if len(figure.curves) > MOST_NAMES else ""
    axes.set_xlabel(f"length of the keys [tokens]; diamond: where the time crosses that of the baseline{few}")
    axes.xaxis.label.set_fontsize(8.5)
    axes.set_ylabel(figure.y_label)


def wants_log(values: Sequence[float], higher_is_better: bool) -> bool:
    """Perplexities and errors of good and of useless models differ by orders of magnitude; shares near zero do not."""
    return not higher_is_better and min(values) > 0 and max(values) > 20 * min(values)


def plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    def text(value: float, _: int) -> str:
        return f"{value:,.0f}" if value >= 10 else f"{value:g}"

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(text))
            axis.set_minor_locator(NullLocator())  # 1, 2 and 5 have labels; ticks without one take most of the time
    if axes.get_yscale() == "log":
        from matplotlib.ticker import LogLocator

        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))


def bars(
    lines: Callable[..., Any],
    found: Sequence[tuple[float, float | None, float | None]],
    colours: Sequence[str],
    **style: Any,
) -> None:
    """The intervals (place, low, high) across ``lines``, which is ``axes.hlines`` or ``axes.vlines``."""
    there = [
        (place, low, high, colour)
        for (place, low, high), colour in zip(found, colours, strict=True)
        if low is not None and high is not None
    ]
    if there:
        places, lows, highs, own = zip(*there, strict=True)
        lines(places, lows, highs, colors=own, clip_on=False, **style)


def _label_points(axes: Axes, panel: QualityPanel, settings: Sequence[str]) -> None:
    """Puts each name beside its point where it covers the least of points, intervals, front and names before it."""
    scale = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    places = [(point.setting, point.x, point.y) for point in _named(panel)]
    pixels = {point.setting: axes.transData.transform((point.x, point.y)) for point in panel.points}
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in pixels.values()]
    for p in panel.points:
        low = axes.transData.transform((p.x if p.x_low is None else p.x_low, p.y if p.y_low is None else p.y_low))
        high = axes.transData.transform((p.x if p.x_high is None else p.x_high, p.y if p.y_high is None else p.y_high))
        x, y = pixels[p.setting]
        taken += [(low[0], y - scale, high[0], y + scale), (x - scale, low[1], x + scale, high[1])]
    corners = [pixels[point.setting] for point in front(panel.points, panel.higher_is_better)]
    for (x0, y0), (x1, y1) in pairwise(corners):
        taken.append((x0, y0 - scale, x1, y0 + scale))
        taken.append((x1 - scale, min(y0, y1), x1 + scale, max(y0, y1)))
    for name, x, y in sorted(places, key=lambda place: (-pixels[place[0]][1], place[0])):
        at = pixels[name]
        width, height = (5.6 * len(name) + 2) * scale, 10 * scale
        best: tuple[float, float, float, str, tuple[float, float, float, float]] | None = None
        for distance in (8, 16, 26, 38):
            for dx, dy, align in _DIRECTIONS:
                left = at[0] + dx * distance * scale - (width if align == "right" else 0)
                bottom = at[1] + dy * distance * scale - height / 2
                box = (left, bottom, left + width, bottom + height)
                cost = sum(_shared(box, other) for other in taken) + 0.02 * distance * height
                cost += 3 * (width * height - _shared(box, (frame.x0, frame.y0, frame.x1, frame.y1)))
                if best is None or cost < best[0] - 1e-6:
                    best = (cost, dx * distance, dy * distance, align, box)
        assert best is not None
        taken.append(best[4])
        far = (best[1] ** 2 + best[2] ** 2) ** 0.5 > 12
        colour = style(name, settings)[0]
        axes.annotate(
            name,
            (x, y),
            xytext=(best[1], best[2]),
            textcoords="offset points",
            ha=best[3],
            va="center",
            fontsize=9,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0.0 if best[3] == "left" else 1.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            }
            if far
            else None,
        )


_DIRECTIONS = (
    (1.0, 0.0, "left"),
    (-1.0, 0.0, "right"),
    (0.7, 0.9, "left"),
    (0.7, -0.9, "left"),
    (-0.7, 0.9, "right"),
    (-0.7, -0.9, "right"),
)


def _shared(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _label_ends(axes: Axes, figure: CostFigure) -> None:
    """Names at the right ends, pushed apart until none covers another, with a thin line to the end it names."""
    scale = axes.figure.dpi / 72
    fastest = sorted(figure.curves, key=lambda curve: (curve.points[-1][1], curve.setting))[:MOST_NAMES]
    ends = [(curve.setting, *curve.points[-1][:2], style(curve.setting, figure.settings)[0]) for curve in fastest]
    right = max(x for _, x, _, _ in ends)
    ends.append((figure.baseline, right, 1.0, INK))
    wanted = [(float(axes.transData.transform((x, y))[1]), name, x, y, colour) for name, x, y, colour in ends]
    wanted.sort(key=lambda end: (end[0], end[1]))
    frame = axes.get_window_extent()
    gap = min(11 * scale, (frame.y1 - frame.y0) / len(wanted))
    heights = _apart([end[0] for end in wanted], gap, frame.y0 + gap / 2, frame.y1 - gap / 2)
    for height, (_, name, x, y, colour) in zip(heights, wanted, strict=True):
        edge = axes.transData.transform((right, 1.0))[0] + 16 * scale
        place = axes.transData.inverted().transform((edge, height))
        axes.annotate(
            name,
            (x, y),
            xytext=tuple(place),
            textcoords="data",
            ha="left",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),  # from the label's left end: from its middle the line would cross the name
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending positions at least ``gap`` apart within [low, high], each as near to its wanted one as a sweep gets."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, low, placed[-1] + gap if placed else low))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


# A hundredth of a point is less than any screen or printer shows.
_COORDINATES = re.compile(r'\b(?:d|x|y)="[^"]*"')
_LONG = re.compile(r"(\.\d\d)\d+")


def render(figure: Drawable) -> tuple[bytes, bytes]:
    """A figure as (SVG, PNG), with no date and no version in either."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        canvas = figure.draw()
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": figure.title})
        canvas.savefig(png, format="png", dpi=200, metadata={"Software": None})
    # Ids are unique in a file only; a page holds several of them.
    text = svg.getvalue().decode()
    text = re.sub(r'\bid="', f'id="{figure.name}-', text)
    text = re.sub(r'href="#', f'href="#{figure.name}-', text)
    text = re.sub(r"url\(#", f"url(#{figure.name}-", text)
    text = _COORDINATES.sub(lambda found: _LONG.sub(r"\1", found[0]), text)
    return text.encode(), png.getvalue()


@dataclass(frozen=True)
class Drawn:
    """A figure on disk; ``stale`` where its data have changed since it was drawn."""

    figure: Drawable
    svg: Path
    png: Path
    stale: bool


def write_figures(folder: Path, figures: Sequence[Drawable], *, redraw: bool = True) -> list[Drawn]:
    """Writes ``<name>.svg`` and ``<name>.png``; what was drawn from the same data before is left as it is.

    With ``redraw`` false nothing is drawn, and what is there is returned: for pages rebuilt while results come in.
    """
    index = folder / "inputs.json"
    before = _read_index(index)
    keys = {figure.name: _key(figure) for figure in figures}
    drawn = []
    for figure in figures:
        svg, png = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
        current = before.get(figure.name) == keys[figure.name] and svg.exists() and png.exists()
        if redraw and not current:
            for path, content in zip((svg, png), render(figure), strict=True):
                write_whole(path, content)
        if svg.exists() and png.exists():
            drawn.append(Drawn(figure, svg, png, stale=not (current or redraw)))
    if redraw and keys != before:
        for name in before.keys() - keys.keys():
            (folder / f"{name}.svg").unlink(missing_ok=True)
            (folder / f"{name}.png").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        index.write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")
    return drawn


def _read_index(path: Path) -> dict[str, str]:
    """Which data each figure was drawn from; empty where unknown, so that everything is drawn again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(key) for name, key in content.items()} if isinstance(content, dict) else {}


def _key(figure: Drawable) -> str:
    content = {"data": asdict(cast(Any, figure)), "drawing": DRAWING, "matplotlib": version("matplotlib")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
