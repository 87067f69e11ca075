"""Cores that stand in for the softmax attention of one module: built when first called, and kept.

A core has no trained parameters here (``eligibility``), so it is a function of mechanism, options, sizes and a seed: it
can be built again for a longer input, in another dtype or on another device, and draws the same random projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attention_zoo import eligibility
from attention_zoo.contract import AttentionCore, Pattern, Unsupported
from attention_zoo.errors import UnknownName
from attention_zoo.registry import build_core, names

SHORTEST = 512  # no core is built for less, so that most inputs never make one grow


@dataclass(frozen=True)
class Choice:
    """What stands in: a mechanism, its options, and the pattern in which a second sequence is attended to.

    ``cross`` is causal unless it is said otherwise, since the queries of a decoder must not see each other.
    """

    name: str
    options: Mapping[str, Any]
    cross: Pattern

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], cross: Pattern | str = Pattern.CAUSAL_CROSS) -> Choice:
        """Raises what :func:`eligibility.require` raises, and ``ValueError`` for a value that the core refuses."""
        if name not in names():
            raise UnknownName("attention", name, eligibility.eligible())
        if cross not in (allowed := [pattern.value for pattern in Pattern if pattern.is_cross]):
            raise UnknownName("cross pattern", str(cross), allowed)
        needed = eligibility.require(name, **options)
        first = eligibility.standing(name, **options).patterns[0]
        with torch.random.fork_rng(devices=[]):
            build_core(name, 2, 16, first, max_length=64, **needed)
        return cls(name, needed, Pattern(cross))

    @property
    def exact(self) -> bool:
        return eligibility.standing(self.name, **self.options).card.exact

    def require(self, pattern: Pattern) -> None:
        eligibility.standing(self.name, **self.options).require(pattern)


@dataclass
class _Kept:
    core: AttentionCore
    like: tuple[torch.device, torch.dtype]


@dataclass
class Cores:
    """The cores of one module. ``seed`` differs between the modules of a model."""

    choice: Choice
    seed: int
    kept: dict[tuple[Pattern, int, int, int], _Kept] = field(default_factory=dict)  # pattern, heads, width, length

    def attend(
        self,
        pattern: Pattern,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None,
        *,
        dropout: float,
        training: bool,
        longest: int = 0,
    ) -> Tensor:
        """``core(q, k, v)`` for ``[B, H, L, D]``; ``longest`` is the greatest length that the model can come to."""
        core = self.core(pattern, q, k, dropout if training else None, longest)
        core.train(training)
        return core(q, k, v, key_padding_mask=key_padding_mask)

    def core(
        self, pattern: Pattern, q: Tensor, k: Tensor, dropout: float | None = None, longest: int = 0
    ) -> AttentionCore:
        """The core for such queries and keys. ``dropout`` None: whatever it is, it plays no part.

        Its greatest length, which some mechanisms compute with, follows from the input and not from inputs before it.
        """
        self.choice.require(pattern)
        heads, width = q.shape[1], q.shape[-1]
        length, like = max(q.shape[2], k.shape[2]), (q.device, q.dtype)
        most = max(SHORTEST, longest if longest >= length else 1 << (length - 1).bit_length())
        kept = self.kept.get((pattern, heads, width, most))
        if kept is None or kept.like != like or dropout not in (None, kept.core.dropout):
            rate = (0.0 if kept is None else kept.core.dropout) if dropout is None else dropout
            core = self._build(pattern, heads, width, most, rate).to(device=q.device, dtype=q.dtype)
            kept = self.kept[pattern, heads, width, most] = _Kept(core, like)
        return kept.core

    def _build(self, pattern: Pattern, heads: int, width: int, most: int, dropout: float) -> AttentionCore:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.default_generator.manual_seed(self.seed)  # and not those of other devices, which are not forked
            with torch.device("cpu"):
                return build_core(
                    self.choice.name, heads, width, pattern, max_length=most, dropout=dropout, **self.choice.options
                )


def attend_with_cache(
    cores: Cores, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, **how: Any
) -> Tensor:
    """The causal self pattern for the last Lq of Lk positions, whose earlier queries are not there any more.

    Exact attention needs no other queries than those asked for. What another mechanism makes of a position may depend
    on the queries before it, so it is :class:`Unsupported`.
    """
    if not cores.choice.exact:
        raise Unsupported(
            f"{cores.choice.name} needs the queries of all positions, and {q.shape[2]} came for {k.shape[2]} keys: a "
            "cache of keys and values keeps none; pass use_cache=False"
        )
    if q.shape[2] == 1:
        return cores.attend(Pattern.CAUSAL_CROSS, q, k, v, key_padding_mask, **how)
    before = q.new_zeros(*q.shape[:2], k.shape[2] - q.shape[2], q.shape[3])
    out = cores.attend(Pattern.CAUSAL_SELF, torch.cat((before, q), 2), k, v, key_padding_mask, **how)
    return out[:, :, -q.shape[2] :]
