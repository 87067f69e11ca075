"""Nystromformer: softmax attention seen through landmarks, the means of segments of the sequence.

With Q~ and K~ the m landmarks of queries and keys and s = D^-1/2 (section 3 of the paper),

    S^ = softmax(s Q K~^T) Z softmax(s Q~ K^T),    A = softmax(s Q~ K~^T),    Z ~ A^+                       (eq. 13, 15)
    O  = S^ V + conv(V)

where Z approximates the pseudo-inverse A^+ by ``pinv_iterations`` steps of

    Z_0 = A^T / (||A||_1 ||A||_inf),    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4                        (eq. 14)

and conv is a residual: a convolution of the values over positions, one kernel per head, with zeros beyond both ends.
Products are taken from the right, so nothing of Lq x Lk exists: time O(L m D + m^3), memory O(L D + m^2).

Z_0's coefficient is that of each matrix. (The authors' code takes it over the whole batch, which couples samples, and
offers the one per matrix as the recommended option.) The chain of Z, A included, is in at least float32.

Published: noncausal self attention. Landmarks are means over the valid tokens alone, in segments whose sizes differ by
one at most; a sample with fewer tokens than m has one landmark per token. Padded values are zero in the convolution.

Our extension: noncausal cross attention, queries and keys being cut into segments separately; A and Z are rectangular
where one side is shorter than m. The residual has no meaning there (row t of the values is not at output t), so there
is none: ``conv_kernel=None`` means the published 33 in the self pattern and none in the cross pattern, and any width
but 0 is refused in the latter. ``pinv_iterations=0`` puts A^+ itself, by singular values, in the place of Z; with as
many landmarks as tokens the mechanism is then softmax attention (for an invertible A).

Rows of S^ sum to one only as far as Z inverts A, and entries may be negative.

Source: Y. Xiong, Z. Zeng, R. Chakraborty, M. Tan, G. Fung, Y. Li, V. Singh, "Nystromformer: A Nystrom-Based Algorithm
for Approximating Self-Attention", AAAI 2021, arXiv:2102.03902. Defaults: the paper's 64 landmarks and 6 iterations,
and the authors' kernel of 33 for language (35 for Long Range Arena).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support, Unsupported
from attention_zoo.primitives import accumulation_dtype, segment_means, without_autocast

CARD = Card(
    name="nystromformer",
    title="Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention",
    authors="Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh",
    year=2021,
    paper="arXiv:2102.03902",
    family="low rank",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
    },
    unsupported={
        Pattern.CAUSAL_SELF: "landmarks and the pseudo-inverse are of the whole sequence, the future included",
        Pattern.CAUSAL_CROSS: "landmarks of the queries are means over later targets too",
    },
    rows_sum_to_one=False,
    permutation_equivariant=False,
    softmax_logits=True,
    # Roundings of 1e-16, times the condition number of A: some 1e4 to 1e6 for normal inputs.
    collapses=Collapse({"num_landmarks": "length", "pinv_iterations": 0, "conv_kernel": 0}, tolerance=1e-9),
)

PUBLISHED_KERNEL = 33
CONV_BLOCK = 64  # positions per block of the convolution, which is a banded matrix product


def newton_schulz_pinv(a: Float[Tensor, "*n m l"], iterations: int) -> Float[Tensor, "*n l m"]:
    """Z after ``iterations`` steps of eq. 14 from Z_0 = A^T / (||A||_1 ||A||_inf). Zero rows and columns stay so."""
    norms = a.sum(-2).amax(-1) * a.sum(-1).amax(-1)  # entries are not negative
    z = a.transpose(-2, -1) / norms.clamp(min=torch.finfo(a.dtype).tiny)[..., None, None]
    identity = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z


def convolve(
    v: Float[Tensor, "B H L Dv"], kernel: Float[Tensor, "H w"], *, block: int = CONV_BLOCK
) -> Float[Tensor, "B H L Dv"]:
    """y_t = sum_i kernel_i v_(t + i - floor(w / 2)), zeros beyond the ends.

    By blocks of c positions, each a product of one banded c x (c + w - 1) matrix with the values around the block: on
    a CPU a third of the time of a grouped convolution.
    """
    heads, width = kernel.shape
    length = v.shape[2]
    block = min(block, length)
    short = -length % block
    around = F.pad(v, (0, 0, width // 2, short + (width - 1) // 2)).unfold(2, block + width - 1, block)
    rows = torch.arange(block, device=v.device)[:, None]
    band = (rows + torch.arange(width, device=v.device)).expand(heads, -1, -1)
    banded = kernel.new_zeros(heads, block, block + width - 1).scatter(2, band, kernel[:, None].expand(band.shape))
    blocks = banded[:, None].to(v.dtype) @ around.transpose(-2, -1)
    return blocks.flatten(2, 3)[:, :, :length]


def attend(
    q: Float[Tensor, "B H Lq D"],
    k: Float[Tensor, "B H Lk D"],
    v: Float[Tensor, "B H Lk Dv"],
    visible: Bool[Tensor, "B 1 1 Lk"] | None,
) -> Float[Tensor, "B H Lq Dv"]:
    """softmax(s Q K^T) V over the visible keys, fused; of no meaning in a sample that has none."""
    if visible is None:
        return F.scaled_dot_product_attention(q, k, v)
    blind = ~visible.any(-1, keepdim=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible | blind)


def conv_width(pattern: Pattern, conv_kernel: int | None) -> int:
    """The kernel's width: by default the published one in the self pattern, and none in the cross pattern."""
    if conv_kernel and pattern.is_cross:
        raise Unsupported(
            f"nystromformer has no residual conv_kernel={conv_kernel} in {pattern}: the values are of another sequence;"
            " leave it at None"
        )
    if conv_kernel is None:
        return 0 if pattern.is_cross else PUBLISHED_KERNEL
    return conv_kernel


class NystromformerCore(AttentionCore):
    """Nystrom attention on projected heads; dropout acts on the output, since the weights are never formed.

    Args:
        num_landmarks: m, the segments of queries and of keys; fewer where there are fewer tokens.
        pinv_iterations: steps towards the pseudo-inverse; 0 for the exact one.
        conv_kernel: odd width of the residual convolution of the values; 0 for none; None: the published 33 in the
            self pattern, none in the cross pattern.
    """

    conv: Tensor | None  # [H, w]

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        num_landmarks: int = 64,
        pinv_iterations: int = 6,
        conv_kernel: int | None = None,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        width = conv_width(self.pattern, conv_kernel)
        if num_landmarks < 1:
            raise ValueError(f"num_landmarks={num_landmarks} is not positive; nystromformer needs at least 1")
        if pinv_iterations < 0:
            raise ValueError(f"pinv_iterations={pinv_iterations} is negative; 0 stands for the exact pseudo-inverse")
        if width < 0 or (width and width % 2 == 0):
            raise ValueError(f"conv_kernel={conv_kernel} is neither odd, nor 0 (no residual), nor None")
        self.num_landmarks = num_landmarks
        self.pinv_iterations = pinv_iterations
        self.register_parameter("conv", nn.Parameter(torch.empty(num_heads, width)) if width else None)
        if self.conv is not None:
            # As a convolution layer of one channel begins.
            nn.init.uniform_(self.conv, -(width**-0.5), width**-0.5)

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        key_valid = None if key_padding_mask is None else ~key_padding_mask
        query_valid = None if self.pattern.is_cross else key_valid
        q_landmarks, q_counts = segment_means(q, query_valid, min(self.num_landmarks, q.shape[2]))
        k_landmarks, k_counts = segment_means(k, key_valid, min(self.num_landmarks, k.shape[2]))
        # Landmarks of no token, in samples with fewer than m, have zero rows and columns in A, hence in Z.
        exists = None if key_valid is None else (k_counts > 0)[:, None, None]
        z = self._pinv(q_landmarks, k_landmarks, (q_counts > 0)[:, None, :, None], (k_counts > 0)[:, None, None])

        summary = attend(q_landmarks.to(q.dtype), k, v, None if key_valid is None else key_valid[:, None, None])
        with without_autocast(q):
            summary = (z @ summary.to(z.dtype)).to(v.dtype)
        out = attend(q, k_landmarks.to(k.dtype), summary, exists)
        if self.conv is not None:
            values = v if key_padding_mask is None else v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
            out = out + convolve(values, self.conv)
        if key_padding_mask is not None:
            out = out.masked_fill(key_padding_mask.all(-1)[:, None, None, None], 0.0)
        return F.dropout(out, self.dropout, self.training)

    def _pinv(
        self,
        q_landmarks: Float[Tensor, "B H m D"],
        k_landmarks: Float[Tensor, "B H l D"],
        q_exists: Bool[Tensor, "B 1 m 1"],
        k_exists: Bool[Tensor, "B 1 1 l"],
    ) -> Float[Tensor, "B H l m"]:
        """Z for A = softmax(s Q~ K~^T) on the landmarks that exist."""
        wide = accumulation_dtype(q_landmarks)
        with without_autocast(q_landmarks):
            logits = (q_landmarks.to(wide) * self.head_dim**-0.5) @ k_landmarks.to(wide).transpose(-2, -1)
            a = torch.softmax(logits.masked_fill(~k_exists, torch.finfo(wide).min), dim=-1) * (q_exists & k_exists)
            return newton_schulz_pinv(a, self.pinv_iterations) if self.pinv_iterations else torch.linalg.pinv(a)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        """Matrix products; with ``pinv_iterations=0`` without the singular values."""
        m, n = min(self.num_landmarks, length_q), min(self.num_landmarks, length_k)
        pairs = m * n * self.head_dim + n * m * self.head_dim + 2 * (m * length_k + length_q * n) * self.head_dim
        steps = self.pinv_iterations * (2 * m * m * n + 2 * m**3)
        band = 0
        if self.conv is not None:
            block = min(CONV_BLOCK, length_k)
            band = math.ceil(length_k / block) * block * (block + self.conv.shape[1] - 1) * self.head_dim
        return 2 * batch * self.num_heads * (pairs + steps + band)


class NystromformerAttention(HeadwiseAttention):
    """Multi-head Nystrom attention; the projections are those of exact attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = NystromformerCore
