"""Digits with what a model took them for, as a picture."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure

_COLUMNS = 10


def grid(pictures: UInt8[np.ndarray, "N S S"], classes: Int[np.ndarray, " N"], guesses: Int[np.ndarray, " N"]) -> bytes:
    """A PNG, ten digits a row; above each the guess, in red and with the class where it is wrong."""
    rows = -(-len(pictures) // _COLUMNS)
    figure = Figure(figsize=(0.8 * _COLUMNS, rows))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for place in axes:
        place.axis("off")
    for place, picture, digit, guess in zip(axes, pictures, classes, guesses, strict=False):
        place.imshow(picture, cmap="gray_r", vmin=0, vmax=255)
        right = digit == guess
        place.set_title(f"{guess}" if right else f"{guess} (is {digit})", fontsize=8, color="black" if right else "red")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
