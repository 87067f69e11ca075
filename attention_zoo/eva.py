"""EVA: softmax over the tokens near a query and over summaries of all others, each a control variate of its own.

Random-feature attention is one control variate for all tokens; EVA gives the tokens E_n near query n the best one each,
which makes them exact, and each chunk P_c of the others a shared one. With s = 1/sqrt(D),

    o_n = (sum_{m in E_n} e^(s q_n . k_m) v_m + sum_c e^(s q_n . k~_c) beta_c)
          / (sum_{m in E_n} e^(s q_n . k_m) + sum_c e^(s q_n . k~_c)),

    beta_c = sum_{m in P_c} xi(k_m, w_c) v_m / sum_{m in P_c} xi(k_m, w_c),    xi(x, w) = exp(w . x' - |x'|^2 / 2),

    q~_c = LN(W_q mean_{m in P_c} q_m + b_q),    k~_c = LN(W_k mean_{m in P_c} k_m + b_k),

    w_c = x'(q~_c + k~_c) in the causal pattern, half of it in the noncausal one (the authors' code),

where x' = x / D^(1/4). The paper draws w_c from N(q~_c + k~_c, I) while training; here it is always the mean, as in the
authors' evaluation, so that training and evaluation are one function. Their relative position bias, 2-D windows and
overlapping windows are left out. An empty P_c has no part in the sums.

Partition. E_n and the P_c hold each visible token once, as in the paper. (The authors' code summarises chunks that
overlap the window as a whole, so that near tokens count twice.) Windows are blocks of consecutive positions, E_n is
the block of n, and chunks and windows are nested. With S = ceil(max_length / num_landmarks), the chunk asked for:

    S < window:   a window is cut into p = ceil(window / S) chunks of ceil(window / p) tokens, and holds just these;
    S >= window:  floor(S / window) windows make a chunk. In the chunk of n itself, noncausal: the tokens outside the
                  window are one more P_c (with the w_c of the whole); causal: each earlier window is a P_c of its own.

So there are num_landmarks to 2 num_landmarks chunks at ``max_length``. All sizes are constants of the layer: neither
padding nor what comes later moves a border. Causal: E_n holds the past of its block, itself included, and P_c is seen
once it is complete. A window of the whole sequence is softmax attention.

Time and memory O(L (window + C) D) with C chunks (and L / (C window) windows of the own chunk where that is more than
one). Decoding keeps the queries, keys and values of the current chunk or window and two vectors for each P_c before it.
Published: noncausal self and causal self attention. In the cross patterns a query has no tokens that are near, and in
the causal one a chunk's queries would be later ones.

Source: L. Zheng, J. Yuan, C. Wang, L. Kong, "Efficient Attention via Control Variates", ICLR 2023, arXiv:2302.04542;
code of the authors: HKUNLP/efficient-attention. 49 landmarks and windows of 7 x 7 are their setting on images; 8 and 32
(``eva_translation``) are sizes of their translation models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo.contract import (
    AttentionCore,
    Card,
    Collapse,
    HeadwiseAttention,
    Pattern,
    State,
    Support,
    Unsupported,
)
from attention_zoo.lara import LandmarkProjection, half_square
from attention_zoo.primitives import accumulation_dtype, attention_with_lse, merge_by_lse, without_autocast

NO_CROSS = "the window of a query is the block of tokens around it, and a target's query is in no block of the source"

CARD = Card(
    name="eva",
    title="Efficient Attention via Control Variates",
    authors="Zheng, Yuan, Wang, Kong",
    year=2023,
    paper="arXiv:2302.04542",
    family="kernel",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.CAUSAL_SELF: Support.PUBLISHED},
    unsupported={Pattern.NONCAUSAL_CROSS: NO_CROSS, Pattern.CAUSAL_CROSS: NO_CROSS},
    permutation_equivariant=False,
    incremental=frozenset({Pattern.CAUSAL_SELF}),
    collapses=Collapse({"window": "length"}),
)


class Partition(NamedTuple):
    """How positions are cut: one of ``chunks_per_window`` and ``windows_per_chunk`` is 1."""

    cell: int
    """Tokens of the smaller of window and chunk."""
    chunks_per_window: int
    windows_per_chunk: int

    @property
    def window(self) -> int:
        return self.cell * self.chunks_per_window

    @property
    def block(self) -> int:
        """Tokens of the larger of window and chunk."""
        return self.window * self.windows_per_chunk

    @classmethod
    def of(cls, max_length: int, num_landmarks: int, window: int) -> Partition:
        """The partition of the module's docstring."""
        size = -(-max_length // num_landmarks)
        pieces = -(-window // size)
        return cls(-(-window // pieces), pieces, max(size // window, 1))


class Summary(NamedTuple):
    """k~_c, beta_c and whether P_c is empty (or unseen)."""

    key: Float[Tensor, "B H C *n D"]
    value: Float[Tensor, "B H C *n Dv"]
    empty: Bool[Tensor, "B C *n"]


class Cells(NamedTuple):
    """Sums over the cells of each chunk, with the chunk's w_c: all chunks and parts of chunks are made of these."""

    tokens: Int64[Tensor, "B C n"]
    sum_k: Float[Tensor, "B H C n D"]
    beta: Float[Tensor, "B H C n Dv"]
    log_sum: Float[Tensor, "B H C n"]
    """log sum xi(k_m, w_c)."""


Kept = tuple[Tensor, Tensor, Tensor | None]  # a Summary in a state


@dataclass
class EvaState(State):
    """The current block, ``[B, H, m, D]``, with the summaries of its complete windows, and those of all chunks before.

    ``padded`` ``[B, m]`` and the two of ``empty`` are None where there is no padding. The windows of a block that is a
    single window have no summaries.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    padded: Tensor | None
    window_key: Tensor
    window_value: Tensor
    window_empty: Tensor | None
    chunk_key: Tensor
    chunk_value: Tensor
    chunk_empty: Tensor | None


def normalised_exp(logits: Float[Tensor, "*n m"]) -> tuple[Float[Tensor, "*n m"], Float[Tensor, "*n"]]:
    """softmax and log-sum-exp over the last dimension; where all logits are -inf, zeros and -inf, without gradients."""
    largest = logits.detach().amax(-1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    weights = torch.exp(logits - largest)
    total = weights.sum(-1, keepdim=True)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    return weights / total, torch.where(seen, total.log() + largest, -torch.inf).squeeze(-1)


def mean(total: Float[Tensor, "B H N D"], count: Int64[Tensor, "B N"]) -> Float[Tensor, "B H N D"]:
    """Sums over counts; zero where nothing was summed."""
    return total / count.clamp(min=1)[:, None, :, None]


def before_the_window(windows: Summary, span: int) -> Summary:
    """Of each window the earlier windows of its chunk, each a P_c: [B, H, T, span, D]."""

    def shared(x: Tensor, dim: int) -> Tensor:
        x = x.unflatten(dim, (-1, span)).unsqueeze(dim + 1)
        return x.expand(*x.shape[: dim + 1], span, *x.shape[dim + 2 :]).flatten(dim, dim + 1)

    count = windows.key.shape[2]
    later = torch.ones(span, span, dtype=torch.bool, device=windows.key.device).triu()
    hidden = shared(windows.empty, 1) | later.repeat(count // span, 1)
    return Summary(shared(windows.key, 2), shared(windows.value, 2), hidden)


class EvaCore(AttentionCore):
    """EVA.

    Args:
        num_landmarks: about how many chunks there are at ``max_length``, see the module's docstring.
        window: tokens of a window, at least.
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
        window: int = 49,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        for option, value in (("num_landmarks", num_landmarks), ("window", window)):
            if value < 1:
                raise ValueError(f"{option}={value} is not a positive number")
        self.num_landmarks = num_landmarks
        self.window = window
        self.partition = Partition.of(max_length, num_landmarks, window)
        self.query_landmarks = LandmarkProjection(head_dim)
        self.key_landmarks = LandmarkProjection(head_dim)

    def cells(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        valid: Bool[Tensor, "B L"] | None,
        span: int,
    ) -> tuple[Float[Tensor, "B H C D"], Cells]:
        """k~_c and the sums of chunks of ``span`` cells each. L is a multiple of their tokens."""
        size, width = self.partition.cell, q.shape[-1]
        shape = (q.shape[2] // (size * span), span, size)
        q, k, v = (x.unflatten(2, shape) for x in (q, k, v))
        if valid is None:
            count = torch.full((q.shape[0], *shape[:2]), size, device=q.device)
            sum_q, sum_k = q.sum(4), k.sum(4)
        else:
            valid = valid.unflatten(1, shape)
            count = valid.sum(-1)
            sum_q, sum_k = (x.masked_fill(~valid[:, None, ..., None], 0.0).sum(4) for x in (q, k))
        in_chunk = count.sum(-1)
        q_tilde = self.query_landmarks(mean(sum_q.sum(3), in_chunk))
        k_tilde = self.key_landmarks(mean(sum_k.sum(3), in_chunk))
        scale = width**-0.25
        w = (q_tilde + k_tilde) * (scale if self.pattern.is_causal else scale / 2)
        log_xi = (k @ (w * scale)[:, :, :, None, :, None]).squeeze(-1) - half_square(k) * scale**2
        if valid is not None:
            log_xi = log_xi.masked_fill(~valid[:, None], -torch.inf)
        xi, log_sum = normalised_exp(log_xi)
        return k_tilde, Cells(count, sum_k, (xi[..., None, :] @ v).squeeze(-2), log_sum)

    def chunks(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        valid: Bool[Tensor, "B L"] | None,
        span: int,
    ) -> tuple[Summary, Cells]:
        """The chunks of ``span`` cells each, and what they are made of."""
        k_tilde, cells = self.cells(q, k, v, valid, span)
        beta = cells.beta.squeeze(3) if span == 1 else merge_by_lse(cells.beta, cells.log_sum, 3)[0]
        return Summary(k_tilde, beta, cells.tokens.sum(-1) == 0), cells

    def outside_the_window(self, cells: Cells) -> Summary:
        """Of each window (a cell) the rest of its chunk, as one P_c: [B, H, T, 1, D]."""
        span = cells.tokens.shape[-1]
        own = torch.eye(span, dtype=torch.bool, device=cells.tokens.device)
        weights, _ = normalised_exp(cells.log_sum[..., None, :].masked_fill(own, -torch.inf))
        left = (cells.tokens.sum(-1, keepdim=True) - cells.tokens).flatten(1)
        sum_k = (~own).to(cells.sum_k.dtype) @ cells.sum_k
        k_tilde = self.key_landmarks(mean(sum_k.flatten(2, 3), left))
        return Summary(
            k_tilde[:, :, :, None], (weights @ cells.beta).flatten(2, 3)[:, :, :, None], (left == 0)[..., None]
        )

    def near(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        valid: Bool[Tensor, "B L"] | None,
        rest: Summary | None,
    ) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L"]]:
        """Attention of each window to itself, and to what ``rest`` has of its chunk, with its log-sum-exp."""
        size = self.partition.window
        blocks = q.shape[2] // size
        q, k, v = (x.unflatten(2, (blocks, size)) for x in (q, k, v))
        visible = None if valid is None else valid.unflatten(1, (blocks, size))[:, None, :, None]
        if self.pattern.is_causal:
            past = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
            visible = past[None, None, None] if visible is None else visible & past
        if rest is not None:
            if visible is None:
                visible = torch.ones(1, 1, 1, 1, size, dtype=torch.bool, device=q.device)
            seen = ~rest.empty[:, None, :, None]
            shape = (q.shape[0], 1, blocks, visible.shape[3])
            visible = torch.cat((visible.expand(*shape, -1), seen.expand(*shape, -1)), -1)
            k, v = torch.cat((k, rest.key), -2), torch.cat((v, rest.value), -2)
        out, lse = attention_with_lse(q, k, v, scale=self.head_dim**-0.5, visible=visible, dropout=self._dropout)
        return out.flatten(2, 3), lse.flatten(2, 3)

    def far(
        self, q: Float[Tensor, "B H L D"], chunks: Summary, span: int
    ) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L"]]:
        """Attention to the summaries of the other chunks (of the earlier ones, causal), with its log-sum-exp."""
        home = torch.arange(q.shape[2], device=q.device)[:, None] // (self.partition.window * span)
        chunk = torch.arange(chunks.key.shape[2], device=q.device) // self.partition.chunks_per_window
        visible = (chunk < home) if self.pattern.is_causal else (chunk != home)
        visible = visible & ~chunks.empty[:, None, None]
        return attention_with_lse(
            q, chunks.key, chunks.value, scale=self.head_dim**-0.5, visible=visible, dropout=self._dropout
        )

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _span(self, length: int) -> int:
        """Windows of a chunk, of those that a sequence has."""
        return min(self.partition.windows_per_chunk, -(-length // self.partition.window))

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        dtype, length, span = q.dtype, q.shape[2], self._span(q.shape[2])
        valid = None if key_padding_mask is None else ~key_padding_mask
        short = -length % (self.partition.window * span)
        with without_autocast(q):
            q, k, v = (x.to(accumulation_dtype(x)) for x in (q, k, v))
            if short:
                q, k, v = (F.pad(x, (0, 0, 0, short)) for x in (q, k, v))
                valid = torch.ones(len(q), length, dtype=torch.bool, device=q.device) if valid is None else valid
                valid = F.pad(valid, (0, short))
            chunks, cells = self.chunks(q, k, v, valid, span)
            rest = None
            if span > 1 and self.pattern.is_causal:
                rest = before_the_window(self.chunks(q, k, v, valid, 1)[0], span)
            elif span > 1:
                rest = self.outside_the_window(cells)
            near, near_lse = self.near(q, k, v, valid, rest)
            far, far_lse = self.far(q, chunks, span)
            out, _ = merge_by_lse(torch.stack((near, far)), torch.stack((near_lse, far_lse)), 0)
        return out[:, :, :length].to(dtype)

    def _summaries(self, tokens: Sequence[Tensor], padded: Tensor | None, span: int) -> Kept:
        """``chunks`` as a state holds them."""
        with without_autocast(tokens[0]):
            q, k, v = (x.to(accumulation_dtype(x)) for x in tokens)
            summary, _ = self.chunks(q, k, v, None if padded is None else ~padded, span)
        return summary.key, summary.value, None if padded is None else summary.empty

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        if not self.pattern.is_causal:
            raise Unsupported(f"{self.pattern} attention has no order in which to decode")
        out = self(q, k, v, key_padding_mask=key_padding_mask)
        length, span = q.shape[2], self.partition.windows_per_chunk
        done = length - length % self.partition.block
        complete = length - length % self.partition.window if span > 1 else done

        def part(start: int, end: int) -> tuple[list[Tensor], Tensor | None]:
            padded = None if key_padding_mask is None else key_padding_mask[:, start:end]
            return [x[:, :, start:end] for x in (q, k, v)], padded

        block, padded = part(done, length)
        windows = self._summaries(*part(done, complete), 1)
        chunks = self._summaries(*part(0, done), span)
        return out, _state(block, padded, windows, chunks)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, EvaState)
        assert k is not None
        assert v is not None
        block = [torch.cat((old, new), 2) for old, new in ((state.q, q), (state.k, k), (state.v, v))]
        padded = None if state.padded is None else F.pad(state.padded, (0, 1))
        windows = (state.window_key, state.window_value, state.window_empty)
        chunks = (state.chunk_key, state.chunk_value, state.chunk_empty)
        held, size = block[0].shape[2], self.partition.window
        first = (held - 1) // size * size
        with without_autocast(q):
            query, keys, values = (
                x.to(accumulation_dtype(x)) for x in (q, block[1][:, :, first:], block[2][:, :, first:])
            )
            keys = torch.cat((keys, windows[0], chunks[0]), 2)
            values = torch.cat((values, windows[1], chunks[1]), 2)
            visible = None
            if padded is not None and windows[2] is not None and chunks[2] is not None:
                visible = ~torch.cat((padded[:, first:], windows[2], chunks[2]), 1)[:, None, None]
            out, _ = attention_with_lse(
                query, keys, values, scale=self.head_dim**-0.5, visible=visible, dropout=self._dropout
            )
        if held == self.partition.block:
            chunks = _joined(chunks, self._summaries(block, padded, self.partition.windows_per_chunk))
            block, padded = [x[:, :, :0] for x in block], None if padded is None else padded[:, :0]
            windows = (windows[0][:, :, :0], windows[1][:, :, :0], None if windows[2] is None else windows[2][:, :0])
        elif held % size == 0:
            new = self._summaries([x[:, :, first:] for x in block], None if padded is None else padded[:, first:], 1)
            windows = _joined(windows, new)
        return out.to(q.dtype), _state(block, padded, windows, chunks)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        size, width, span = self.partition.window, self.head_dim, self._span(length_q)
        length = length_q + -length_q % (size * span)
        chunks, windows = length // (self.partition.cell * span), length // size
        products = length * (size + chunks) * 2 * width + 2 * length * width + 2 * chunks * width * width
        if span > 1 and self.pattern.is_causal:
            products += length * span * 2 * width + 2 * length * width + 2 * windows * width * width
        elif span > 1:
            products += length * 2 * width + 2 * windows * span * width + windows * width * width
        return 2 * batch * self.num_heads * products

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        done, current = divmod(length, self.partition.block)
        summaries = done * self.partition.chunks_per_window
        if self.partition.windows_per_chunk > 1:
            summaries += current // self.partition.window
        values = 3 * current * element_size + 2 * summaries * max(element_size, 4)
        return batch * self.num_heads * self.head_dim * values


def _state(block: Sequence[Tensor], padded: Tensor | None, windows: Kept, chunks: Kept) -> EvaState:
    q, k, v = block
    return EvaState(q, k, v, padded, *windows, *chunks)


def _joined(old: Kept, new: Kept) -> Kept:
    empty = None if old[2] is None or new[2] is None else torch.cat((old[2], new[2]), 1)
    return torch.cat((old[0], new[0]), 2), torch.cat((old[1], new[1]), 2), empty


class EvaAttention(HeadwiseAttention):
    """Multi-head EVA."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = EvaCore
