"""Speech features, vocoder and distortions, against librosa's numbers, formulas written out, and brute force."""

from __future__ import annotations

import io
import itertools
import wave

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tts import features, metrics
from tasks.tts.vocoder import analysed, griffin_lim, synthesised, wav


def chirp(frequency: float, count: int, phase: float = 0.0) -> torch.Tensor:
    """A tone, a rising partial and a sweep: the signal that librosa's numbers below are of."""
    t = np.arange(count) / 22_050
    tone = 0.3 * np.sin(2 * np.pi * frequency * t + phase)
    partial = 0.1 * np.sin(2 * np.pi * 3 * frequency * t * (1 + 0.1 * t))
    return torch.from_numpy(tone + partial + 0.02 * np.sin(2 * np.pi * 5000 * t**2))


def harmonics(frequency: float, count: int = 11_025) -> np.ndarray:
    t = np.arange(count) / 22_050
    return sum(0.2 / k * np.sin(2 * np.pi * k * frequency * t + k) for k in range(1, 9))


# librosa 0.11.0, librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=20, fmax=8000), in float32.
def test_mel_filters_are_librosa_s():
    filters = features.mel_filters(1024, 20.0, 8000.0, "slaney")
    assert filters.shape == (80, 513)
    assert filters[40].argmax() == 81
    found = [filters.sum(), filters[10].max(), filters[79].sum(), (filters**2).sum()]
    np.testing.assert_allclose(found, [3.7139044, 0.024293166, 0.046433598, 0.040262945], rtol=1e-5)  # theirs: float32


def test_htk_filters_are_triangles_over_their_corners():
    filters = features.mel_filters(1102, 20.0, 11_025.0, "htk")
    low, high = (2595 * np.log10(1 + f / 700) for f in (20.0, 11_025.0))
    corners = [700 * (10 ** ((low + (high - low) * i / 81) / 2595) - 1) for i in range(82)]
    frequencies = [22_050 * k / 1102 for k in range(552)]
    for band in range(80):
        expected = np.interp(frequencies, corners[band : band + 3], [0.0, 1.0, 0.0], left=0.0, right=0.0)
        np.testing.assert_allclose(filters[band], expected, atol=1e-10)  # float64


# librosa.feature.melspectrogram(n_fft=1024, hop_length=256, fmin=20, fmax=8000, power=1, pad_mode="reflect"), clipped
# at 1e-5, logarithm; of chirp(180, 9000).
def test_log_mel_is_librosa_s():
    found = features.log_mel(chirp(180.0, 9000))
    assert found.shape == (36, 80)
    expected = [-5.17652092, -9.13214869, -5.39630644, -11.51292546, -11.51292546]
    np.testing.assert_allclose(found[17, [0, 20, 40, 60, 79]], expected, atol=1e-4)  # their filters are float32
    np.testing.assert_allclose([found.mean(), found.std(correction=0)], [-8.21934500701, 3.84848213509], atol=1e-4)


# librosa.feature.mfcc of log(melspectrogram(n_fft=1102, hop_length=275, fmin=20, fmax=11025, power=2, htk=True,
# norm=None) + 1e-6), 13 coefficients, norm="ortho"; librosa.sequence.dtw of the root mean squares of the differences.
def test_distortions_are_librosa_s():
    first, second = metrics.features(chirp(180.0, 9000)), metrics.features(chirp(200.0, 7500, 0.5))
    assert first.cepstrum.shape == (33, 13)
    np.testing.assert_allclose(first.cepstrum[5, :3], [-90.88065788, 38.94174098, 20.68456946], rtol=1e-5)
    np.testing.assert_allclose(first.spectrum[5, :3], [-11.9509223, -11.20461457, -9.24269202], rtol=1e-5)
    found = metrics.distortion(first, second)
    assert found.frames == 28
    np.testing.assert_allclose([found.cepstral, found.spectral], [125.18695785, 87.31897360], rtol=1e-5)


def test_an_utterance_does_not_differ_from_itself():
    first = metrics.features(chirp(150.0, 6000))
    assert metrics.distortion(first, first)[:2] == pytest.approx((0.0, 0.0), abs=1e-4)  # sqrt of roundings of 1e-11


def brute_force(distance: np.ndarray) -> float:
    """The cheapest of all paths, each tried."""

    def cheapest(i: int, j: int) -> float:
        if (i, j) == (0, 0):
            return distance[0, 0]
        steps = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        return distance[i, j] + min(cheapest(*step) for step in steps if min(step) >= 0)

    return cheapest(distance.shape[0] - 1, distance.shape[1] - 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_warping_finds_the_cheapest_path(rows, columns, seed):
    distance = np.random.default_rng(seed).random((rows, columns))
    assert metrics.warped(distance) == pytest.approx(brute_force(distance), abs=1e-12)  # float64 sums of few terms


@pytest.mark.parametrize("frequency", [80.0, 101.7, 163.0, 240.0, 390.0])
def test_pitch_of_a_harmonic_tone(frequency):
    found = features.pitch(harmonics(frequency))
    assert found.shape == (1 + 11_025 // 256,)
    inside = found[4:-4]  # frames at the ends see zeros
    # A period is a whole number of samples: half of one off at most.
    assert np.abs(22_050 / inside - 22_050 / frequency).max() <= 0.51


def test_noise_and_silence_have_no_pitch():
    rng = np.random.default_rng(0)
    voiced = np.concatenate((np.zeros(6000), 0.5 * harmonics(120.0), np.zeros(6000), 0.3 * rng.normal(size=6000)))
    found = features.pitch(voiced)
    assert not found[:21].any()
    assert found[28:60].all()
    assert (found[-20:] > 0).mean() < 0.2
    assert not features.pitch(np.zeros(3000)).any()


def test_gaps_in_the_pitch_are_filled():
    np.testing.assert_array_equal(features.without_gaps(np.array([0, 2.0, 0, 4.0, 0])), [2, 2, 3, 4, 4])
    assert not features.without_gaps(np.zeros(3)).any()


def test_means_per_phoneme():
    values, durations = np.array([1.0, 3.0, 5.0, 9.0]), np.array([2, 0, 2, 0])
    np.testing.assert_array_equal(features.mean_per_phoneme(values, durations), [2.0, 5.0, 7.0, 9.0])


def test_energy_is_the_norm_of_the_spectrum():
    waveform = chirp(180.0, 2000)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frame = np.fft.rfft(waveform.numpy()[512:1536] * window)  # centred on sample 1024, the fifth frame's
    found = features.log_energy(waveform)
    assert found[4].item() == pytest.approx(np.log1p(np.sqrt((np.abs(frame) ** 2).sum())), abs=1e-9)


def test_a_waveform_shorter_than_half_a_window_is_named():
    with pytest.raises(ValueError, match="300 samples"):
        features.log_mel(torch.zeros(300))


def test_the_vocoder_s_transform_is_torch_s_and_inverts():
    waveform = chirp(180.0, 256 * 30).float()
    spectrum = torch.stft(waveform, 1024, 256, window=torch.hann_window(1024), return_complex=True)
    found = analysed(waveform.numpy())
    np.testing.assert_allclose(found.T, spectrum, atol=1e-3)  # float32 sums of 1,024 terms
    np.testing.assert_allclose(synthesised(found), waveform, atol=1e-5)
    other = found * np.random.default_rng(0).normal(size=found.shape).astype(np.float32)
    expected = torch.istft(torch.from_numpy(other.T), 1024, 256, window=torch.hann_window(1024))
    np.testing.assert_allclose(synthesised(other), expected, atol=1e-4)


def test_griffin_lim_comes_back_to_the_spectrogram():
    noise = 0.1 * torch.randn(256 * 60, generator=torch.Generator().manual_seed(0))
    mel = features.log_mel(noise)
    waveform = griffin_lim(mel)
    assert waveform.shape == (256 * 60,)
    again = features.log_mel(waveform)
    loud = mel > -6
    first = features.log_mel(griffin_lim(mel, iterations=0))
    error = (again - mel).abs()[loud].mean()
    assert error < 0.25  # phases cannot be had exactly; random ones leave several times as much
    assert error < 0.5 * (first - mel).abs()[loud].mean()
    assert torch.equal(waveform, griffin_lim(mel))


def test_short_speech_can_be_scored():
    for frames in (1, 2, 3):
        waveform = griffin_lim(torch.full((frames, 80), -3.0))
        assert metrics.features(waveform).spectrum.shape[0] >= 1
        assert np.isfinite(metrics.features(waveform).cepstrum).all()


def test_wav_file():
    for scale in (0.5, 4.0):
        with wave.open(io.BytesIO(wav(scale * torch.tensor([0.0, 1.0, -1.0, 0.25]))), "rb") as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22_050)
            values = np.frombuffer(file.readframes(4), "<i2")
        np.testing.assert_allclose(values, np.array([0, 1, -1, 0.25]) * 32767 * min(scale, 1.0), atol=0.5)  # rounding


def test_distances_are_root_mean_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 13)), rng.normal(size=(3, 13))
    found = metrics.distances(a, b)
    for i, j in itertools.product(range(4), range(3)):
        assert found[i, j] == pytest.approx(np.sqrt(np.mean((a[i] - b[j]) ** 2)), abs=1e-12)
