"""Linear attention: the softmax kernel replaced by a feature map phi, so that sums over keys come first.

    noncausal:  V'_i = phi(Q_i) S / (phi(Q_i) . z),      S = sum_j phi(K_j) V_j^T,  z = sum_j phi(K_j)       (eq. 5)
    causal:     V'_i = phi(Q_i) S_i / (phi(Q_i) . z_i),  S_i and z_i the sums over j <= i              (eq. 9 to 12)
    phi(x) = elu(x) + 1                                                                                      (eq. 7)

with no 1/sqrt(D). Time O(L D^2), memory O(L D); the causal form is a scan over chunks, and decodes from a state
(S, z) of constant size. Features are made and used in blocks of positions, which a CPU's cache holds. A padded key is
taken out of the sums after the feature map, because phi(0) = 1.

Published: noncausal and causal self attention. Our extension: both cross patterns, where S and z are sums over the
whole source and each query reads them alone; in the causal cross pattern they are the decoding state. ``relu`` as
feature map, max(x, 0) + 0.001, is an option of ours: the offset is that of Performer's generalised attention, and keeps
every row's sum of weights from zero.

Source: A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
ICML 2020, arXiv:2006.16236, sections 3.2 to 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, State, Support
from attention_zoo.errors import UnknownName
from attention_zoo.primitives import SCAN_CHUNK, accumulation_dtype, continue_scan, without_autocast

CARD = Card(
    name="linear",
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    authors="Katharopoulos, Vyas, Pappas, Fleuret",
    year=2020,
    paper="arXiv:2006.16236",
    family="kernel",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
)

RELU_OFFSET = 1e-3
BLOCK = 512  # positions whose features are made and used before the next, so that they are still in a CPU's cache
CACHED = 1 << 20  # features in a block, at most, where batch and heads are many: a few MiB, about the cache of one core


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, as e^min(x, 0) + max(x, 0): small values keep their relative precision (elu itself rounds at -1)."""
    return torch.exp(x.clamp(max=0.0)) + F.relu(x)


def relu_plus_offset(x: Tensor) -> Tensor:
    """max(x, 0) + 0.001."""
    return F.relu(x) + RELU_OFFSET


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu_plus_one, "relu": relu_plus_offset}


@dataclass
class KernelState(State):
    """S, the sum of phi(k) v^T, ``[B, H, F, Dv]``, and z, the sum of phi(k), ``[B, H, F]``, in at least float32."""

    s: Tensor
    z: Tensor


def summarise(phi_k: Float[Tensor, "B H Lk F"], v: Float[Tensor, "B H Lk Dv"]) -> KernelState:
    """S = sum_j phi(K_j) V_j^T and z = sum_j phi(K_j)."""
    return KernelState(phi_k.transpose(-2, -1) @ v, phi_k.sum(-2))


def read(
    phi_q: Float[Tensor, "B H Lq F"], state: KernelState
) -> tuple[Float[Tensor, "B H Lq Dv"], Float[Tensor, "B H Lq 1"]]:
    """The numerator phi(Q_i) S and the denominator phi(Q_i) . z."""
    return phi_q @ state.s, phi_q @ state.z[..., None]


def join(outs: list[Float[Tensor, "B H l Dv"]]) -> Float[Tensor, "B H L Dv"]:
    """Runs of positions one after the other, laid out with the heads of a position together, as layers merge them."""
    return torch.cat([out.transpose(1, 2) for out in outs], dim=1).transpose(1, 2)


class KernelCore(AttentionCore):
    """Attention with weights phi_q(q_i) . phi_k(k_j) / sum_j phi_q(q_i) . phi_k(k_j); a subclass gives the features.

    Dropout, while training, falls on the output: the weights are never there.
    """

    num_features: int
    smallest_denominator: ClassVar[float]

    def query_features(self, q: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L F"]:
        """phi_q, row by row: no statistic over positions. ``first`` is the position of the first row."""
        raise NotImplementedError

    def key_features(self, k: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L F"]:
        """phi_k, likewise."""
        raise NotImplementedError

    def blocks(self, x: Float[Tensor, "B H L D"]) -> list[slice]:
        """The positions of x in runs of at most ``BLOCK``, whole chunks of a scan; in one run on a GPU."""
        batch, heads, length, _ = x.shape
        chunks = min(BLOCK, CACHED // (batch * heads * self.num_features)) // SCAN_CHUNK
        size = length if x.is_cuda else max(chunks, 1) * SCAN_CHUNK
        return [slice(first, min(first + size, length)) for first in range(0, length, size)]

    def _queries(self, q: Tensor, at: slice) -> Tensor:
        q = q[:, :, at]
        return self.query_features(q.to(accumulation_dtype(q)), at.start)

    def _keys(self, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, at: slice) -> tuple[Tensor, Tensor]:
        k = k[:, :, at]
        phi_k = self.key_features(k.to(accumulation_dtype(k)), at.start)
        if key_padding_mask is not None:
            phi_k = phi_k.masked_fill(key_padding_mask[:, None, at, None], 0.0)
        return phi_k, v[:, :, at].to(phi_k.dtype)

    def _divide(self, numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
        out = (numerator / denominator.clamp(min=self.smallest_denominator)).to(dtype)
        return F.dropout(out, self.dropout, self.training)

    def scan(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, *, want_state: bool
    ) -> tuple[Float[Tensor, "B H L Dv"], KernelState | None]:
        """The causal form, and the state after the last position where it is wanted."""
        outs, sums = [], None
        for at in self.blocks(q):
            phi_k, values = self._keys(k, v, key_padding_mask, at)
            more = want_state or at.stop < q.shape[2]
            numerator, denominator, sums = continue_scan(self._queries(q, at), phi_k, values, sums, more=more)
            outs.append(self._divide(numerator, denominator, q.dtype))
        return join(outs), None if sums is None else KernelState(*sums)

    def summary(self, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> KernelState:
        """S and z over all keys."""
        state = None
        for at in self.blocks(k):
            new = summarise(*self._keys(k, v, key_padding_mask, at))
            state = new if state is None else KernelState(state.s + new.s, state.z + new.z)
        assert state is not None
        return state

    def read_all(self, q: Tensor, state: KernelState) -> Float[Tensor, "B H Lq Dv"]:
        """What each query reads from the same state."""
        return join([self._divide(*read(self._queries(q, at), state), q.dtype) for at in self.blocks(q)])

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        with without_autocast(q):
            if self.pattern is Pattern.CAUSAL_SELF:
                return self.scan(q, k, v, key_padding_mask, want_state=False)[0]
            return self.read_all(q, self.summary(k, v, key_padding_mask))

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        with without_autocast(q):
            if self.pattern is Pattern.CAUSAL_SELF:
                out, state = self.scan(q, k, v, key_padding_mask, want_state=True)
                assert state is not None
                return out, state
            state = self.summary(k, v, key_padding_mask)
            return self.read_all(q, state), state

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, KernelState)
        with without_autocast(q):
            here = slice(0, 1)
            if k is not None and v is not None:
                new = summarise(*self._keys(k, v, None, here))
                state = KernelState(state.s + new.s, state.z + new.z)
            return self._divide(*read(self._queries(q, here), state), q.dtype), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        features, width = self.num_features, self.head_dim
        rows = batch * self.num_heads
        if self.pattern is not Pattern.CAUSAL_SELF:
            return 2 * rows * features * (length_k * width + length_q * (width + 1))
        chunks = [min(SCAN_CHUNK, length_q - first) for first in range(0, length_q, SCAN_CHUNK)]
        within = sum(chunk * chunk for chunk in chunks) * (features + width)
        between = (length_q - chunks[0]) * features * (width + 1) + (length_q - chunks[-1]) * features * width
        return 2 * rows * (within + between)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return batch * self.num_heads * self.num_features * (self.head_dim + 1) * max(element_size, 4)


class LinearCore(KernelCore):
    """Linear attention with a fixed feature map, the same for queries and keys.

    Args:
        feature_map: ``elu`` (elu(x) + 1, the paper's) or ``relu`` (max(x, 0) + 0.001).
    """

    # Products of two features of unit-scale inputs are far above; only a row without weight comes to it.
    smallest_denominator = 1e-6

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        feature_map: str = "elu",
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if feature_map not in FEATURE_MAPS:
            raise UnknownName("feature_map", feature_map, FEATURE_MAPS)
        self.feature_map = feature_map
        self.num_features = head_dim

    def query_features(self, q: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L D"]:
        return FEATURE_MAPS[self.feature_map](q)

    def key_features(self, k: Float[Tensor, "B H L D"], first: int) -> Float[Tensor, "B H L D"]:
        return FEATURE_MAPS[self.feature_map](k)


class LinearAttention(HeadwiseAttention):
    """Multi-head linear attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = LinearCore
