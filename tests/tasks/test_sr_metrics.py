"""PSNR and SSIM against their definitions, computed by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from tasks.sr import metrics


def wang_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, of one colour: Gaussian window of 11 x 11, inside the picture only."""

    def local(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, sigma=1.5, radius=5)[5:-5, 5:-5]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


@pytest.mark.parametrize("side", [16, 31])
def test_ssim_is_wang_s(side):
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.integers(256, size=(3, side, side, 3)).astype(float), (0, 1, 1, 0))
    target = target.astype(np.uint8)
    output = np.clip(target + rng.normal(scale=12, size=target.shape), 0, 255).astype(np.uint8)
    expected = [
        np.mean([wang_ssim(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(output, target, strict=True)
    ]
    assert 0.2 < np.mean(expected) < 0.98
    # Both are float64; torchmetrics makes its window in float32.
    assert metrics.ssim(output, target) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_picture_with_itself_is_one():
    picture = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    assert metrics.ssim(picture, picture) == pytest.approx([1.0, 1.0])


def test_psnr_by_hand():
    target = np.full((2, 4, 4, 3), 100, dtype=np.uint8)
    output = target.copy()
    output[0] += 10  # everywhere 10 levels: 20 log10(255 / 10)
    output[1, 0, 0, 0] = 0  # no overflow of the difference, and one value of 48
    squared = metrics.squared_error(output, target)
    assert squared == pytest.approx([100.0, 100.0**2 / 48])
    assert metrics.psnr(squared)[0] == pytest.approx(20 * np.log10(25.5))


def test_a_perfect_picture_has_a_finite_psnr():
    assert metrics.psnr(np.array([0.0])) == pytest.approx(10 * np.log10(255**2 * 12))


def test_bytes_come_back_and_values_outside_are_clipped():
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(metrics.to_bytes(metrics.from_bytes(picture)), picture)
    assert metrics.from_bytes(picture).min() == -1
    assert metrics.from_bytes(picture).max() == 1
    assert metrics.to_bytes(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).ravel().tolist() == [0, 255]
