"""Speech as numbers: mel filters, log-mel spectrograms, energy and pitch of a waveform. Knows no data set and no model.

Settings are those of fairseq's LJSpeech example (``examples/speech_synthesis``), which CAB trained with: 22,050 Hz,
Hann windows of 1,024 samples every 256, 80 mel bands from 20 to 8,000 Hz, natural logarithm of magnitudes, at least
1e-5. Frame t is centred on sample 256 t; the waveform is reflected at its ends. Waveforms are in [-1, 1].
Shape letters: N samples, T frames, M mel bands.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SAMPLE_RATE = 22_050
WINDOW = 1_024
HOP = 256
BANDS = 80
LOWEST, HIGHEST = 20.0, 8_000.0  # Hz
SMALLEST = 1e-5  # magnitude; its logarithm is silence
SILENCE = float(np.log(SMALLEST))

PITCH_LOWEST, PITCH_HIGHEST = 65.0, 500.0  # Hz: what is searched
_VOICED = 0.5  # of the normalised autocorrelation's peak: below, a frame has no pitch
_QUIET = 0.01  # share of the utterance's largest amplitude: below, a frame has no pitch
_OCTAVE_COST = 0.02  # per octave, against taking a multiple of the period

Scale = Literal["slaney", "htk"]


def _to_mel(hertz: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    linear = hertz * 3 / 200  # up to 1 kHz, mel 15; then 27 mels to a factor of 6.4
    return np.where(hertz < 1000.0, linear, 15.0 + 27.0 * np.log(np.maximum(hertz, 1.0) / 1000.0) / np.log(6.4))


def _to_hertz(mel: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp((mel - 15.0) / 27.0 * np.log(6.4)))


def mel_filters(
    window: int, lowest: float, highest: float, scale: Scale, rate: int = SAMPLE_RATE, bands: int = BANDS
) -> Float[np.ndarray, "M F"]:
    """Triangles over the frequencies of a Fourier transform of ``window`` samples, F = window / 2 + 1.

    Corners are evenly spaced in mels from ``lowest`` to ``highest`` Hz. ``slaney``: the scale of Slaney's Auditory
    Toolbox, triangles of unit area in Hz; ``htk``: the scale of the Hidden Markov Model Toolkit, triangles of height 1.
    """
    low, high = _to_mel(np.array([lowest, highest]), scale)
    corners = _to_hertz(np.linspace(low, high, bands + 2), scale)
    frequencies = np.arange(window // 2 + 1) * (rate / window)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None] if scale == "slaney" else triangles


@cache
def filters() -> Tensor:
    """The filters of the spectrograms that the models predict, float64 ``[M, F]``."""
    return torch.from_numpy(mel_filters(WINDOW, LOWEST, HIGHEST, "slaney"))


def magnitudes(waveform: Float[Tensor, " N"], window: int = WINDOW, hop: int = HOP) -> Float[Tensor, "T F"]:
    """``|STFT|``, T = 1 + N // hop; ``ValueError`` for a waveform that is too short to be reflected."""
    if len(waveform) <= window // 2:
        raise ValueError(f"a waveform of {len(waveform)} samples is shorter than half a window of {window}")
    hann = torch.hann_window(window, dtype=waveform.dtype, device=waveform.device)
    return torch.stft(waveform, window, hop, window=hann, return_complex=True).abs().T


def log_mel(waveform: Float[Tensor, " N"]) -> Float[Tensor, "T M"]:
    """``log max(1e-5, filters |STFT|)``, T = 1 + N // 256."""
    return (magnitudes(waveform) @ filters().to(waveform).T).clamp(min=SMALLEST).log()


def log_energy(waveform: Float[Tensor, " N"]) -> Float[Tensor, " T"]:
    """``log(1 + || |STFT|_t ||_2)`` (FastSpeech 2, section 2.3; the logarithm as in fairseq)."""
    return magnitudes(waveform).norm(dim=1).log1p()


def pitch(waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, " T"]:
    """Fundamental frequency in Hz per frame, 0 where there is none (unvoiced, silent).

    Peak of the autocorrelation of a Hann-windowed frame over that of the window (Boersma, "Accurate short-term analysis
    of the fundamental frequency", 1993, eq. 9), less a cost per octave below the highest pitch.
    """
    window = np.hanning(WINDOW + 1)[:-1]
    padded = np.pad(np.asarray(waveform, dtype=np.float64), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    loud = np.abs(frames).max(axis=1) > _QUIET * max(float(np.abs(waveform).max()), 1e-9)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    correlation = _autocorrelation(frames) / _autocorrelation(window[None])
    zero = np.maximum(correlation[:, :1], 1e-12)
    lags = np.arange(int(SAMPLE_RATE / PITCH_HIGHEST), int(SAMPLE_RATE / PITCH_LOWEST) + 1)
    strength = correlation[:, lags] / zero
    best = np.argmax(strength - _OCTAVE_COST * np.log2(lags / lags[0]), axis=1)
    voiced = loud & (strength[np.arange(len(best)), best] > _VOICED)
    return np.where(voiced, SAMPLE_RATE / lags[best], 0.0)


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(frames, 2 * WINDOW, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :WINDOW]


def without_gaps(hertz: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Pitch with its unvoiced frames filled by straight lines, flat at the ends; all 0 where no frame is voiced."""
    voiced = np.flatnonzero(hertz)
    return np.interp(np.arange(len(hertz)), voiced, hertz[voiced]) if len(voiced) else hertz.astype(np.float64)


def mean_per_phoneme(values: Float[np.ndarray, " T"], durations: np.ndarray) -> Float[np.ndarray, " L"]:
    """Mean of the frames of each phoneme; one of no frame has the value of the frame at its place."""
    ends = np.cumsum(durations)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = values[np.minimum(ends, len(values) - 1)]
    return np.where(durations > 0, (sums[ends] - sums[ends - durations]) / np.maximum(durations, 1), at)
