"""LARA: linear randomised attention, softmax attention estimated by importance sampling from a few shared proposals.

With x' = x / D^(1/4) and the random feature xi(x, w) = exp(w . x' - |x'|^2 / 2), softmax attention is an expectation
over a density of each query (randomised attention, RA):

    o_n = E_{w ~ p_n}[f(w)],    f(w) = sum_m xi(k_m, w) v_m / sum_m xi(k_m, w),
    p_n(w) proportional to N(w; 0, I) xi(q_n, w) sum_m xi(k_m, w).

LARA takes one sample w_c from each of C proposals N(mu_c, I) that all queries share, and weighs them for each query by
self-normalised multiple importance sampling:

    o_n = sum_c W_nc f(w_c),
    W_nc = softmax_c[log alpha_nc + log xi(q_n, w_c) + log sum_m xi(k_m, w_c) + log N(w_c; 0, I) - log N(w_c; mu_c, I)].

All of it is in log space and in at least float32.

Proposals. q_c and k_c are the means of C balanced segments of the valid tokens, mu_c = (q~_c + k~_c) / D^(1/4), and

    ``segment``: q~_c = q_c, k~_c = k_c                                 (CAB's)
    ``pool``:    q~_c = LN(W_q q_c + b_q), k~_c = LN(W_k k_c + b_k)     (the authors')

Weights alpha between the proposals:

    ``balance``: alpha_nc = N(w_c; mu_c, I) / sum_e N(w_c; mu_e, I) + t_nc - 1/C, at least 10^-8,
                 t_nc = softmax_c(q~_c . q_n / sqrt(D))                 (the authors' "mis-opt", with coefficient 1)
    ``query``:   alpha_nc = exp(mu_c . q'_n)                            (CAB's)

The authors' code takes the softmax of t over the queries, which ties every output to all queries; here it is over the
proposals, which are what is weighed.

Samples. With ``noise`` the core draws w_c = mu_c + sigma e_c, e_c ~ N(0, I), at each training call, as in the paper; in
evaluation w_c = mu_c, as in the authors' code. Without it, the default, both are the latter. sigma is ``temperature``:

    ``exact``: sigma = 1, the density that W_nc divides by: more samples converge to softmax attention
    ``paper``: sigma = D^(-1/4), which is what the public code (the authors' and CAB's) computes. It adds e_c to the
               unscaled mean and multiplies by D^(-1/2), which scales the noise as well; its limit is another function.

Without noise the two are one and the same function.

Time O(L C D), memory O(L C + L D). Published: noncausal self attention. Our extension: noncausal cross attention, where
segments of the source's keys and of the target's queries are paired in order; the sum over a side without tokens (fewer
than C) is zero. Padded tokens are in no segment and in no sum. The causal patterns have no form: q_c pools queries.

Source: L. Zheng, C. Wang, L. Kong, "Linear Complexity Randomized Self-attention Mechanism", ICML 2022,
arXiv:2204.04667; code of the authors: HKUNLP/efficient-attention.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, Support
from attention_zoo.errors import UnknownName
from attention_zoo.primitives import accumulation_dtype, segment_means, without_autocast

CARD = Card(
    name="lara",
    title="Linear Complexity Randomized Self-attention Mechanism",
    authors="Zheng, Wang, Kong",
    year=2022,
    paper="arXiv:2204.04667",
    family="kernel",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.NONCAUSAL_CROSS: Support.EXTENSION},
    unsupported={
        Pattern.CAUSAL_SELF: "its proposals are means over the whole sequence; eva is the published causal successor",
        Pattern.CAUSAL_CROSS: "its proposals are means over the queries, so that an output would see later ones",
    },
    permutation_equivariant=False,
)

PROPOSALS = ("pool", "segment")
TEMPERATURES = ("exact", "paper")
WEIGHTINGS = ("balance", "query")
SMALLEST_ALPHA = 1e-8  # of the authors' code: t_nc - 1/C can be negative


class LandmarkProjection(nn.Module):
    """LN(W x + b) in at least float32: turns the mean of some queries or keys into part of a proposal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.linear.weight, gain=2**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        weight, bias, gain, offset = (
            p.to(x.dtype) for p in (self.linear.weight, self.linear.bias, self.norm.weight, self.norm.bias)
        )
        return F.layer_norm(F.linear(x, weight, bias), x.shape[-1:], gain, offset, self.norm.eps)


def half_square(x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """|x|^2 / 2, in one pass over x."""
    return torch.linalg.vector_norm(x, dim=-1).square() / 2


def summarise(
    k: Float[Tensor, "B H Lk D"],
    v: Float[Tensor, "B H Lk Dv"],
    w: Float[Tensor, "B H C D"],
    padded: Bool[Tensor, "B Lk"] | None,
) -> tuple[Float[Tensor, "B H C Dv"], Float[Tensor, "B H C"]]:
    """f(w_c) and log sum_m xi(k_m, w_c)."""
    scale = k.shape[-1] ** -0.25
    log_xi = (w * scale) @ k.transpose(-2, -1) - half_square(k)[:, :, None] * scale**2
    if padded is not None:
        log_xi = log_xi.masked_fill(padded[:, None, None], -torch.inf)
    log_sum = log_xi.logsumexp(-1)
    return torch.exp(log_xi - log_sum[..., None]) @ v, log_sum


def log_balance(
    affinity: Float[Tensor, "B H Lq C"],
    mu: Float[Tensor, "B H C D"],
    w: Float[Tensor, "B H C D"],
    empty: Bool[Tensor, "B C"],
) -> Float[Tensor, "B H Lq C"]:
    """log alpha_nc of ``balance``, from the affinities q~_c . q_n / sqrt(D)."""
    log_density = (w @ mu.transpose(-2, -1) - half_square(mu)[:, :, None]).masked_fill(empty[:, None, None], -torch.inf)
    heuristic = log_density.softmax(-1).diagonal(dim1=-2, dim2=-1)
    relevance = affinity.masked_fill(empty[:, None, None], -torch.inf).softmax(-1)
    count = (~empty).sum(-1).to(mu.dtype)[:, None, None, None]
    return (heuristic[:, :, None] + relevance - 1 / count).clamp(min=SMALLEST_ALPHA).log()


def importance(
    q: Float[Tensor, "B H Lq D"],
    mu: Float[Tensor, "B H C D"],
    w: Float[Tensor, "B H C D"],
    log_sum: Float[Tensor, "B H C"],
    log_alpha: Float[Tensor, "B H Lq C"] | None,
    empty: Bool[Tensor, "B C"],
) -> Float[Tensor, "B H Lq C"]:
    """W_nc, in which |q'_n|^2 / 2 cancels, with alpha_nc of ``query`` where ``log_alpha`` is None."""
    scale = q.shape[-1] ** -0.25
    of_sample = log_sum - (w * mu).sum(-1) + half_square(mu)
    of_sample = of_sample.masked_fill(empty[:, None], -torch.inf)[:, :, None]
    if log_alpha is None:
        return (q @ ((w + mu) * scale).transpose(-2, -1) + of_sample).softmax(-1)
    return (q @ (w * scale).transpose(-2, -1) + log_alpha + of_sample).softmax(-1)


class LaraCore(AttentionCore):
    """LARA.

    Dropout, while training, falls on the output.

    Args:
        num_landmarks: C.
        proposal: how mu_c is made, ``pool`` or ``segment``.
        temperature: the scale of the noise, ``exact`` or ``paper``; without noise they are the same.
        weighting: alpha, ``balance`` or ``query``.
        noise: whether training draws w_c from its proposal instead of taking its mean.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        num_landmarks: int = 49,
        proposal: str = "pool",
        temperature: str = "exact",
        weighting: str = "balance",
        noise: bool = False,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if num_landmarks < 1:
            raise ValueError(f"num_landmarks={num_landmarks} is not a positive number")
        for option, value, allowed in (
            ("proposal", proposal, PROPOSALS),
            ("temperature", temperature, TEMPERATURES),
            ("weighting", weighting, WEIGHTINGS),
        ):
            if value not in allowed:
                raise UnknownName(option, value, allowed)
        self.num_landmarks = num_landmarks
        self.proposal = proposal
        self.temperature = temperature
        self.weighting = weighting
        self.noise = noise
        self.query_landmarks = LandmarkProjection(head_dim) if proposal == "pool" else nn.Identity()
        self.key_landmarks = LandmarkProjection(head_dim) if proposal == "pool" else nn.Identity()

    def landmarks(
        self, x: Float[Tensor, "B H L D"], valid: Bool[Tensor, "B L"] | None, projection: nn.Module
    ) -> tuple[Float[Tensor, "B H C D"], Bool[Tensor, "B C"]]:
        """q~_c or k~_c, and which of them have no token: they are zero."""
        means, counts = segment_means(x, valid, self.num_landmarks)
        empty = counts == 0
        return projection(means).masked_fill(empty[:, None, :, None], 0.0), empty

    def sample(self, mu: Float[Tensor, "B H C D"]) -> Float[Tensor, "B H C D"]:
        """w_c."""
        if not (self.noise and self.training):
            return mu
        sigma = 1.0 if self.temperature == "exact" else self.head_dim**-0.25
        return mu + sigma * torch.randn_like(mu)

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        padded, blind = key_padding_mask, None
        if key_padding_mask is not None:
            # A sample of padding alone is computed as if it had none, and set to zero at the end.
            blind = key_padding_mask.all(-1, keepdim=True)
            padded = key_padding_mask & ~blind
        valid = None if padded is None else ~padded
        with without_autocast(q):
            wide = accumulation_dtype(q)
            q_bar, no_query = self.landmarks(q, None if self.pattern.is_cross else valid, self.query_landmarks)
            k_bar, no_key = self.landmarks(k, valid, self.key_landmarks)
            empty = no_query & no_key
            mu = (q_bar + k_bar) * self.head_dim**-0.25
            w = self.sample(mu)
            kv, log_sum = summarise(k.to(wide), v.to(wide), w, padded)
            queries, log_alpha = q.to(wide), None
            if self.weighting == "balance":
                log_alpha = log_balance(queries @ (q_bar * self.head_dim**-0.5).transpose(-2, -1), mu, w, empty)
            out = importance(queries, mu, w, log_sum, log_alpha, empty) @ kv
            if blind is not None:
                out = out.masked_fill(blind[:, None, None], 0.0)
        return F.dropout(out.to(q.dtype), self.dropout, self.training)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        landmarks, width = self.num_landmarks, self.head_dim
        products = 2 * length_k * width + 2 * length_q * width
        if self.weighting == "balance":
            products += length_q * width + landmarks * width
        if self.proposal == "pool":
            products += 2 * width * width
        return 2 * batch * self.num_heads * landmarks * products


class LaraAttention(HeadwiseAttention):
    """Multi-head LARA."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = LaraCore
