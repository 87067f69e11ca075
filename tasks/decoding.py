"""Text one token at a time from a causal decoder: blocks that step, and greedy or sampled search over a batch.

    y_t = choose(logits(y_0 .. y_{t-1})),    t = n, n + 1, ...                       after a prompt y_0 .. y_{n-1}

The logits come in one of two ways, with equal results up to rounding:

* *in steps*, where every attention layer of the decoder has an incremental form (``card.incremental``): the prompt once
  through ``prefill``, then each token through ``step``, from the states that the layers carry;
* *recomputed*, where one has not: the whole prefix anew for each token. That is also the definition: what a position
  sees is its prefix alone, also for mechanisms that choose or sort by the whole sequence that they are given.

Nothing here knows mechanisms, data or tasks. Shape letters: B batch, L length so far, Lk length of the source, E width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Attention, State, Unsupported
from tasks.layers import DecoderBlock, LearnedPositions, SelfAttentionBlock, SinusoidalPositions

Sublayer = Callable[[Tensor], Tensor]


def _residual(x: Tensor, norm: nn.LayerNorm, sublayer: Sublayer, dropout: nn.Dropout, norm_first: bool) -> Tensor:
    """``x + f(LayerNorm(x))`` (pre-norm), or ``LayerNorm(x + f(x))`` (post-norm, Vaswani et al., section 3.1)."""
    return x + dropout(sublayer(norm(x))) if norm_first else norm(x + dropout(sublayer(x)))


class SteppedBlock(SelfAttentionBlock):
    """A :class:`SelfAttentionBlock`, of the same parameters in the same order, that can also be computed in steps.

    Args:
        attention, hidden, dropout: as there.
        norm_first: pre-norm, as there; post-norm where False.
    """

    def __init__(
        self, attention: Attention, hidden: int | None = None, dropout: float = 0.0, *, norm_first: bool = True
    ) -> None:
        super().__init__(attention, hidden, dropout)
        self.norm_first = norm_first

    def _through(self, x: Tensor, attend: Sublayer) -> Tensor:
        x = _residual(x, self.attention_norm, attend, self.dropout, self.norm_first)
        return _residual(x, self.feed_forward_norm, self.feed_forward, self.dropout, self.norm_first)

    def forward(
        self, x: Float[Tensor, "B L E"], *, key_padding_mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L E"]:
        return self._through(x, lambda h: self.attention(h, key_padding_mask=key_padding_mask))

    def prefill(self, x: Float[Tensor, "B L E"]) -> tuple[Float[Tensor, "B L E"], State]:
        """:meth:`forward`, and the attention's state after the last position (CS)."""
        attend = _Prefill(self.attention)
        return self._through(x, attend), attend.state

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        """The output for one more position, and the new state."""
        attend = _Step(self.attention, state)
        return self._through(x_t, attend), attend.state


@dataclass(frozen=True)
class DecoderState:
    """What a decoder block carries: the state over the target (CS) and the state of the source (CC)."""

    target: State
    source: State


class SteppedDecoderBlock(DecoderBlock):
    """A :class:`DecoderBlock`, of the same parameters in the same order, that can also be computed in steps.

    Args:
        self_attention, cross_attention, hidden, dropout: as there.
        norm_first: pre-norm, as there; post-norm where False.
    """

    def __init__(
        self,
        self_attention: Attention,
        cross_attention: Attention,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        norm_first: bool = True,
    ) -> None:
        super().__init__(self_attention, cross_attention, hidden, dropout)
        self.norm_first = norm_first

    def _through(self, x: Tensor, over_target: Sublayer, over_source: Sublayer) -> Tensor:
        x = _residual(x, self.self_attention_norm, over_target, self.dropout, self.norm_first)
        x = _residual(x, self.cross_attention_norm, over_source, self.dropout, self.norm_first)
        return _residual(x, self.feed_forward_norm, self.feed_forward, self.dropout, self.norm_first)

    def forward(
        self,
        x: Float[Tensor, "B L E"],
        source: Float[Tensor, "B Lk E"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
        source_key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B L E"]:
        return self._through(
            x,
            lambda h: self.self_attention(h, key_padding_mask=key_padding_mask),
            lambda h: self.cross_attention(h, source, source, key_padding_mask=source_key_padding_mask),
        )

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        source: Float[Tensor, "B Lk E"],
        *,
        source_key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], DecoderState]:
        """:meth:`forward`, and the states after the last position."""
        over_target = _Prefill(self.self_attention)
        over_source = _Prefill(self.cross_attention, source, source_key_padding_mask)
        return self._through(x, over_target, over_source), DecoderState(over_target.state, over_source.state)

    def step(self, x_t: Float[Tensor, "B 1 E"], state: DecoderState) -> tuple[Float[Tensor, "B 1 E"], DecoderState]:
        """The output for one more position, and the new states."""
        over_target, over_source = _Step(self.self_attention, state.target), _Step(self.cross_attention, state.source)
        return self._through(x_t, over_target, over_source), DecoderState(over_target.state, over_source.state)


class _Prefill:
    """An attention layer's ``prefill`` as a sub-layer; keeps the state."""

    state: State

    def __init__(self, layer: Attention, source: Tensor | None = None, mask: Tensor | None = None) -> None:
        self.layer, self.source, self.mask = layer, source, mask

    def __call__(self, x: Tensor) -> Tensor:
        out, self.state = self.layer.prefill(x, source=self.source, key_padding_mask=self.mask)
        return out


class _Step:
    """An attention layer's ``step`` as a sub-layer; keeps the new state."""

    def __init__(self, layer: Attention, state: State) -> None:
        self.layer, self.state = layer, state

    def __call__(self, x_t: Tensor) -> Tensor:
        out, self.state = self.layer.step(x_t, self.state)
        return out


def at_position(
    positions: LearnedPositions | SinusoidalPositions, x_t: Float[Tensor, "B 1 E"], index: int
) -> Float[Tensor, "B 1 E"]:
    """What ``positions`` adds to the token at ``index``, counted from 0, alone."""
    table = positions.weight if isinstance(positions, LearnedPositions) else positions.table
    if not 0 <= index < len(table):
        raise ValueError(f"position {index} is not among the model's {len(table)}")
    return x_t + table[index]


def steps_everywhere(blocks: nn.Module) -> bool:
    """Whether each attention layer in ``blocks`` has an incremental form in its pattern, as its card says."""
    return all(layer.pattern in layer.card.incremental for layer in blocks.modules() if isinstance(layer, Attention))


class NextToken(Protocol):
    """A decoder as the search sees it: logits of the token after a prefix, [B, V]. A source is part of the object."""

    @property
    def incremental(self) -> bool:
        """Whether :meth:`prefill` and :meth:`step` can be used."""

    def last_logits(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B V"]:
        """From the whole prefix."""

    def prefill(self, tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B V"], Any]:
        """From the whole prefix, with the states after it."""

    def step(self, tokens: Int[Tensor, " B"], index: int, states: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """From one more token, which stands at position ``index``, and the states before it."""


@dataclass(frozen=True)
class Limits:
    """When a continuation ends, and what it may hold.

    Attributes:
        most: the largest number of new tokens.
        least: so many tokens before ``stop`` may come.
        stop: the token that ends a continuation (it is part of it); None: it goes on to ``most``.
        pad: what fills up a continuation that has ended.
        forbidden: tokens that never come.
    """

    most: int
    least: int = 0
    stop: int | None = None
    pad: int = 0
    forbidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ValueError(f"a continuation of at least {self.least} and at most {self.most} tokens is none")

    def apply(self, logits: Float[Tensor, "B V"], new: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits with -inf for what may not come after ``new`` new tokens."""
        logits = logits.clone()
        logits[:, list(self.forbidden)] = -torch.inf
        if self.stop is not None:
            logits[:, self.stop] = logits[:, self.stop].masked_fill(new < self.least, -torch.inf)
        return logits


Choose = Callable[[Tensor], Tensor]


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The most likely token of each row; the first one of equals."""
    return logits.argmax(dim=-1)


@dataclass(frozen=True)
class Sampler:
    """Draws from ``softmax(logits / temperature)``, over the ``top`` most likely tokens where given.

    Attributes:
        generator: of the draws; on the CPU, whatever device the logits are on.
        temperature: above 0; towards 0 the choice becomes greedy.
        top: how many tokens are left to choose from; None: all.
    """

    generator: torch.Generator
    temperature: float = 1.0
    top: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0 or (self.top is not None and self.top < 1):
            raise ValueError(f"temperature={self.temperature} and top={self.top} have to be above 0")

    def __call__(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        scaled = logits.double().cpu() / self.temperature
        if self.top is not None and self.top < scaled.shape[-1]:
            best = scaled.topk(self.top, dim=-1)
            scaled = torch.full_like(scaled, -torch.inf).scatter(-1, best.indices, best.values)
        drawn = torch.multinomial(scaled.softmax(dim=-1), 1, generator=self.generator)[:, 0]
        return drawn.to(logits.device)


@torch.no_grad()
def continue_prompts(
    decoder: NextToken,
    prompts: Int[Tensor, "B Lp"],
    limits: Limits,
    *,
    choose: Choose = greedy,
    prompt_lengths: Int[Tensor, " B"] | None = None,
    incremental: bool | None = None,
) -> Int[Tensor, "B most"]:
    """The new tokens after each prompt, ended by ``limits.stop`` where it came, then padded.

    Prompts may differ in length: a row whose prompt is longer goes on reading it while others write. So every row
    stands at the same position, and neither a mask nor shifted positions are needed.

    Args:
        prompts: tokens, filled up on the right where a prompt is shorter; with what, does not matter.
        prompt_lengths: of each row, at least 1; None: all of ``prompts``.
        incremental: in steps (:class:`Unsupported` where the decoder cannot), or recomputed; None: in steps if it can.
    """
    if incremental and not decoder.incremental:
        raise Unsupported("a layer of the decoder has no incremental form: each token needs the whole prefix")
    in_steps = decoder.incremental if incremental is None else incremental
    rows, longest = prompts.shape
    lengths = prompts.new_full((rows,), longest) if prompt_lengths is None else prompt_lengths.to(prompts.device)
    if rows == 0 or int(lengths.min()) < 1 or int(lengths.max()) > longest:
        raise ValueError(f"prompts of shape {list(prompts.shape)} need lengths from 1 to {longest}")
    tokens = nn.functional.pad(prompts, (0, limits.most), value=limits.pad)
    done = torch.zeros(rows, dtype=torch.bool, device=prompts.device)
    first = int(lengths.min())
    states: Any = None
    for index in range(first, int(lengths.max()) + limits.most):
        if not in_steps:
            logits = decoder.last_logits(tokens[:, :index])
        elif index == first:
            logits, states = decoder.prefill(tokens[:, :index])
        else:
            logits, states = decoder.step(tokens[:, index - 1], index - 1, states)
        new = index - lengths  # negative while a row still reads
        chosen = choose(limits.apply(logits, new)).masked_fill(done, limits.pad)
        tokens[:, index] = torch.where(new < 0, tokens[:, index], chosen)
        done |= (new >= 0) & (new + 1 >= limits.most)
        if limits.stop is not None:
            done |= (new >= 0) & (chosen == limits.stop)
        if bool(done.all()):
            break
    places = lengths[:, None] + torch.arange(limits.most, device=tokens.device)
    return tokens.gather(1, places)
