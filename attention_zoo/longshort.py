"""Long-short attention (Transformer-LS): a window of tokens, and r learned summaries of all others, in one softmax.

Dynamic projection compresses keys and values; DualLN gives tokens and summaries one scale (E wide, all heads at once):

    P = softmax over tokens of X W^P,  [L, r] for each head,    K^ = P^T K,    V^ = P^T V
    o_t = softmax(s q_t [LN_G(K^) ; LN_L(K_t)]^T) [LN_G(V^) ; LN_L(V_t)],    s = D^-1/2

with r = ``num_landmarks`` and K_t, V_t the keys and values in the window of t. Each norm serves keys and values alike.
The joint softmax is two attentions merged by their log-sum-exp, which is the same.

* noncausal self (published): the window is the paper's, segment by segment and not sliding: w = ``window`` tokens see
  their segment and max(floor(w / 2), 1) tokens on both sides of it, 2 w keys at even w.
* causal self (published): each chunk of c = ``chunk_size`` tokens is compressed into r of its own; a query sees the
  summaries of the chunks before its own, which are complete, and the w tokens up to itself (sliding). A token may
  count both ways, as published. The paper's relative position terms are left out: order enters by the chunks and the
  window alone, and whoever wants positions adds them to the input.
* both cross patterns (our extension): the compressed source alone, as positions of target and source have nothing in
  common, so no window and no LN_L. Each query is treated alone, hence causal in the target.

LN_G is applied to summaries of keys before LN_L, as in the authors' autoregressive code (their Long Range Arena code
summarises keys after it). W^P has no bias: one would cancel. Padding is in no summary and no window; a chunk without
tokens has no summary.

Noncausal: time O(L (w + r) D), memory O(L (w + r)). Causal: time O(L (w + r L / c) D), memory O(L (w + r L / c)), so
quadratic with a small factor: the card gives this order. Decoding keeps the summaries, the open chunk and the window.

Source: C. Zhu et al., "Long-Short Transformer: Efficient Transformers for Language and Vision", NeurIPS 2021,
arXiv:2107.02192, section 3; the authors' code (github.com/NVIDIA/transformer-ls). Defaults w = 8 and r = 32: their Long
Range Arena scripts; they have no causal form there, and c = 128 is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo._banded import attend_band, attend_windows, band_pairs, count_blocks, keep_ends
from attention_zoo.contract import Card, Pattern, ProjectedAttention, State, Support, Unsupported
from attention_zoo.primitives import accumulation_dtype, attention_with_lse
from attention_zoo.softmax import KVCache

CARD = Card(
    name="longshort",
    title="Long-Short Transformer: Efficient Transformers for Language and Vision",
    authors="Zhu, Ping, Xiao, Shoeybi, Goldstein, Anandkumar, Catanzaro",
    year=2021,
    paper="arXiv:2107.02192",
    family="projection",
    exact=False,
    time_order="L^2",
    memory_order="L^2",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    linear_in_values=False,  # LN
    permutation_equivariant=False,
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
    no_core_reason="the dynamic projection is computed from the layer's input, and DualLN is over all heads at once",
)

SEGMENTED_ROWS = 32  # queries that are computed together at least, where segments are short


class Summaries(NamedTuple):
    """K^ and V^ after LN_G, ``[B, H, R, D]``, and which are of any token, ``[B, R]`` (None: all)."""

    k: Tensor
    v: Tensor
    exists: Tensor | None

    def append(self, new: Summaries) -> Summaries:
        exists = None
        if self.exists is not None and new.exists is not None:
            exists = torch.cat([self.exists, new.exists], dim=1)
        return Summaries(torch.cat([self.k, new.k], dim=2), torch.cat([self.v, new.v], dim=2), exists)


class Tokens(NamedTuple):
    """Keys and values before any norm, ``[B, L, E]``, logits of P ``[B, L, H, r]``, padding ``[B, L]`` (None: none)."""

    k: Tensor
    v: Tensor
    logits: Tensor
    key_padding_mask: Tensor | None

    def slice(self, start: int, end: int) -> Tokens:
        mask = self.key_padding_mask
        return Tokens(
            self.k[:, start:end],
            self.v[:, start:end],
            self.logits[:, start:end],
            None if mask is None else mask[:, start:end],
        )

    def append(self, new: Tokens) -> Tokens:
        """A longer list; the new tokens are no padding."""
        mask = self.key_padding_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_zeros(len(mask), new.k.shape[1])], dim=1)
        k, v, logits = (torch.cat(pair, dim=1) for pair in zip(self[:3], new[:3], strict=True))
        return Tokens(k, v, logits, mask)


@dataclass
class SourceSummary(State):
    """The compressed source (see :class:`Summaries`)."""

    k: Tensor
    v: Tensor
    exists: Tensor | None


@dataclass
class LongShortState(State):
    """Summaries of complete chunks, the tokens of the open chunk, and those of the window after LN_L."""

    summary_k: Tensor
    summary_v: Tensor
    summary_exists: Tensor | None
    open_k: Tensor
    open_v: Tensor
    open_logits: Tensor
    open_padding: Tensor | None
    window_k: Tensor
    window_v: Tensor
    window_padding: Tensor | None

    @classmethod
    def of(cls, summaries: Summaries, opened: Tokens, window: KVCache) -> LongShortState:
        return cls(
            *summaries,
            opened.k,
            opened.v,
            opened.logits,
            opened.key_padding_mask,
            window.k,
            window.v,
            window.key_padding_mask,
        )

    @property
    def summaries(self) -> Summaries:
        return Summaries(self.summary_k, self.summary_v, self.summary_exists)

    @property
    def opened(self) -> Tokens:
        return Tokens(self.open_k, self.open_v, self.open_logits, self.open_padding)

    @property
    def window(self) -> KVCache:
        return KVCache(self.window_k, self.window_v, self.window_padding)


def dynamic_projection(
    logits: Float[Tensor, "B N c H r"], padded: Bool[Tensor, "B N c"] | None
) -> Float[Tensor, "B H N r c"]:
    """P^T: a softmax over the visible tokens of each chunk, zero where there is none."""
    wide = logits.permute(0, 3, 1, 4, 2).to(accumulation_dtype(logits))
    if padded is None:
        return torch.softmax(wide, dim=-1)
    hidden = padded[:, None, :, None]
    return torch.softmax(wide.masked_fill(hidden, torch.finfo(wide.dtype).min), dim=-1).masked_fill(hidden, 0.0)


def join(window: tuple[Tensor, Tensor], summaries: tuple[Tensor, Tensor]) -> Tensor:
    """One softmax over both sets of keys from the attention to each: merge_by_lse for two, without stacking them."""
    (out_w, lse_w), (out_s, lse_s) = window, summaries
    difference = lse_s - lse_w
    # Where both see nothing, both outputs are zero, and so is any mean of them.
    share = torch.sigmoid(torch.where(difference.isnan(), 0.0, difference))
    return torch.lerp(out_w, out_s, share.unsqueeze(-1))


def segments(window: int, length: int) -> tuple[Bool[Tensor, "m W"], int]:
    """The published window for blocks of whole segments: which keys of the block's span a query sees, and the reach."""
    if window >= length:
        return torch.ones(length, length, dtype=torch.bool), 0
    reach = max(window // 2, 1)
    rows = window * -(-min(SEGMENTED_ROWS, length) // window)
    start = torch.arange(rows)[:, None] // window * window
    column = torch.arange(rows + 2 * reach)
    return (column >= start) & (column < start + window + 2 * reach), reach


class LongShortAttention(ProjectedAttention):
    """Multi-head long-short attention.

    Args:
        window: w, of the self patterns: tokens of a segment (noncausal), or past tokens, itself included (causal).
        num_landmarks: r, summaries of the sequence, or of each chunk (causal self); 0 for a window alone.
        chunk_size: c, of the causal self pattern.
        dual_norm: whether tokens and summaries pass LN_L and LN_G.
    """

    card = CARD

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        window: int = 8,
        num_landmarks: int = 32,
        chunk_size: int = 128,
        dual_norm: bool = True,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            bias=bias,
        )
        for name, value, least in (
            ("window", window, 1),
            ("num_landmarks", num_landmarks, 0),
            ("chunk_size", chunk_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} is too small; longshort needs at least {least}")
        if num_landmarks == 0 and self.pattern.is_cross:
            raise Unsupported(
                f"longshort with num_landmarks=0 has no {self.pattern} form: it sees nothing of the source"
            )
        self.window = window
        self.num_landmarks = num_landmarks
        self.chunk_size = chunk_size
        self.dual_norm = dual_norm
        self.token_norm = nn.LayerNorm(embed_dim) if dual_norm and not self.pattern.is_cross else nn.Identity()
        self.summary_norm = nn.LayerNorm(embed_dim) if dual_norm and num_landmarks else nn.Identity()
        if num_landmarks:
            self.dynamic_projection = nn.Linear(embed_dim, num_heads * num_landmarks, bias=False)
            nn.init.xavier_uniform_(self.dynamic_projection.weight)

    def _tokens(self, x: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tokens:
        logits = self.dynamic_projection(x) if self.num_landmarks else x[..., :0]
        return Tokens(
            self.key_projection(x),
            self.value_projection(value),
            logits.unflatten(-1, (self.num_heads, self.num_landmarks)),
            key_padding_mask,
        )

    def _summarise(self, tokens: Tokens, chunk: int) -> Summaries:
        """LN_G(P^T K) and LN_G(P^T V) of the complete chunks; R = N r."""
        count = tokens.k.shape[1] // chunk
        k, v, logits, padded = (
            None if x is None else x[:, : count * chunk].unflatten(1, (count, chunk)) for x in tokens
        )
        assert k is not None
        assert v is not None
        assert logits is not None
        p = dynamic_projection(logits, padded).to(k.dtype)

        def compress(x: Tensor) -> Tensor:
            summaries = p @ x.unflatten(-1, (self.num_heads, self.head_dim)).permute(0, 3, 1, 2, 4)
            return self._split(self.summary_norm(summaries.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)))

        exists = None if padded is None else (~padded).any(-1).repeat_interleave(self.num_landmarks, dim=1)
        return Summaries(compress(k), compress(v), exists)

    def _window_tokens(self, tokens: Tokens) -> KVCache:
        """LN_L(K) and LN_L(V)."""
        k, v = (self._split(self.token_norm(x)) for x in (tokens.k, tokens.v))
        return KVCache(k, v, tokens.key_padding_mask)

    def _attend_summaries(self, q: Tensor, summaries: Summaries, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        """``visible`` [Lq, R] says which are of the past (None: all)."""
        if summaries.exists is not None:
            exists = summaries.exists[:, None, None]
            visible = exists if visible is None else exists & visible
        dropout = self.dropout if self.training else 0.0
        return attention_with_lse(
            q, summaries.k, summaries.v, scale=self.head_dim**-0.5, visible=visible, dropout=dropout
        )

    def _attend_window(self, q: Tensor, tokens: KVCache) -> tuple[Tensor, Tensor]:
        scale, dropout = self.head_dim**-0.5, self.dropout if self.training else 0.0
        valid = None if tokens.key_padding_mask is None else ~tokens.key_padding_mask
        if self.pattern is Pattern.CAUSAL_SELF:
            return attend_band(
                q, tokens.k, tokens.v, before=self.window - 1, after=0, key_valid=valid, scale=scale, dropout=dropout
            )
        pattern, reach = segments(self.window, q.shape[2])
        return attend_windows(
            q, tokens.k, tokens.v, pattern, before=reach, key_valid=valid, scale=scale, dropout=dropout
        )

    def _past_chunks(self, length: int, summaries: Summaries) -> Bool[Tensor, "L R"]:
        """True where a summary is of a chunk before the query's own."""
        device = summaries.k.device
        chunk = torch.arange(summaries.k.shape[2], device=device) // self.num_landmarks
        return chunk < torch.arange(length, device=device)[:, None] // self.chunk_size

    def _attend_self(self, q: Tensor, tokens: Tokens) -> tuple[Tensor, Summaries, KVCache]:
        length, causal = q.shape[2], self.pattern is Pattern.CAUSAL_SELF
        window = self._window_tokens(tokens)
        of_window = self._attend_window(q, window)
        attended, _ = of_window
        summaries = self._no_summaries(window)
        if self.num_landmarks and (not causal or length >= self.chunk_size):
            summaries = self._summarise(tokens, self.chunk_size if causal else length)
            visible = self._past_chunks(length, summaries) if causal else None
            attended = join(of_window, self._attend_summaries(q, summaries, visible))
        return self._merge(attended.to(q.dtype)), summaries, window

    def _no_summaries(self, window: KVCache) -> Summaries:
        mask = window.key_padding_mask
        return Summaries(window.k[:, :, :0], window.v[:, :, :0], None if mask is None else mask[:, :0])

    def forward(
        self,
        query: Float[Tensor, "B Lq E"],
        key: Float[Tensor, "B Lk E"] | None = None,
        value: Float[Tensor, "B Lk E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B Lq E"]:
        self.check_inputs(query, key, value, key_padding_mask)
        q = self._split(self.query_projection(query))
        if key is None or value is None:
            return self._attend_self(q, self._tokens(query, query, key_padding_mask))[0]
        source = self._summarise(self._tokens(key, value, key_padding_mask), key.shape[1])
        return self._merge(self._attend_summaries(q, source, None)[0].to(q.dtype))

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        *,
        source: Float[Tensor, "B Lk E"] | None = None,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], State]:
        self.check_prefix(x, source, key_padding_mask)
        q = self._split(self.query_projection(x))
        if source is not None:
            summaries = self._summarise(self._tokens(source, source, key_padding_mask), source.shape[1])
            out = self._merge(self._attend_summaries(q, summaries, None)[0].to(q.dtype))
            return out, SourceSummary(*summaries)
        tokens, length = self._tokens(x, x, key_padding_mask), x.shape[1]
        out, summaries, window = self._attend_self(q, tokens)
        opened = tokens.slice(length - self._open_length(length), length)
        return out, LongShortState.of(summaries, opened, keep_ends(window, 0, self.window))

    def _open_length(self, length: int) -> int:
        """Tokens of the open chunk; none where chunks are not summarised."""
        return length % self.chunk_size if self.num_landmarks else 0

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        if x_t.ndim == 2:
            out, state = self.step(x_t[:, None], state)
            return out[:, 0], state
        q = self._split(self.query_projection(x_t))
        if isinstance(state, SourceSummary):
            read, _ = self._attend_summaries(q, Summaries(state.k, state.v, state.exists), None)
            return self._merge(read.to(q.dtype)), state
        assert isinstance(state, LongShortState)
        token = self._tokens(x_t, x_t, None)
        new = self._window_tokens(token)
        window = keep_ends(state.window.append(new.k, new.v), 0, self.window)
        summaries, opened = state.summaries, state.opened
        # All that is kept is visible to the newest query.
        visible = None if window.key_padding_mask is None else ~window.key_padding_mask[:, None, None]
        of_window = attention_with_lse(q, window.k, window.v, scale=self.head_dim**-0.5, visible=visible)
        attended, _ = of_window
        if self.num_landmarks:
            if summaries.k.shape[2]:
                attended = join(of_window, self._attend_summaries(q, summaries, None))
            opened = opened.append(token)
            if opened.k.shape[1] == self.chunk_size:
                summaries = summaries.append(self._summarise(opened, self.chunk_size))
                opened = opened.slice(self.chunk_size, self.chunk_size)
        return self._merge(attended.to(q.dtype)), LongShortState.of(summaries, opened, window)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        rows, width, landmarks = batch * self.num_heads, self.head_dim, self.num_landmarks
        compressed, pairs = length_k, 0
        if self.pattern is Pattern.CAUSAL_SELF:
            pairs = band_pairs(length_q, self.window - 1, 0)
            chunks = length_k // self.chunk_size
            compressed = chunks * self.chunk_size
            landmarks *= chunks
        elif self.pattern is Pattern.NONCAUSAL_SELF:
            pattern, reach = segments(self.window, length_q)
            pairs = count_blocks(length_q, len(pattern), reach, reach) * pattern.numel()
        logits = length_k * self.embed_dim * self.num_landmarks
        products = 2 * compressed * self.num_landmarks * width + 2 * (length_q * landmarks + pairs) * width
        return self.projection_flops(batch, length_q, length_k) + 2 * rows * (logits + products)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        if self.pattern is Pattern.CAUSAL_CROSS:
            return 2 * batch * self.num_landmarks * self.embed_dim * element_size
        if self.pattern is not Pattern.CAUSAL_SELF:
            return super().state_bytes(batch, length, element_size)
        kept = length // self.chunk_size * self.num_landmarks + self._open_length(length) + min(length, self.window)
        logits = self._open_length(length) * self.num_heads * self.num_landmarks
        return batch * (2 * kept * self.embed_dim + logits) * element_size
