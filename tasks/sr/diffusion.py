"""Gaussian diffusion with a continuous noise level: the schedule, the noisy picture, and few-step sampling.

A noisy picture at level g in (0, 1] is ``y = g x + sqrt(1 - g^2) noise``: g = 1 is the picture, g = 0 noise alone. g is
the square root of SR3's gamma (Saharia et al., arXiv:2104.07636, section 2.1). Knows no model and no data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STEPS, FIRST_BETA, LAST_BETA = 2000, 1e-6, 1e-2  # the linear schedule that CAB trained with

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(condition, noisy, level) -> noise``, as the U-Net's ``forward``."""


def levels(steps: int = STEPS, first: float = FIRST_BETA, last: float = LAST_BETA) -> np.ndarray:
    """``g_t = prod_{s <= t} sqrt(1 - beta_s)``, t = 0 .. steps, with g_0 = 1 and beta linear: [steps + 1] float64."""
    betas = np.linspace(first, last, steps, dtype=np.float64)
    return np.concatenate(([1.0], np.sqrt(np.cumprod(1.0 - betas))))


def level_at(position: np.ndarray, schedule: np.ndarray) -> np.ndarray:
    """The level at a real position u in [0, 1) of the schedule: t = floor(u T) + 1, and g linear from g_(t-1) to g_t.

    Uniform u draw g as SR3 does for training (section 2.4): a step t uniformly, then g uniformly between the levels of
    t - 1 and t (there for g^2; for g in WaveGrad and in the implementation that CAB used. Steps are so short that the
    two differ by less than one part in 10^5).
    """
    scaled = np.asarray(position) * (len(schedule) - 1)
    index = np.minimum(scaled.astype(np.int64), len(schedule) - 2)
    return schedule[index] + (scaled - index) * (schedule[index + 1] - schedule[index])


def noisy(
    picture: Float[Tensor, "B C S S"], noise: Float[Tensor, "B C S S"], level: Float[Tensor, " B"]
) -> Float[Tensor, "B C S S"]:
    """``g x + sqrt(1 - g^2) noise`` (SR3, section 2.2 and algorithm 1)."""
    g = level[:, None, None, None]
    return g * picture + (1 - g**2).sqrt() * noise


def sampling_levels(steps: int, schedule: np.ndarray) -> np.ndarray:
    """The levels that a sampler of ``steps`` evaluations visits, from noise to picture: every (T / steps)-th."""
    return schedule[np.linspace(len(schedule) - 1, 0, steps + 1).round().astype(np.int64)]


def sample(
    denoiser: Denoiser,
    condition: Float[Tensor, "B C S S"],
    start: Float[Tensor, "B C S S"],
    visited: np.ndarray,
    fresh: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "B C S S"]:
    """A picture in [-1, 1] from the noise ``start``, by DDIM (Song et al., arXiv:2010.02502, equations 12 and 16).

    At each level g the estimate of the picture is ``x = clip((y - sqrt(1 - g^2) f) / g)``; the next, less noisy one is
    ``h x + sqrt(1 - h^2 - s^2) e + s z`` with e the noise that x leaves of y, and s = 0 (deterministic DDIM) or, where
    ``fresh`` gives z for step i, ``s^2 = (1 - h^2) / (1 - g^2) (1 - g^2 / h^2)``: ancestral sampling (SR3, algorithm 2,
    with the variance of the posterior).

    Args:
        denoiser: estimates the noise.
        condition: the upsampled pictures.
        start: standard normal.
        visited: levels from the noisiest to 1, the last of which is no evaluation.
        fresh: standard normal noise of step i, shaped as ``start``; None: no noise is added.
    """
    y = start
    for index, (g, h) in enumerate(zip(visited[:-1].tolist(), visited[1:].tolist(), strict=True)):
        level = torch.full((len(y),), g, dtype=y.dtype, device=y.device)
        estimate = denoiser(condition, y, level).to(y.dtype)
        picture = ((y - (1 - g * g) ** 0.5 * estimate) / g).clamp(-1, 1)
        if h == 1:
            return picture
        noise = (y - g * picture) / (1 - g * g) ** 0.5
        variance = 0.0 if fresh is None else (1 - h * h) / (1 - g * g) * (1 - (g / h) ** 2)
        y = h * picture + (1 - h * h - variance) ** 0.5 * noise
        if fresh is not None:
            y = y + variance**0.5 * fresh(index)
    return y.clamp(-1, 1)
