"""Oracle of S4D: the kernels by their closed form, and the convolution as a dense L x L matrix of each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import Attention


def kernel(layer: Attention, direction: int, length: int, dtype: torch.dtype) -> Tensor:
    """[E, L]: K_l = 2 Re sum_n C_n (e^(dt A_n) - 1) / A_n e^(l dt A_n)."""
    p = {name: value.to(dtype) for name, value in layer.named_parameters()}
    total = torch.zeros(layer.embed_dim, length, dtype=dtype)
    steps = torch.arange(length, dtype=dtype)
    for n in range(p["a_imag"].shape[1]):
        a = -torch.exp(p["log_a_real"][:, n]) + 1j * p["a_imag"][:, n]
        c = p["c"][direction, :, n, 0] + 1j * p["c"][direction, :, n, 1]
        dt_a = torch.exp(p["log_dt"]) * a
        scale = c * (torch.exp(dt_a) - 1) / a
        total = total + 2 * (scale[:, None] * torch.exp(dt_a[:, None] * steps)).real
    return total


def matrix(layer: Attention, length: int, dtype: torch.dtype) -> Tensor:
    """[E, L, L]: the weight of u_s in y_t, at [:, t, s]."""
    t, s = torch.arange(length)[:, None], torch.arange(length)[None, :]
    whole = torch.where(s <= t, kernel(layer, 0, length, dtype)[:, (t - s).clamp(min=0)], 0.0)
    if layer.pattern == "noncausal_self":
        whole = whole + torch.where(s > t, kernel(layer, 1, length, dtype)[:, (s - t - 1).clamp(min=0)], 0.0)
    return whole + torch.where(s == t, layer.get_parameter("d").to(dtype)[:, None, None], 0.0)


def dense_layer(
    layer: Attention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """O_t = GLU(W GELU(y_t) + b), y the product of each channel's matrix with its inputs, zero at padding."""
    wide = torch.promote_types(query.dtype, torch.float32)
    u = query.to(wide)
    if key_padding_mask is not None:
        u = torch.where(key_padding_mask[:, :, None], 0.0, u)
    y = torch.einsum("ets,bse->bte", matrix(layer, query.shape[1], wide), u)
    active = (0.5 * y * (1 + torch.erf(y / 2**0.5))).to(query.dtype)
    p = dict(layer.named_parameters())
    mixed = torch.einsum("ble,fe->blf", active, p["output_projection.weight"])
    mixed = mixed + p.get("output_projection.bias", torch.zeros((), dtype=query.dtype))
    return mixed[..., : layer.embed_dim] * torch.sigmoid(mixed[..., layer.embed_dim :])
