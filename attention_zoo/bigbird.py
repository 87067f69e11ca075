"""BigBird: blocks of queries see leading global blocks, the blocks around their own, and a few random blocks.

Tokens are cut into blocks of b = ``block_size``. The first g = ``num_global`` blocks are global (the paper's ITC form:
existing tokens are made global); n numbers the N blocks after them. With r = ``num_random``:

    global rows:  o_i = softmax over all j
    others:       o_i = softmax over the j in global blocks, in blocks n - 1, n, n + 1 and in the blocks R_n
    R_n = r distinct blocks, uniform out of {0 .. N - 1} without {n - 1, n, n + 1} (all, if fewer are left)

of q_i . k_j / sqrt(D). The three sets are disjoint, so each key counts once. What is random is drawn when the layer is
built and kept in a buffer: integers u_ns in [0, 2^31), for each head, block n and s < r. R_n follows from them for any
number c of candidates by Floyd's sampling, in integers: with c' = max(c, r) and j = c' - r + s, the s-th pick is
floor(u_ns (j + 1) / 2^31), or j itself where that was picked before; picks that are no candidate fall away. So the
graph is fixed for a length, is the same in training, in evaluation and in any dtype, and exists at every length up to
``max_length``.

The authors' code makes the first and the last block global. The last one depends on the length (and on the padding in
a batch), so here all are leading, which the paper's definition leaves open. N ends with the block of a sample's last
token that is no padding, so that trailing padding equals cutting.

Published: noncausal self attention. Our extension: causal self attention, the same sets intersected with j <= i: the
candidates of R_n are the blocks 0 .. n - 2, whatever comes later, and the rows of global blocks are causal rows. Blocks
belong to positions that queries and keys share, so there is no cross form.

Time and memory O(L (g + 3 + r) b D). The three sets are attended apart and merged by their log-sum-exp: only the random
blocks need copies of keys and values, r of each. Decoding keeps all keys and values, because a later block may draw any
of them, and reads at most (g + 2 + r) b of them.

Source: M. Zaheer et al., "Big Bird: Transformers for Longer Sequences", NeurIPS 2020, arXiv:2007.14062, section 2 and
appendix D; defaults of its ITC models: blocks of 64, 2 global, 3 random.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo._banded import attend_windows, count_blocks
from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, State, Support
from attention_zoo.primitives import attention_with_lse, gather_rows, merge_by_lse
from attention_zoo.softmax import KVCache

NO_CROSS = "its blocks belong to positions that queries and keys share"

CARD = Card(
    name="bigbird",
    title="Big Bird: Transformers for Longer Sequences",
    authors="Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed",
    year=2020,
    paper="arXiv:2007.14062",
    family="sparse",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.CAUSAL_SELF: Support.EXTENSION},
    unsupported={Pattern.NONCAUSAL_CROSS: NO_CROSS, Pattern.CAUSAL_CROSS: NO_CROSS},
    permutation_equivariant=False,
    softmax_logits=True,
    incremental=frozenset({Pattern.CAUSAL_SELF}),
    collapses=Collapse({"num_global": "length"}),
)

RANGE_BITS = 31  # of the numbers drawn: times a count of blocks they stay within an int64


def draw_numbers(*shape: int) -> Int64[Tensor, "*shape"]:
    """Independent uniform integers in [0, 2^31), from an own generator seeded once by torch's global one."""
    generator = torch.Generator("cpu").manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
    drawn = torch.randint(1 << RANGE_BITS, shape, generator=generator, device="cpu")
    return drawn.to(torch.get_default_device())


def sample_without_replacement(
    numbers: Int64[Tensor, "*n r"], candidates: Int64[Tensor, "*#n"]
) -> tuple[Int64[Tensor, "*n r"], Bool[Tensor, "*n r"]]:
    """r distinct numbers below c (Floyd), and which of them count: all c of them and no more where c < r."""
    size = numbers.shape[-1]
    picks: list[Tensor] = []
    for s in range(size):
        last = candidates.clamp(min=size) - size + s
        pick = (numbers[..., s] * (last + 1)) >> RANGE_BITS
        for earlier in picks[:s]:
            # `last` is above whatever an earlier draw could be, so it cannot have been picked.
            pick = torch.where(pick == earlier, last, pick)
        picks.append(pick)
    found = torch.stack(picks, dim=-1)
    return found, found < candidates[..., None]


class BigBirdCore(AttentionCore):
    """Global, neighbouring and random blocks.

    Args:
        block_size: b, tokens per block.
        num_random: r, random blocks that each block of queries sees.
        num_global: g, leading blocks that all later tokens see and, in the noncausal pattern, that see all.
    """

    draws: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        block_size: int = 64,
        num_random: int = 3,
        num_global: int = 2,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        for name, value, least in (
            ("block_size", block_size, 1),
            ("num_random", num_random, 0),
            ("num_global", num_global, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} is not allowed: it is {least} or more")
        self.block_size = block_size
        self.num_random = num_random
        self.num_global = num_global
        self.register_buffer("draws", draw_numbers(num_heads, -(-max_length // block_size), num_random))

    @property
    def _causal(self) -> bool:
        return self.pattern is Pattern.CAUSAL_SELF

    def random_blocks(
        self, block: Int64[Tensor, " N"], total: Int64[Tensor, "*b 1"]
    ) -> tuple[Int64[Tensor, "*#b H N r"], Bool[Tensor, "*#b H N r"]]:
        """R_n for the blocks numbered ``block``, of ``total`` blocks after the global ones, and which picks count."""
        below = (block - 1).clamp(min=0)
        above = torch.zeros_like(below) if self._causal else (total - block - 2).clamp(min=0)
        picks, counts = sample_without_replacement(self.draws[:, block], (below + above)[..., None, :])
        below = below[:, None]
        return torch.where(picks < below, picks, picks - below + block[:, None] + 2), counts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Bool[Tensor, "*pairs"] | None) -> tuple[Tensor, Tensor]:
        """Dense attention and its log-sum-exp, with dropout while training."""
        dropout = self.dropout if self.training else 0.0
        return attention_with_lse(q, k, v, scale=self.head_dim**-0.5, visible=visible, dropout=dropout)

    def _global_rows(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Float[Tensor, "B H G Dv"]:
        visible = None if valid is None else valid[:, None, None, :]
        if self._causal:
            count = q.shape[2]
            k, v = k[:, :, :count], v[:, :, :count]
            past = torch.ones(count, count, dtype=torch.bool, device=q.device).tril()
            visible = past if visible is None else visible[..., :count] & past
        return self.attend(q, k, v, visible)[0]

    def _other_rows(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, first: int) -> Tensor:
        """Rows from ``first`` on: three disjoint sets of keys, merged."""
        q, rest_k, rest_v = (x[:, :, first:] for x in (q, k, v))
        rest_valid = None if valid is None else valid[:, first:]
        parts = [self._neighbours(q, rest_k, rest_v, rest_valid)]
        if self.num_random > 0:
            parts.append(self._random(q, rest_k, rest_v, rest_valid))
        if first > 0:
            seen = None if valid is None else valid[:, None, None, :first]
            parts.append(self.attend(q, k[:, :, :first], v[:, :, :first], seen))
        out, lse = (torch.stack(part) for part in zip(*parts, strict=True))
        return merge_by_lse(out, lse, dim=0)[0]

    def _neighbours(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Blocks n - 1, n and n + 1; up to the query itself in the causal pattern."""
        block = min(self.block_size, q.shape[2])
        seen = torch.ones(block, (2 if self._causal else 3) * block, dtype=torch.bool, device=q.device)
        if self._causal:
            seen = seen.tril(block)
        dropout = self.dropout if self.training else 0.0
        return attend_windows(q, k, v, seen, before=block, key_valid=valid, scale=self.head_dim**-0.5, dropout=dropout)

    def _random(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The blocks R_n."""
        size, length = self.block_size, q.shape[2]
        short = -length % size
        blocks = (length + short) // size
        block = torch.arange(blocks, device=q.device)
        inside = torch.ones(1, length, dtype=torch.bool, device=q.device) if valid is None else valid
        last = (inside * torch.arange(1, length + 1, device=q.device)).amax(-1, keepdim=True)
        picks, counts = self.random_blocks(block, (last + size - 1) // size)
        # A pick that does not count may point past the end.
        picks = picks.clamp(max=blocks - 1).expand(len(q), -1, -1, -1)

        q, k, v = (F.pad(x, (0, 0, 0, short)).unflatten(2, (blocks, size)) for x in (q, k, v))
        k, v = (gather_rows(x.flatten(3), picks).unflatten(-1, x.shape[3:]).flatten(3, 4) for x in (k, v))
        inside = F.pad(inside, (0, short)).unflatten(-1, (blocks, size))
        inside = inside[:, None].expand(len(picks), picks.shape[1], -1, -1)
        visible = (gather_rows(inside, picks) & counts[..., None]).flatten(3)[..., None, :]
        out, lse = self.attend(q, k, v, visible)
        return out.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]

    def forward(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B H L Dv"]:
        length = q.shape[2]
        if length > self.max_length:
            raise ValueError(f"length {length} is over the {self.max_length} that random blocks are drawn for")
        valid = None if key_padding_mask is None else ~key_padding_mask
        first = min(self.num_global * self.block_size, length)
        rows = []
        if first > 0:
            rows.append(self._global_rows(q[:, :, :first], k, v, valid))
        if first < length:
            rows.append(self._other_rows(q, k, v, valid, first))
        return torch.cat(rows, dim=2).to(v.dtype)

    def prefill(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B H L Dv"], State]:
        return self(q, k, v, key_padding_mask=key_padding_mask), KVCache(k, v, key_padding_mask)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, KVCache)
        assert k is not None
        assert v is not None
        state = state.append(k, v)
        length = state.k.shape[2]
        if length > self.max_length:
            raise ValueError(f"length {length} is over the {self.max_length} that random blocks are drawn for")
        index, counts = self._keys_of_last(length)
        index = index.expand(len(q), -1, -1)
        visible = counts[..., None, :]
        if state.key_padding_mask is not None:
            padding = state.key_padding_mask[:, None].expand(-1, self.num_heads, -1)
            visible = visible & ~padding.gather(-1, index)[..., None, :]
        out, _ = self.attend(q, gather_rows(state.k, index), gather_rows(state.v, index), visible)
        return out.to(v.dtype), state

    def _keys_of_last(self, length: int) -> tuple[Int64[Tensor, "1 H K"], Bool[Tensor, "1 H K"]]:
        """Positions that the last of ``length`` sees, and which of them count."""
        size, device = self.block_size, self.draws.device
        first = min(self.num_global * size, length)
        n = (length - 1 - first) // size
        near = torch.arange(first + max(n - 1, 0) * size, length, device=device)
        always = torch.cat([torch.arange(first, device=device), near]).expand(1, self.num_heads, -1)
        if n < 2 or self.num_random == 0:
            return always, torch.ones_like(always, dtype=torch.bool)
        block = torch.tensor([n], device=device)
        picks, counts = self.random_blocks(block, block[None] + 1)
        picks = torch.where(counts, picks, 0)
        drawn = (first + picks[..., None] * size + torch.arange(size, device=device)).flatten(-3)
        counts = counts[..., None].expand(*counts.shape, size).flatten(-3)
        drawn, counts = drawn.view(1, self.num_heads, -1), counts.reshape(1, self.num_heads, -1)
        return torch.cat([always, drawn], -1), torch.cat([torch.ones_like(always, dtype=torch.bool), counts], -1)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        first = min(self.num_global * self.block_size, length_q)
        pairs = first * (first if self._causal else length_k)
        rest = length_q - first
        if rest:
            size = min(self.block_size, rest)
            after = 0 if self._causal else size
            pairs += rest * first + count_blocks(rest, size, size, after) * size * (2 * size + after)
            pairs += -(-rest // self.block_size) * self.block_size**2 * self.num_random
        return 4 * batch * self.num_heads * self.head_dim * pairs

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return 2 * batch * self.num_heads * length * self.head_dim * element_size


class BigBirdAttention(HeadwiseAttention):
    """Multi-head attention over global, neighbouring and random blocks; each head draws its own."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = BigBirdCore
