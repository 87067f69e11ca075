"""Performer: linear attention whose random features make the softmax kernel in expectation (FAVOR+).

With x' = x / D^(1/4) and rows w_1 ... w_m drawn from N(0, I_D),

    softmax kernel   phi_j(x) = m^(-1/2) exp(w_j . x' - |x'|^2 / 2)     (Lemma 1)
    relu kernel      phi_j(x) = m^(-1/2) relu(w_j . x') + 0.001         (generalised attention)
    Att^(Q, K, V) = diag(phi(Q) phi(K)^T 1)^(-1) phi(Q) (phi(K)^T V)    (eq. 4)

and, for the first kernel, E[phi(q) . phi(k)] = exp(q . k / sqrt(D)).

Orthogonal features: blocks of D rows of a Haar orthogonal matrix, each row given the length of a Gaussian D-vector,
which keeps E[phi(q) . phi(k)] and lowers its variance. The variance grows as exp(|q' + k'|^2): at inputs
of standard deviation 1 and D = 16 more features barely help, at 0.5 and below they do.

Stabiliser. The authors' code subtracts the maximum over all keys from the exponents and adds 10^-4 to the features, so
that a future key changes past outputs. Here no statistic over tokens is used: the exponent of a key is at most
|w_j|^2 / 2 (complete the square), which a float32 holds, so keys need no shift (a cap at e^60 guards heads much wider
than 64); a query's exponents are shifted by their own maximum over j, which cancels in the ratio. The denominator
alone has a floor, 10^-30. Keys with |k'|^2 / 2 above about 70 (D = 64: components of size 4) fall under it and count
for nothing.

The projection (shared by all heads) and the count of training calls are in the state_dict. While training it is
redrawn each ``redraw_interval`` calls of ``forward``; draw n is a function of the seed and n. In eval it is fixed.

Time O(L m D), memory O(L m); chunked scan in the causal self pattern; state O(m D) when decoding. Published:
noncausal and causal self attention. Our extension: both cross patterns, as in ``linear``.

Source: K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import linear
from attention_zoo.contract import AttentionCore, HeadwiseAttention, Pattern
from attention_zoo.errors import UnknownName

CARD = dataclasses.replace(
    linear.CARD,
    name="performer",
    title="Rethinking Attention with Performers",
    authors="Choromanski, Likhosherstov, Dohan, Song, Gane, Sarlos, Hawkins, Davis, Mohiuddin, Kaiser, Belanger, "
    "Colwell, Weller",
    year=2021,
    paper="arXiv:2009.14794",
)

KERNELS = ("softmax", "relu")
RELU_OFFSET = 1e-3  # of the authors' code: no row is without weight
LARGEST_EXPONENT = 60.0  # e^60 summed over 10^6 keys and 10^3 features is within float32


def gaussian_rows(rows: int, width: int, *, orthogonal: bool, generator: torch.Generator) -> Float[Tensor, "m D"]:
    """w_1 ... w_m from N(0, I_D): independent, or orthogonal within each block of D rows."""
    independent = torch.randn(rows, width, generator=generator, dtype=torch.float32, device="cpu")
    if not orthogonal:
        return independent
    blocks = -(-rows // width)
    square = torch.randn(blocks, width, width, generator=generator, dtype=torch.float32, device="cpu")
    basis, triangular = torch.linalg.qr(square)
    # QR leaves the signs of the columns open; with a positive diagonal of R the matrix is Haar distributed.
    basis = basis * triangular.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    directions = basis.transpose(-2, -1).reshape(-1, width)[:rows]
    return directions * independent.norm(dim=-1, keepdim=True)


def project(x: Float[Tensor, "B H L D"], projection: Float[Tensor, "m D"]) -> Float[Tensor, "B H L m"]:
    """w_j . x', with x' = x / D^(1/4), so that two of them carry the 1 / sqrt(D) of the softmax."""
    return x @ (projection.to(x.dtype) * x.shape[-1] ** -0.25).T


def half_square(x: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H L 1"]:
    """|x'|^2 / 2."""
    return x.square().sum(-1, keepdim=True) / (2 * x.shape[-1] ** 0.5)


def positive_features(k: Float[Tensor, "B H L D"], projection: Float[Tensor, "m D"]) -> Float[Tensor, "B H L m"]:
    """m^(-1/2) exp(w_j . k' - |k'|^2 / 2) (Lemma 1)."""
    exponent = project(k, projection).sub_(half_square(k) + math.log(len(projection)) / 2)
    return exponent.clamp_(max=LARGEST_EXPONENT).exp_()


def scaled_positive_features(q: Float[Tensor, "B H L D"], projection: Float[Tensor, "m D"]) -> Float[Tensor, "B H L m"]:
    """The positive features of each query over their own maximum: |q'|^2 / 2 and all that is large cancel."""
    exponent = project(q, projection)
    return exponent.sub_(exponent.detach().amax(-1, keepdim=True) + math.log(len(projection)) / 2).exp_()


def relu_features(x: Float[Tensor, "B H L D"], projection: Float[Tensor, "m D"]) -> Float[Tensor, "B H L m"]:
    """m^(-1/2) relu(w_j . x') + 0.001."""
    return F.relu(project(x, projection)) / math.sqrt(len(projection)) + RELU_OFFSET


class PerformerCore(linear.KernelCore):
    """FAVOR+.

    Args:
        num_features: m; the paper takes about D log D (256 for D = 64).
        kernel: ``softmax`` or ``relu``.
        orthogonal: orthogonal rows instead of independent ones.
        redraw_interval: training calls of ``forward`` between two draws of the projection; 0: never.
    """

    projection: Tensor
    smallest_denominator = 1e-30

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        num_features: int = 256,
        kernel: str = "softmax",
        orthogonal: bool = True,
        redraw_interval: int = 1000,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if kernel not in KERNELS:
            raise UnknownName("kernel", kernel, KERNELS)
        if num_features < 1:
            raise ValueError(f"num_features={num_features} is not a positive number")
        if redraw_interval < 0:
            raise ValueError(f"redraw_interval={redraw_interval} is negative; 0 means never")
        self.num_features = num_features
        self.kernel = kernel
        self.orthogonal = orthogonal
        self.redraw_interval = redraw_interval
        self.seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        self.training_calls = 0
        self.register_buffer("projection", torch.empty(num_features, head_dim))
        self.projection.copy_(self.draw(0))

    def draw(self, number: int) -> Float[Tensor, "m D"]:
        """Projection ``number`` of this core: a function of its seed, so that a resumed run draws the same ones."""
        # PyTorch's CPU generator reads 32 bits of a seed; an odd stride goes through all of them before it repeats.
        generator = torch.Generator("cpu").manual_seed((self.seed + number * 0x9E3779B1) % 2**32)
        return gaussian_rows(self.num_features, self.head_dim, orthogonal=self.orthogonal, generator=generator)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.seed, self.training_calls], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.training_calls = (int(x) for x in state)

    def query_features(self, q: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L m"]:
        return (scaled_positive_features if self.kernel == "softmax" else relu_features)(q, self.projection)

    def key_features(self, k: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L m"]:
        return (positive_features if self.kernel == "softmax" else relu_features)(k, self.projection)

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        if self.training and self.redraw_interval:
            if self.training_calls and self.training_calls % self.redraw_interval == 0:
                # A new tensor, not a copy into the old one, which a graph not yet run backwards may hold.
                self.projection = self.draw(self.training_calls // self.redraw_interval).to(self.projection)
            self.training_calls += 1
        return super().forward(q, k, v, key_padding_mask=key_padding_mask)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        features = 2 * batch * self.num_heads * (length_q + length_k) * self.num_features * self.head_dim
        return features + super().flops(batch, length_q, length_k)


class PerformerAttention(HeadwiseAttention):
    """Multi-head FAVOR+ attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = PerformerCore
