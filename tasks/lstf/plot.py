"""A forecast as a picture: what was known, what came, what was said; a panel per channel."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

PANELS = 4
_INPUT, _TARGET, _FORECAST = "#595959", "#0072b2", "#d55e00"  # told apart by colour-blind readers too


@dataclass(frozen=True)
class Shown:
    """One window in the units of the data: L known steps and H wanted ones of C channels."""

    times: np.ndarray
    inputs: Float[np.ndarray, "L C"]
    targets: Float[np.ndarray, "H C"]
    forecast: Float[np.ndarray, "H C"]
    names: tuple[str, ...]


def panel_channels(channels: int) -> list[int]:
    """At most four channels, evenly spread from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, channels - 1, min(PANELS, channels)).tolist()})


def forecast_png(shown: Shown, title: str) -> bytes:
    """PNG, 960 pixels wide."""
    channels = panel_channels(len(shown.names))
    known = len(shown.inputs)
    figure = Figure(figsize=(9.6, 1.0 + 1.6 * len(channels)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(channels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, channel in zip(panels, channels, strict=True):
        # Target and forecast begin at the last known value, so that the lines meet.
        last = shown.inputs[-1:, channel]
        panel.plot(shown.times[:known], shown.inputs[:, channel], color=_INPUT, label="input")
        for values, color, label in ((shown.targets, _TARGET, "target"), (shown.forecast, _FORECAST, "forecast")):
            panel.plot(shown.times[known - 1 :], np.concatenate((last, values[:, channel])), color=color, label=label)
        panel.axvline(shown.times[known - 1], color="#bfbfbf", linewidth=0.8)
        panel.set_title(shown.names[channel], loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
