"""Spectrograms as a picture: the target above the output."""

from __future__ import annotations

import io

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from tasks.tts.features import HOP, SAMPLE_RATE, SILENCE


def spectrograms(target: Float[Tensor, "Ta M"], output: Float[Tensor, "Tb M"], title: str) -> bytes:
    """A PNG: log-mel frames over seconds, both on one scale of time and of colour."""
    seconds = HOP / SAMPLE_RATE
    figure = Figure(figsize=(8, 4.5), dpi=80, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    longest = max(len(target), len(output)) * seconds
    for axis, mel, name in zip(axes, (target, output), ("target", "output"), strict=True):
        image = axis.imshow(
            mel.T.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, len(mel) * seconds, 0, mel.shape[1]),
            vmin=SILENCE,
            vmax=float(target.max()),
        )
        axis.set_xlim(0, longest)
        axis.set_ylabel(f"{name}: mel band")
    axes[1].set_xlabel("seconds")
    figure.suptitle(title if len(title) <= 110 else f"{title[:107]}...", fontsize=9)
    figure.colorbar(image, ax=axes, label="log magnitude")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
