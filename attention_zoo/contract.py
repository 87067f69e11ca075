"""The contract that every attention mechanism keeps: patterns, the card, the layer, the core, the state.

Shape letters, used in every file of the zoo:

    B   batch          H   heads               E   width of the layer (``embed_dim``), E = H D
    Lq  queries        D   width of a head     Lk  keys and values (Lk = Lq in the self patterns)

A mechanism is a *layer* (:class:`Attention`, ``[B, L, E]`` in and out). Most are a *core*
(:class:`AttentionCore`, the mathematics on projected heads, ``[B, H, L, D]``) inside the projections of
:class:`HeadwiseAttention`; those that need the layer's input, or have no queries, are layers only.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Pattern(StrEnum):
    """Which inputs an output may depend on (CAB, section 2: causality x conditionality).

    * ``noncausal_self`` (NS): one sequence, output t sees all of it.
    * ``causal_self`` (CS): one sequence, output t sees positions up to and including t.
    * ``noncausal_cross`` (NC): queries from a target, keys and values from a source; every output may see all of both.
    * ``causal_cross`` (CC): output t sees the whole source and must not depend on target positions after t.
    """

    NONCAUSAL_SELF = "noncausal_self"
    CAUSAL_SELF = "causal_self"
    NONCAUSAL_CROSS = "noncausal_cross"
    CAUSAL_CROSS = "causal_cross"

    @property
    def is_causal(self) -> bool:
        return self in (Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS)

    @property
    def is_cross(self) -> bool:
        return self in (Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS)

    @property
    def short(self) -> str:
        """The two letters of the literature: NS, CS, NC, CC."""
        return ("C" if self.is_causal else "N") + ("C" if self.is_cross else "S")


class Support(StrEnum):
    """How a mechanism supports a pattern.

    * ``published``: the form that the paper (or its authors' code) defines.
    * ``extension``: a well-defined form that we specify and test; the module docstring says how.
    * ``value_causal``: causal in the values, while hashing, sorting or selection sees the future.
    """

    PUBLISHED = "published"
    EXTENSION = "extension"
    VALUE_CAUSAL = "value_causal"


class Unsupported(ValueError):
    """The mechanism has no faithful form for what was asked (a pattern, most often); ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LengthExceeded(ValueError):
    """A sequence is longer than the ``max_length`` that a layer was built for."""


@dataclass(frozen=True)
class Collapse:
    """Options with which the mechanism equals softmax attention (test T2).

    ``options`` maps option names to values, given the number of keys as ``length``: a string value is one of the
    keys ``"length"``. ``tolerance`` is the largest absolute error in float64 at inputs of unit scale.
    """

    options: Mapping[str, Any]
    tolerance: float = 1e-10
    patterns: frozenset[Pattern] = frozenset(Pattern)

    def resolve(self, length: int) -> dict[str, Any]:
        return {name: length if value == "length" else value for name, value in self.options.items()}


@dataclass(frozen=True)
class Card:
    """What a mechanism claims. The conformance tests hold it to every typed property.

    Attributes:
        name: registry name; the module and the setting of the published form carry it too.
        title, authors, year, paper: of the publication; ``paper`` is an identifier such as ``arXiv:2009.14794``.
        family: exact, kernel, hashing, projection, low rank, sparse, state space or floor.
        exact: whether the outputs equal those of softmax attention (up to rounding) with the same q, k, v.
        time_order, memory_order: claimed growth with the length L, such as ``"L^2"``, ``"L"`` or ``"L log L"``.
        supports: the patterns that can be built, and how.
        unsupported: a reason for every other pattern.
        linear_in_values: out is linear in the values with weights that do not depend on them (T1 probes with V = I).
        rows_sum_to_one: the weights are non-negative and each row sums to one (T12).
        vanishing_rows: a row may carry no weight though it sees keys (all kernel values zero), and is zero then (T12).
        discrete: a hash, a sort or a choice decides which weights exist, so that rounding can change a whole row: low
            precision is judged by the median row (T1), a shift of the logits only where one block holds all (T13).
        permutation_equivariant: no order of the tokens enters (T10): permuting queries permutes the outputs, and
            permuting keys with their values changes nothing.
        softmax_logits: the weights are a softmax of logits, so a constant added to them cancels (T13).
        fixed_length: parameters are tied to ``max_length`` (or to ``max_length_key``).
        past_influence: in the causal patterns the past changes the output (T6; false where nothing is mixed).
        trimmed_equality: padding a sample equals cutting it (T8); ``trimmed_reason`` says why not where it is false.
        incremental: patterns with ``prefill`` and ``step`` (T11).
        collapses: options that make it softmax attention (T2), or None.
        no_core_reason: why there is no op level, where there is none.
    """

    name: str
    title: str
    authors: str
    year: int
    paper: str
    family: str
    exact: bool
    time_order: str
    memory_order: str
    supports: Mapping[Pattern, Support]
    unsupported: Mapping[Pattern, str] = field(default_factory=dict)
    linear_in_values: bool = True
    rows_sum_to_one: bool = True
    vanishing_rows: bool = False
    discrete: bool = False
    permutation_equivariant: bool = True
    softmax_logits: bool = False
    fixed_length: bool = False
    past_influence: bool = True
    trimmed_equality: bool = True
    trimmed_reason: str = ""
    incremental: frozenset[Pattern] = frozenset()
    collapses: Collapse | None = None
    no_core_reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "supports", MappingProxyType(dict(self.supports)))
        object.__setattr__(self, "unsupported", MappingProxyType(dict(self.unsupported)))
        without = [p for p in Pattern if (p in self.supports) == (p in self.unsupported)]
        if without:
            raise ValueError(f"card {self.name!r}: each pattern is supported or has a reason why not; see {without}")

    def require(self, pattern: Pattern) -> None:
        """Raises :class:`Unsupported` with the card's reason unless the pattern can be built."""
        if pattern not in self.supports:
            raise Unsupported(f"{self.name} has no {pattern} form: {self.unsupported[pattern]}")


@dataclass
class State:
    """What a causal mechanism carries from one step to the next; a dataclass of tensors (and of plain values)."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that the state holds."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


class _Configurable(nn.Module):
    """Keyword-only options of a constructor, readable without building anything."""

    _COMMON: ClassVar[frozenset[str]] = frozenset({"max_length", "max_length_key", "dropout", "bias"})

    @classmethod
    def implementations(cls) -> tuple[str, ...]:
        """Ways to compute the same mathematics: the values of an option ``impl``. A single one needs no option."""
        return ("auto",)

    @classmethod
    def option_parameters(cls) -> dict[str, inspect.Parameter]:
        """The mechanism's own keyword-only options, by name, with type and default."""
        parameters = inspect.signature(cls.__init__).parameters
        return {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in cls._COMMON
        }


class AttentionCore(_Configurable):
    """A mechanism on projected heads, with its own parameters and buffers only.

    Args:
        num_heads, head_dim: H and D.
        pattern: one of the four patterns; the card says which can be built.
        max_length: the largest Lq (and Lk in the self patterns).
        max_length_key: the largest Lk in the cross patterns; ``max_length`` where None.
        dropout: probability, on the attention weights where the mechanism has them, on its output otherwise.
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
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pattern = Pattern(pattern)
        self.max_length = max_length
        self.max_length_key = max_length if max_length_key is None or not self.pattern.is_cross else max_length_key
        self.dropout = dropout

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        """Mixes the values. ``key_padding_mask`` is True where a key is to be ignored; a row that sees none is zero."""
        raise NotImplementedError

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        """:meth:`forward`, and the state after the last position (causal patterns)."""
        raise Unsupported(f"{type(self).__name__} has no incremental form in {self.pattern}")

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        """One more position. ``k`` and ``v`` are those of the position (CS), None in CC. ``state`` is not changed."""
        raise Unsupported(f"{type(self).__name__} has no incremental form in {self.pattern}")

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        """Floating-point operations of a forward pass: 2 per multiply-add of the matrix products.

        The causal half is credited where the mechanism does not compute the other half.
        """
        raise NotImplementedError

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        """Bytes of the state after ``length`` positions (CS) or over a source of ``length`` (CC)."""
        raise Unsupported(f"{type(self).__name__} has no incremental form in {self.pattern}")


class Attention(_Configurable):
    """An attention layer.

    Args:
        embed_dim: E, the width of queries, keys, values and outputs.
        num_heads: H; divides E.
        pattern: one of the four patterns; :class:`Unsupported` where the card has no form for it.
        max_length: the largest number of queries (and of keys in the self patterns).
        max_length_key: the largest number of keys in the cross patterns; ``max_length`` where None.
        dropout: see :class:`AttentionCore`.
        bias: whether the projections have one.
    """

    card: ClassVar[Card]

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
    ) -> None:
        super().__init__()
        self.card.require(Pattern(pattern))
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}")
        if max_length < 1:
            raise ValueError(f"max_length={max_length} is not a positive length")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.pattern = Pattern(pattern)
        self.max_length = max_length
        self.max_length_key = max_length if max_length_key is None or not self.pattern.is_cross else max_length_key
        self.dropout = dropout
        self.bias = bias

    def forward(
        self,
        query: Float[Tensor, "B Lq E"],
        key: Float[Tensor, "B Lk E"] | None = None,
        value: Float[Tensor, "B Lk E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B Lq E"]:
        """Attends. ``key`` and ``value`` are None in the self patterns; True in the mask means: ignore this key."""
        raise NotImplementedError

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        *,
        source: Float[Tensor, "B Lk E"] | None = None,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], State]:
        """The outputs for a prefix ``x`` and the state after it; CC takes the ``source``, which the mask is over."""
        raise Unsupported(f"{self.card.name} has no incremental form in {self.pattern}")

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        """The output for one more position, and the new state. ``x_t`` may be ``[B, E]``; so is the output then."""
        raise Unsupported(f"{self.card.name} has no incremental form in {self.pattern}")

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        """Floating-point operations of a forward pass, projections included (see :meth:`AttentionCore.flops`)."""
        raise NotImplementedError

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        """Bytes of the state (see :meth:`AttentionCore.state_bytes`)."""
        raise Unsupported(f"{self.card.name} has no incremental form in {self.pattern}")

    def check_inputs(self, query: Tensor, key: Tensor | None, value: Tensor | None, mask: Tensor | None) -> None:
        """Raises ``ValueError`` naming the offending shape or length; called by every ``forward``."""
        given = key is not None or value is not None
        if self.pattern.is_cross and (key is None or value is None):
            raise ValueError(f"{self.pattern} attention needs a key and a value")
        if not self.pattern.is_cross and given and not (key is query and value is query):
            raise ValueError(f"{self.pattern} attention takes one sequence; key and value stay None")
        keys = query if key is None else key
        for name, tensor in (("query", query), ("key", keys), ("value", keys if value is None else value)):
            if tensor.ndim != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [B, L, {self.embed_dim}]")
        for name, length, limit in (
            ("query length", query.shape[1], self.max_length),
            ("key length", keys.shape[1], self.max_length_key),
        ):
            if length > limit:
                raise LengthExceeded(
                    f"{name} {length} is over the layer's maximum of {limit}; build it with a larger one"
                )
        if mask is not None and (mask.dtype is not torch.bool or mask.shape != keys.shape[:2]):
            raise ValueError(
                f"key_padding_mask is {mask.dtype} {list(mask.shape)}, expected torch.bool {list(keys.shape[:2])}"
            )

    def check_prefix(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """Where the keys of a prefix come from: itself, or the source of CC; called by every ``prefill``.

        Raises :class:`Unsupported` in the noncausal patterns, ``ValueError`` as :meth:`check_inputs`.
        """
        if not self.pattern.is_causal:
            raise Unsupported(f"{self.pattern} attention has no order in which to decode")
        self.check_inputs(x, source, source, mask)
        return x if source is None else source


class ProjectedAttention(Attention):
    """The projections W_Q, W_K, W_V and W_O around whatever mixes the heads.

    A subclass says how heads are mixed, and names its ``projections`` where it has fewer than all four; what has no
    projection is the head's slice of the raw input.
    """

    projections: ClassVar[frozenset[str]] = frozenset({"query", "key", "value", "output"})

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

        def projection(name: str) -> nn.Module:
            return nn.Linear(embed_dim, embed_dim, bias=bias) if name in self.projections else nn.Identity()

        self.query_projection = projection("query")
        self.key_projection = projection("key")
        self.value_projection = projection("value")
        self.output_projection = projection("output")
        self.reset_projections()

    def reset_projections(self) -> None:
        """Xavier-uniform weights, with gain 2^-1/2 for q, k and v (as fairseq and CAB), and zero biases."""
        for module, gain in (
            (self.query_projection, 2**-0.5),
            (self.key_projection, 2**-0.5),
            (self.value_projection, 2**-0.5),
            (self.output_projection, 1.0),
        ):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return self.output_projection(x.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self._split(self.query_projection(query)),
            self._split(self.key_projection(key)),
            self._split(self.value_projection(value)),
        )

    def projection_flops(self, batch: int, length_q: int, length_k: int) -> int:
        """2 E^2 per row and projection."""
        rows = {"query": length_q, "key": length_k, "value": length_k, "output": length_q}
        return sum(2 * batch * rows[name] * self.embed_dim**2 for name in self.projections)


class HeadwiseAttention(ProjectedAttention):
    """Projections around a core: ``out = W_O concat_h core(W_Q x, W_K y, W_V y)_h``.

    A subclass names its ``core_type``. Options are those of the core.
    """

    core_type: ClassVar[type[AttentionCore]]

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
        **options: Any,
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
        self.core = self.core_type(
            num_heads,
            self.head_dim,
            self.pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            **options,
        )

    @classmethod
    def implementations(cls) -> tuple[str, ...]:
        return cls.core_type.implementations()

    @classmethod
    def option_parameters(cls) -> dict[str, inspect.Parameter]:
        return cls.core_type.option_parameters()

    def forward(
        self,
        query: Float[Tensor, "B Lq E"],
        key: Float[Tensor, "B Lk E"] | None = None,
        value: Float[Tensor, "B Lk E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B Lq E"]:
        self.check_inputs(query, key, value, key_padding_mask)
        heads = self._project(query, query if key is None else key, query if value is None else value)
        return self._merge(self.core(*heads, key_padding_mask=key_padding_mask))

    def prefill(
        self,
        x: Float[Tensor, "B L E"],
        *,
        source: Float[Tensor, "B Lk E"] | None = None,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], State]:
        keys = self.check_prefix(x, source, key_padding_mask)
        out, state = self.core.prefill(*self._project(x, keys, keys), key_padding_mask=key_padding_mask)
        return self._merge(out), state

    def step(self, x_t: Float[Tensor, "B 1 E"], state: State) -> tuple[Float[Tensor, "B 1 E"], State]:
        if x_t.ndim == 2:
            out, state = self.step(x_t[:, None], state)
            return out[:, 0], state
        q = self._split(self.query_projection(x_t))
        if self.pattern.is_cross:
            k = v = None
        else:
            k, v = self._split(self.key_projection(x_t)), self._split(self.value_projection(x_t))
        out, state = self.core.step(q, k, v, state)
        return self._merge(out), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return self.projection_flops(batch, length_q, length_k) + self.core.flops(batch, length_q, length_k)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return self.core.state_bytes(batch, length, element_size)
