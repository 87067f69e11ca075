"""Mel-cepstral and mel-spectral distortion (MCD, MSD), as fairseq's speech evaluation computes them. Knows no task.

Sources: R. J. Weiss et al., "Wave-Tacotron", ICASSP 2021, arXiv:2011.03568, section 3 (the figures of merit);
fairseq, ``examples/speech_synthesis/evaluation/eval_sp.py`` (column ``dist_per_syn_frm``, which CAB prints),
``examples/speech_synthesis/utils.py`` and ``fairseq/tasks/text_to_speech.py``. The definition, exactly:

1. Both utterances are waveforms that Griffin-Lim made from mel spectrograms (the reference too: the option
   ``--use-resynthesized-target`` of fairseq's example).
2. Power spectra of Hann windows of 1,102 samples (50 ms) every 275 (12.5 ms), centred, reflected at the ends; 80 mel
   bands from 20 to 11,025 Hz on the HTK scale, triangles of height 1; then ``log(power + 1e-6)``. That is MSD's vector.
3. MCD's vector: the first 13 coefficients, the zeroth among them, of the orthonormal DCT-II of MSD's vector.
4. The distance of two frames is the root mean square of the differences of their coefficients.
5. Dynamic time warping without constraint: the path from the first to the last pair, by steps (1, 0), (0, 1), (1, 1),
   with the least sum of distances. ``distortion`` is that sum.
6. Over a set of utterances: sum of distortions / sum of frames of the *synthesised* utterances.

So the value has no factor 10 sqrt(2) / ln 10, which other definitions of MCD in dB have. Because of step 6, frames too
many lower the value: read it beside the error of the length.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import scipy.fft
import torch
from jaxtyping import Float
from torch import Tensor

from tasks.tts.features import SAMPLE_RATE, magnitudes, mel_filters

WINDOW = int(0.05 * SAMPLE_RATE)
HOP = int(0.0125 * SAMPLE_RATE)
LOWEST = 20.0
OFFSET = 1e-6  # of the power
COEFFICIENTS = 13


class Features(NamedTuple):
    """What is compared of an utterance of T frames: MSD's vectors and MCD's vectors."""

    spectrum: Float[np.ndarray, "T 80"]
    cepstrum: Float[np.ndarray, "T 13"]


class Distortion(NamedTuple):
    """Sums of distances along the cheapest path, and the frames of the synthesised utterance."""

    cepstral: float
    spectral: float
    frames: int


@cache
def _filters() -> Tensor:
    return torch.from_numpy(mel_filters(WINDOW, LOWEST, SAMPLE_RATE / 2, "htk"))


def features(waveform: Float[Tensor, " N"]) -> Features:
    """Steps 2 and 3, in float64."""
    power = magnitudes(waveform.detach().cpu().double(), WINDOW, HOP) ** 2
    spectrum = ((power @ _filters().T) + OFFSET).log().numpy()
    return Features(spectrum, scipy.fft.dct(spectrum, type=2, norm="ortho", axis=1)[:, :COEFFICIENTS])


def distances(a: Float[np.ndarray, "Ta C"], b: Float[np.ndarray, "Tb C"]) -> Float[np.ndarray, "Ta Tb"]:
    """Step 4: ``sqrt(mean_c (a_ic - b_jc)^2)``."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0) / a.shape[1])


def warped(distance: Float[np.ndarray, "Ta Tb"]) -> float:
    """Step 5: ``D(i, j) = d(i, j) + min(D(i-1, j), D(i, j-1), D(i-1, j-1))``; D at the last pair.

    Cells with equal i + j do not depend on each other and are computed at once.
    """
    rows, columns = distance.shape
    previous = np.full(rows + 1, np.inf)  # D(i, s - i) at i + 1, of the diagonal s = i + j before; inf outside
    before = previous.copy()  # of the diagonal before that
    before[0] = 0.0  # the path starts at the first pair for nothing
    for total in range(rows + columns - 1):
        first, last = max(0, total - columns + 1), min(rows - 1, total)
        i = np.arange(first, last + 1)
        step = np.minimum(np.minimum(previous[i + 1], previous[i]), before[i])
        current = np.full(rows + 1, np.inf)
        current[i + 1] = distance[i, total - i] + step
        before, previous = previous, current
    return float(previous[rows])


def distortion(reference: Features, synthesised: Features) -> Distortion:
    """Both sums for a pair of utterances."""
    return Distortion(
        warped(distances(reference.cepstrum, synthesised.cepstrum)),
        warped(distances(reference.spectrum, synthesised.spectrum)),
        len(synthesised.spectrum),
    )
