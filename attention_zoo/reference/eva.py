"""Oracle of EVA: for each window the near tokens and the other chunks as sets of positions, and their joint softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def sizes(core: AttentionCore) -> tuple[int, int]:
    """Tokens of a window and of a chunk."""
    landmarks, window = (int(vars(core)[name]) for name in ("num_landmarks", "window"))
    asked = (core.max_length + landmarks - 1) // landmarks
    if asked < window:
        pieces = (window + asked - 1) // asked
        chunk = (window + pieces - 1) // pieces
        return pieces * chunk, chunk
    return window, asked // window * window


def landmark(core: AttentionCore, x: Tensor, side: str) -> Tensor:
    """LN(W mean(x) + b), [H, D], of x [H, n, D]."""
    weight, bias, gain, offset = (
        core.get_parameter(f"{side}_landmarks.{name}")
        for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
    )
    y = torch.einsum("hd,ed->he", x.mean(1), weight) + bias
    centred = y - y.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * gain + offset


def sample_weights(core: AttentionCore, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """[H, L, L] of one sample."""
    heads, length, width = q.shape
    causal = core.pattern == "causal_self"
    window, chunk = sizes(core)
    position = torch.arange(length)
    scaled = k / width**0.25
    out = []
    for start in range(0, length, window):
        block = position[start : start + window]
        in_block = (position >= start) & (position < start + window)
        logits = torch.einsum("hid,hjd->hij", q[:, block], k) / width**0.5
        near = (in_block & visible)[None].expand(len(block), -1)
        if causal:
            near = near & (position[None] <= block[:, None])
        columns = [torch.where(near, logits, -torch.inf)]
        spread = [torch.eye(length, dtype=q.dtype).expand(heads, -1, -1)]  # what each column stands for
        home = start // max(chunk, window) * max(chunk, window)
        if causal:  # chunks before the block's own, then the windows before it in its own
            parts = [(a, a + chunk) for a in range(0, home, chunk)]
            parts += [(a, a + window) for a in range(home, start, window)]
        else:
            parts = [(a, a + chunk) for a in range(0, length, chunk)]
        for first, end in parts:
            whole = (position >= first) & (position < end) & visible
            rest = whole & ~in_block
            if not rest.any():
                continue
            w = (landmark(core, q[:, whole], "query") + landmark(core, k[:, whole], "key")) / width**0.25
            w = w if causal else w / 2
            log_xi = torch.einsum("hjd,hd->hj", scaled, w) - (scaled * scaled).sum(-1) / 2
            xi = torch.softmax(torch.where(rest, log_xi, -torch.inf), -1)
            columns.append(
                torch.einsum("hid,hd->hi", q[:, block], landmark(core, k[:, rest], "key"))[..., None] / width**0.5
            )
            spread.append(xi[:, None])
        joint = torch.cat(columns, -1)
        seen = torch.isfinite(joint).any(-1, keepdim=True)
        joint = torch.softmax(torch.where(seen, joint, 0.0), -1) * seen
        out.append(joint @ torch.cat(spread, 1))
    return torch.cat(out, 1)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, L, L]."""
    batch, _, length, _ = q.shape
    visible = torch.ones(batch, length, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
    return torch.stack([sample_weights(core, q[b], k[b], visible[b]) for b in range(batch)])


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
