"""Spectrograms back to sound: Griffin-Lim, and WAV files. Knows no data set and no model.

D. Griffin and J. Lim, "Signal estimation from modified short-time Fourier transform", IEEE Trans. ASSP 32 (1984): from
random phases, go to the waveform and back, and keep the given magnitudes with the phases found. 32 times, as fairseq.
"""

from __future__ import annotations

import io
import wave
from functools import cache

import numpy as np
import scipy.fft
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tasks.tts.features import HOP, SAMPLE_RATE, SILENCE, WINDOW, filters

ITERATIONS = 32
_FEWEST_FRAMES = 8  # what is shorter gets silence, so that it can be analysed again
_PHASES = 0x6B1F  # the seed of the first phases: the same for every spectrogram


@cache
def _inverse_filters() -> np.ndarray:
    return np.linalg.pinv(filters().numpy()).astype(np.float32)


_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)


def analysed(waveform: Float[np.ndarray, " N"]) -> Shaped[np.ndarray, "T F"]:
    """The short-time Fourier transform, complex64, T = 1 + N // 256 (numpy's: small transforms on one core)."""
    padded = np.pad(waveform.astype(np.float32), WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return scipy.fft.rfft(frames * _HANN, axis=1)


def synthesised(spectrum: Shaped[np.ndarray, "T F"]) -> Float[np.ndarray, " N"]:
    """The waveform of 256 (T - 1) samples whose transform is nearest: windowed frames added, over the windows' squares.

    Griffin and Lim, eq. 6.
    """
    frames = scipy.fft.irfft(spectrum, WINDOW, axis=1) * _HANN
    added = _overlapped(frames) / np.maximum(_overlapped(np.broadcast_to(_HANN**2, frames.shape)), 1e-8)
    return added[WINDOW // 2 : -(WINDOW // 2)]


def _overlapped(frames: np.ndarray) -> np.ndarray:
    parts = WINDOW // HOP
    total = np.zeros((len(frames) + parts - 1, HOP), dtype=np.float32)
    for part in range(parts):
        total[part : part + len(frames)] += frames[:, part * HOP : (part + 1) * HOP]
    return total.ravel()


def griffin_lim(log_mel: Float[Tensor, "T M"], iterations: int = ITERATIONS) -> Float[Tensor, " N"]:
    """A waveform of 256 (max(T, 8) - 1) samples whose log-mel spectrogram is near the given one; deterministic.

    Magnitudes come from the pseudo-inverse of the mel filters, negative ones set to zero, as in fairseq.
    """
    given = log_mel.detach().cpu().float().numpy()
    given = np.pad(given, ((0, max(0, _FEWEST_FRAMES - len(given))), (0, 0)), constant_values=SILENCE)
    magnitude = np.maximum(np.exp(given) @ _inverse_filters().T, 0.0)
    angle = np.random.default_rng(_PHASES).uniform(0, 2 * np.pi, magnitude.shape)
    phase = np.exp(1j * angle).astype(np.complex64)
    for _ in range(iterations):
        spectrum = analysed(synthesised(magnitude * phase))
        phase = spectrum / np.maximum(np.abs(spectrum), 1e-12)
    return torch.from_numpy(synthesised(magnitude * phase))


def wav(waveform: Float[Tensor, " N"]) -> bytes:
    """A WAV file: one channel, 16 bits, 22,050 Hz; louder than 1 is scaled down, not clipped."""
    scaled = waveform.detach().cpu().double().numpy()
    scaled = scaled / max(1.0, float(np.abs(scaled).max(initial=0.0)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((scaled * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
