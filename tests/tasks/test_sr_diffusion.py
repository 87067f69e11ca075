"""The schedule and the samplers against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.sr.diffusion import level_at, levels, noisy, sample, sampling_levels


def test_levels_are_the_products_of_the_schedule():
    schedule = levels(2000, 1e-6, 1e-2)
    assert len(schedule) == 2001
    assert schedule[0] == 1
    betas = 1 - (schedule[1:] / schedule[:-1]) ** 2
    assert betas == pytest.approx(np.linspace(1e-6, 1e-2, 2000), rel=1e-6)  # differences of numbers near 1
    # log of the last: minus half the sum of the betas, to second order in them.
    assert np.log(schedule[-1]) == pytest.approx(-0.5 * 2000 * 0.5 * (1e-6 + 1e-2), rel=0.01)


def test_level_at_interpolates_between_steps():
    schedule = np.array([1.0, 0.8, 0.2])
    assert level_at(np.array([0.0, 0.25, 0.5, 0.75]), schedule) == pytest.approx([1.0, 0.9, 0.8, 0.5])
    assert level_at(np.array([np.nextafter(1.0, 0.0)]), schedule) == pytest.approx([0.2])


def test_noisy_keeps_the_variance_of_unit_pictures():
    generator = torch.Generator().manual_seed(0)
    picture, noise = (torch.randn(2, 3, 200, 200, generator=generator) for _ in range(2))
    mixed = noisy(picture, noise, torch.tensor([0.3, 0.9]))
    assert mixed[0].std().item() == pytest.approx(1, abs=0.01)  # 120,000 values
    assert torch.allclose(noisy(picture, noise, torch.ones(2)), picture)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("adds_noise", [False, True])
def test_a_denoiser_that_knows_the_picture_gives_it_back(steps, adds_noise):
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1

    def denoiser(condition, y, level):
        g = level[:, None, None, None]
        return (y - g * picture) / (1 - g**2).sqrt()

    start = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
    fresh = (lambda step: torch.randn(picture.shape, generator=generator, dtype=torch.float64)) if adds_noise else None
    found = sample(denoiser, torch.zeros_like(picture), start, sampling_levels(steps, levels(100, 1e-4, 0.1)), fresh)
    assert torch.allclose(found, picture, atol=1e-12)


@pytest.mark.parametrize("adds_noise", [False, True])
def test_exact_denoiser_of_a_gaussian_samples_that_gaussian(adds_noise):
    """x ~ N(0, s^2) has E[e | y] = sqrt(1 - g^2) y / (g^2 s^2 + 1 - g^2), so samples must have the deviation s."""
    deviation, generator = 0.2, torch.Generator().manual_seed(0)
    shape = (1, 1, 150, 150)

    def denoiser(condition, y, level):
        g = level[:, None, None, None]
        return (1 - g**2).sqrt() * y / (g**2 * deviation**2 + 1 - g**2)

    def draw(step=0):
        return torch.randn(shape, generator=generator)

    visited = sampling_levels(500, levels(500, 1e-6, 4e-2))
    found = sample(denoiser, torch.zeros(shape), draw(), visited, draw if adds_noise else None)
    assert found.mean().item() == pytest.approx(0, abs=0.006)  # 0.2 / sqrt(22,500) is 0.0013
    assert found.std().item() == pytest.approx(deviation, rel=0.04)  # of discretisation and of 22,500 values


def test_added_noise_over_single_steps_has_the_variance_of_the_posterior():
    """SR3 on CAB: (1 - gamma_(t-1)) / (1 - gamma_t) beta_t, seen through a denoiser that says the picture is zero."""
    schedule = levels(10, 1e-2, 0.2)
    g, h = schedule[6], schedule[5]
    beta = 1 - (g / h) ** 2

    def denoiser(condition, y, level):
        return y / (1 - level[:, None, None, None] ** 2).sqrt()

    seen = []

    def spy(condition, y, level):
        seen.append(y)
        return denoiser(condition, y, level)

    start, one = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    sample(spy, start, start, np.array([g, h, 1.0]), lambda step: one)
    assert seen[1].unique().item() == pytest.approx(np.sqrt((1 - h**2) / (1 - g**2) * beta))


def test_sampling_levels_run_from_the_last_step_to_the_picture():
    schedule = levels(100)
    assert sampling_levels(4, schedule).tolist() == schedule[[100, 75, 50, 25, 0]].tolist()
    assert np.array_equal(sampling_levels(100, schedule), schedule[::-1])
