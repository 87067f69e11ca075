"""What the tests of single mechanisms share: agreement with an oracle, and of the steps with the whole."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

import pytest
import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore, Pattern

# Both sides are float64 sums of at most a few hundred terms of unit scale in another order: rounding stays near 1e-14.
ROUNDING = 1e-11


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Agreement(Protocol):
    def __call__(
        self, core: AttentionCore, oracle: ModuleType, length_q: int, length_k: int, *, padded: bool, scale: float = 1.0
    ) -> None: ...


def _mask(batch: int, length: int) -> Tensor:
    """Random holes; the first sample begins with padding, the last is padding alone."""
    mask = torch.rand(batch, length) < 0.3
    mask[0, : length // 2] = True
    mask[-1] = True
    return mask


def _agree(
    core: AttentionCore, oracle: ModuleType, length_q: int, length_k: int, *, padded: bool, scale: float = 1.0
) -> None:
    core = core.double()
    length_k = length_k if core.pattern.is_cross else length_q
    q, k, v = (
        (torch.randn(3, core.num_heads, length, width, dtype=torch.float64) * scale).requires_grad_()
        for length, width in ((length_q, core.head_dim), (length_k, core.head_dim), (length_k, core.head_dim + 1))
    )
    mask = _mask(3, length_k) if padded else None
    out, expected = (
        core(q, k, v, key_padding_mask=mask),
        oracle.dense_core(core, q, k, v, key_padding_mask=mask),
    )
    torch.testing.assert_close(out, expected, rtol=ROUNDING, atol=ROUNDING)
    inputs = (q, k, v, *core.parameters())
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None or other is not None:
            torch.testing.assert_close(mine, other, rtol=ROUNDING, atol=ROUNDING)
    if padded:
        assert not out[-1].any()


def _steps_match(core: AttentionCore, *, prefix: int = 5, steps: int = 4, length_k: int = 7) -> None:
    core = core.double().eval()
    length = prefix + steps
    cross = core.pattern is Pattern.CAUSAL_CROSS
    length_k = length_k if cross else length
    q, k, v = (
        torch.randn(3, core.num_heads, n, core.head_dim, dtype=torch.float64) for n in (length, length_k, length_k)
    )
    mask = _mask(3, length_k)
    if not cross:
        mask[:, prefix:] = False
    expected = core(q, k, v, key_padding_mask=mask)
    if cross:
        out, state = core.prefill(q[:, :, :prefix], k, v, key_padding_mask=mask)
    else:
        out, state = core.prefill(
            q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], key_padding_mask=mask[:, :prefix]
        )
    torch.testing.assert_close(out, expected[:, :, :prefix], rtol=ROUNDING, atol=ROUNDING)
    for t in range(prefix, length):
        here = slice(t, t + 1)
        now = (None, None) if cross else (k[:, :, here], v[:, :, here])
        out, after = core.step(q[:, :, here], *now, state)
        again, _ = core.step(q[:, :, here], *now, state)
        assert torch.equal(out, again), "a step changed the state that it was given"
        torch.testing.assert_close(out, expected[:, :, here], rtol=ROUNDING, atol=ROUNDING)
        state = after


@pytest.fixture(scope="session")
def assert_agreement() -> Agreement:
    """Outputs and gradients (of inputs and of the core's parameters) equal the oracle's, in float64."""
    return _agree


@pytest.fixture(scope="session")
def assert_steps_match() -> object:
    """prefill on a prefix with padding, then steps, equal forward on the whole, and leave their state alone."""
    return _steps_match
