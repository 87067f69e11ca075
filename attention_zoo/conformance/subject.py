"""What the tests see of an attention: its inputs, its two levels, its oracle, and the lengths that it is tried at.

A test is written once and runs on the core (``op``: q, k, v ``[B, H, L, D]``) and on the layer (``[B, L, E]``; one
sequence in the self patterns): in both, dimension 0 is the batch and dimension -2 the position.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from attention_zoo.conformance.certificate import Result, Status
from attention_zoo.contract import Attention, AttentionCore, Card, HeadwiseAttention, Pattern, State, Support

HEADS, HEAD_DIM = 2, 8
# Prime, and past four blocks of 128 or two of 256: what a mechanism computes in blocks that no option names.
LONG = 521
Level = Literal["op", "layer"]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Inputs:
    """Inputs of one pass. ``k`` and ``v`` are None for a layer of a self pattern; ``mask`` is True at padded keys."""

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    mask: Tensor | None = None

    @property
    def length_q(self) -> int:
        return self.q.shape[-2]

    @property
    def length_k(self) -> int:
        return self.q.shape[-2] if self.k is None else self.k.shape[-2]

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.q, self.k, self.v) if tensor is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """``change`` applied to q, k and v."""
        k = None if self.k is None else change(self.k)
        v = None if self.v is None else change(self.v)
        return replace(self, q=change(self.q), k=k, v=v)

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.map(lambda tensor: tensor.to(dtype))

    def masked(self, mask: Tensor | None) -> Inputs:
        return replace(self, mask=mask)

    def sample(self, index: int) -> Inputs:
        """A batch of one."""
        part = self.map(lambda tensor: tensor[index : index + 1])
        return part.masked(None if self.mask is None else self.mask[index : index + 1])

    def head(self, length_q: int, length_k: int) -> Inputs:
        """The first queries and the first keys."""
        return Inputs(
            self.q[..., :length_q, :],
            None if self.k is None else self.k[..., :length_k, :],
            None if self.v is None else self.v[..., :length_k, :],
            None if self.mask is None else self.mask[:, :length_k],
        )

    def queries_from(self, other: Inputs, rows: Tensor) -> Inputs:
        """With the queries of ``other`` where ``rows`` [B, Lq] is True."""
        return replace(self, q=torch.where(_spread(rows, self.q), other.q, self.q))

    def keys_from(self, other: Inputs, rows: Tensor) -> Inputs:
        """With the keys and values of ``other`` where ``rows`` [B, Lk] is True."""
        assert self.k is not None
        assert other.k is not None
        return replace(self, k=torch.where(_spread(rows, self.k), other.k, self.k)).values_from(other, rows)

    def values_from(self, other: Inputs, rows: Tensor) -> Inputs:
        assert self.v is not None
        assert other.v is not None
        return replace(self, v=torch.where(_spread(rows, self.v), other.v, self.v))

    def tokens_from(self, other: Inputs, rows: Tensor) -> Inputs:
        """With the tokens of ``other`` where ``rows`` is True: all of q, k, v of a self pattern."""
        changed = self.queries_from(other, rows)
        return changed if self.k is None else changed.keys_from(other, rows)


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    return rows[:, None, :, None] if like.ndim == 4 else rows[:, :, None]


def ragged(batch: int, length: int) -> Tensor:
    """[B, L] masks of trailing padding: nothing, half, all but one, everything padded, and so on in turn."""
    valid = [length, (length + 1) // 2, 1, 0]
    lengths = torch.tensor([valid[index % 4] for index in range(batch)])
    return torch.arange(length)[None, :] >= lengths[:, None]


def scattered(batch: int, length: int, seed: int = 0) -> Tensor:
    """[B, L] masks with two in five keys padded, wherever; the first key of the first sample among them."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[0, 0] = True
    return mask


def gap(a: Tensor, b: Tensor, rows: Tensor | None = None) -> float:
    """Largest absolute difference over the positions where ``rows`` [B, L] is True; infinite if any is not finite."""
    return float(row_gaps(a, b, rows).amax()) if a.numel() and (rows is None or bool(rows.any())) else 0.0


def row_gaps(a: Tensor, b: Tensor, rows: Tensor | None = None) -> Tensor:
    """Largest absolute difference of each row (a position of a head), flat, over the positions of ``rows``."""
    if a.shape != b.shape:
        raise AssertionError(f"output has shape {list(a.shape)}, expected {list(b.shape)}")
    difference = (a.detach().double() - b.detach().double()).abs().amax(-1)
    difference = torch.where(torch.isfinite(difference), difference, torch.inf)
    if rows is None:
        return difference.flatten()
    return difference[(rows[:, None, :] if difference.ndim == 3 else rows).expand_as(difference)]


class Subject:
    """A module at one level, in float64 and evaluation mode."""

    level: Level

    def __init__(self, module: Attention | AttentionCore, pattern: Pattern) -> None:
        self.module = module
        self.pattern = pattern

    def draw(self, batch: int, length_q: int, length_k: int, seed: int, scale: float = 1.0) -> Inputs:
        """Normal inputs; ``scale`` is that of queries and keys (of everything where values have no own input)."""
        raise NotImplementedError

    def run(self, x: Inputs, module: nn.Module | None = None) -> Tensor:
        raise NotImplementedError

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        raise NotImplementedError

    def step(self, x: Inputs, position: int, state: State) -> tuple[Tensor, State]:
        """The step for the token at ``position`` of ``x``."""
        raise NotImplementedError

    def valid_queries(self, x: Inputs) -> Tensor:
        """[B, Lq], True where the output is defined: a padded token of a self pattern has no meaningful output."""
        if x.mask is None or self.pattern.is_cross:
            return torch.ones(x.q.shape[0], x.length_q, dtype=torch.bool)
        return ~x.mask

    def blind_queries(self, x: Inputs) -> Tensor:
        """[B, Lq], True where no key is visible."""
        assert x.mask is not None
        if self.pattern is Pattern.CAUSAL_SELF:
            return (~x.mask).long().cumsum(1) == 0
        return x.mask.all(1, keepdim=True).expand(-1, x.length_q)

    def copy(self, dtype: torch.dtype) -> nn.Module:
        return copy.deepcopy(self.module).to(dtype)


class CoreSubject(Subject):
    level: Level = "op"
    module: AttentionCore

    def draw(self, batch: int, length_q: int, length_k: int, seed: int, scale: float = 1.0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(length: int) -> Tensor:
            return torch.randn(batch, HEADS, length, HEAD_DIM, dtype=torch.float64, generator=generator)

        return Inputs(scale * normal(length_q), scale * normal(length_k), normal(length_k))

    def run(self, x: Inputs, module: nn.Module | None = None) -> Tensor:
        return (module or self.module)(x.q, x.k, x.v, key_padding_mask=x.mask)

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        assert x.k is not None
        assert x.v is not None
        return self.module.prefill(x.q, x.k, x.v, key_padding_mask=x.mask)

    def step(self, x: Inputs, position: int, state: State) -> tuple[Tensor, State]:
        here = slice(position, position + 1)
        if self.pattern.is_cross or x.k is None or x.v is None:
            return self.module.step(x.q[:, :, here], None, None, state)
        return self.module.step(x.q[:, :, here], x.k[:, :, here], x.v[:, :, here], state)


class LayerSubject(Subject):
    level: Level = "layer"
    module: Attention

    def draw(self, batch: int, length_q: int, length_k: int, seed: int, scale: float = 1.0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(length: int) -> Tensor:
            return scale * torch.randn(batch, length, HEADS * HEAD_DIM, dtype=torch.float64, generator=generator)

        if self.pattern.is_cross:
            return Inputs(normal(length_q), normal(length_k), normal(length_k))
        return Inputs(normal(length_q), None, None)

    def run(self, x: Inputs, module: nn.Module | None = None) -> Tensor:
        return (module or self.module)(x.q, x.k, x.v, key_padding_mask=x.mask)

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        return self.module.prefill(x.q, source=x.k, key_padding_mask=x.mask)

    def step(self, x: Inputs, position: int, state: State) -> tuple[Tensor, State]:
        return self.module.step(x.q[:, position : position + 1], state)


class Oracle:
    """The dense and slow form of a mechanism: ``dense_core``, ``dense_layer`` and, where it has them, ``weights``.

    For a class in ``package.module`` it is the module ``package.reference.module``.
    """

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__
        self.dense_core: Callable[..., Tensor] | None = getattr(module, "dense_core", None)
        self.weights: Callable[..., Tensor] | None = getattr(module, "weights", None)
        self.own_dense_layer: Callable[..., Tensor] | None = getattr(module, "dense_layer", None)
        if self.dense_core is None and self.own_dense_layer is None:
            raise ValueError(f"oracle {self.name} defines neither dense_core nor dense_layer")

    @staticmethod
    def module_name(kind: type[Attention]) -> str:
        package, _, module = kind.__module__.rpartition(".")
        return ".".join(part for part in (package, "reference", module) if part)

    @classmethod
    def find(cls, kind: type[Attention]) -> Oracle | None:
        name = cls.module_name(kind)
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # its package has no `reference`
            return None
        return None if found is None else cls(importlib.import_module(name))

    def on_op(self, core: nn.Module, x: Inputs) -> Tensor:
        assert self.dense_core is not None
        return self.dense_core(core, x.q, x.k, x.v, key_padding_mask=x.mask)

    def on_layer(self, layer: nn.Module, x: Inputs) -> Tensor:
        """The oracle's own layer, or ``W_O concat_h oracle(W_Q x, W_K y, W_V z)_h`` from the layer's parameters."""
        if self.own_dense_layer is not None:
            return self.own_dense_layer(layer, x.q, x.k, x.v, key_padding_mask=x.mask)
        assert isinstance(layer, HeadwiseAttention)
        assert self.dense_core is not None

        def apply(name: str, rows: Tensor) -> Tensor:
            projection = getattr(layer, f"{name}_projection")
            if name not in layer.projections:
                return rows
            out = torch.einsum("ble,fe->blf", rows, projection.weight)
            return out if projection.bias is None else out + projection.bias

        def heads(name: str, rows: Tensor) -> Tensor:
            projected = apply(name, rows)
            batch, length, _ = projected.shape
            return projected.reshape(batch, length, layer.num_heads, layer.head_dim).permute(0, 2, 1, 3)

        keys = x.q if x.k is None else x.k
        values = x.q if x.v is None else x.v
        out = self.dense_core(
            layer.core, heads("query", x.q), heads("key", keys), heads("value", values), key_padding_mask=x.mask
        )
        return apply("output", out.permute(0, 2, 1, 3).flatten(2))

    def reason_against(self, subject: Subject) -> str:
        """Why this oracle says nothing of ``subject``; empty where it does."""
        if subject.level == "op":
            return "" if self.dense_core is not None else f"the oracle {self.name} is of the layer"
        if self.own_dense_layer is not None or isinstance(subject.module, HeadwiseAttention):
            return ""
        return f"the oracle {self.name} is of the core"

    def on(self, subject: Subject, x: Inputs, module: nn.Module | None = None) -> Tensor:
        return (self.on_op if subject.level == "op" else self.on_layer)(module or subject.module, x)


def softmax_attention(pattern: Pattern, x: Inputs) -> Tensor:
    """Exact attention at op level, written here once more so that a collapse (T2) is held to no mechanism's code."""
    assert x.k is not None
    assert x.v is not None
    visible = torch.ones(x.length_q, x.length_k, dtype=torch.bool)
    if pattern is Pattern.CAUSAL_SELF:
        visible = visible.tril()
    if x.mask is not None:
        visible = visible & ~x.mask[:, None, None, :]
    logits = torch.einsum("bhid,bhjd->bhij", x.q, x.k) / x.q.shape[-1] ** 0.5
    return torch.softmax(logits.masked_fill(~visible, -torch.inf), -1).nan_to_num(0.0) @ x.v


def _next_prime(number: int) -> int:
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def _blocks(options: Mapping[str, Any]) -> list[int]:
    """Values of the options that are named ``*_size`` or ``window``."""
    return [
        value
        for name, value in options.items()
        if (name.endswith("_size") or name == "window") and isinstance(value, int) and not isinstance(value, bool)
    ]


def longest_length(options: Mapping[str, Any], most: int = 1031) -> int:
    """A prime past two of the largest block; at least 131, at most ``most``."""
    return min(_next_prime(max(131, *(2 * block + 3 for block in _blocks(options)), 0)), most)


def whole_blocks(options: Mapping[str, Any]) -> int:
    """Two of the largest block, exactly: where a division with a rest and one without can differ by one."""
    return 2 * min(max(_blocks(options), default=64), 512)


@dataclass(frozen=True)
class Bench:
    """One attention in one pattern, built and ready to be tried.

    ``shapes`` are (Lq, Lk): one, two, three, odd, prime, two whole blocks, more; unequal in the cross patterns.
    """

    kind: type[Attention]
    options: Mapping[str, Any]
    pattern: Pattern
    support: Support
    oracle: Oracle | None
    op: CoreSubject | None
    layer: LayerSubject
    shapes: Sequence[tuple[int, int]]

    @property
    def card(self) -> Card:
        return self.kind.card

    @property
    def subjects(self) -> list[Subject]:
        return [self.layer] if self.op is None else [self.op, self.layer]

    @property
    def long_shapes(self) -> list[tuple[int, int]]:
        """Long ones, for the few tests that a fault between far blocks needs."""
        return [(LONG, 17), (17, LONG)] if self.pattern.is_cross else [(LONG, LONG)]

    def some_shapes(self, subject: Subject, least: int = 1) -> list[tuple[int, int]]:
        """Shapes with at least ``least`` queries and keys: all; fewer for a layer whose core is tried too."""
        shapes = [shape for shape in self.shapes if min(shape) >= least]
        if subject.level == "layer" and self.op is not None:
            shapes = [shape for shape in shapes if shape[0] in (1, 7, 61) or shape[1] == 7] or shapes[:1]
        return shapes

    @classmethod
    def build(cls, kind: type[Attention], options: Mapping[str, Any], pattern: Pattern, oracle: Oracle | None) -> Bench:
        longest, whole = (count({**defaults(kind), **options}) for count in (longest_length, whole_blocks))
        if pattern.is_cross:
            shapes = [(1, 1), (1, 7), (2, 1), (3, 17), (17, 3), (7, 61), (61, 17)]
            shapes += [(whole, whole // 2), (37, longest), (longest, 53)]
        else:
            shapes = [(length, length) for length in (1, 2, 3, 7, 17, 61, whole, longest)]
        layer = LayerSubject(new_layer(kind, options, pattern, longest), pattern)
        core = None
        if issubclass(kind, HeadwiseAttention):
            core = CoreSubject(new_core(kind, options, pattern, longest), pattern)
        return cls(kind, options, pattern, kind.card.supports[pattern], oracle, core, layer, shapes)


def defaults(kind: type[Attention]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in kind.option_parameters().items()}


def limits(pattern: Pattern, longest: int) -> dict[str, Any]:
    """The two maximal lengths, different in the cross patterns so that one cannot stand for the other."""
    most = longest + LONG
    return {"max_length": most, "max_length_key": most + 2} if pattern.is_cross else {"max_length": most}


def _ready(module: Module, moved: bool = True) -> Module:
    """In float64 and evaluation mode, with every parameter moved off its initial value (a zero bias hides its sign)."""
    with torch.no_grad():
        for parameter in module.parameters() if moved else ():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def new_layer(
    kind: type[Attention],
    options: Mapping[str, Any],
    pattern: Pattern,
    longest: int,
    seed: int = 1,
    dropout: float = 0.0,
) -> Attention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _ready(kind(HEADS * HEAD_DIM, HEADS, pattern, dropout=dropout, **limits(pattern, longest), **options))


def new_core(
    kind: type[HeadwiseAttention],
    options: Mapping[str, Any],
    pattern: Pattern,
    longest: int,
    seed: int = 1,
    dropout: float = 0.0,
    moved: bool = True,
) -> AttentionCore:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _ready(
            kind.core_type(HEADS, HEAD_DIM, pattern, dropout=dropout, **limits(pattern, longest), **options), moved
        )


class Line:
    """Collects the worst case of one line of a certificate."""

    def __init__(self, test: str, title: str, level: str, what: str) -> None:
        self.test, self.title, self.level, self.what = test, title, level, what
        self._cases = 0
        self._worst: tuple[float, str] | None = None
        self._broken: list[str] = []

    def see(self, case: str, error: float, tolerance: float) -> None:
        """An error that may be as large as its tolerance."""
        self._cases += 1
        text = f"{error:.1e} of {tolerance:.1e} allowed at {case}" if tolerance else f"differs by {error:.1e} at {case}"
        ratio = error / tolerance if tolerance else float(error > 0)
        if error > tolerance or error != error:
            self._broken.append(text)
        if self._worst is None or ratio > self._worst[0]:
            self._worst = (ratio, text)

    def hold(self, case: str, truth: bool, broken: str) -> None:
        """A condition, and what to say where it does not hold."""
        self._cases += 1
        if not truth:
            self._broken.append(f"{broken} at {case}")

    @property
    def broken(self) -> bool:
        return bool(self._broken)

    def result(self) -> Result:
        what = f"{self.what}, {self._cases} case{'' if self._cases == 1 else 's'}"
        if self._broken:
            more = f" (and {len(self._broken) - 1} more)" if len(self._broken) > 1 else ""
            # The worst says most; without numbers, the first does.
            first = self._worst[1] if self._worst and self._worst[1] in self._broken else self._broken[0]
            return Result(self.test, self.title, self.level, what, Status.FAIL, first + more)
        detail = ""
        if self._worst is not None:
            detail = "equal bits" if self._worst[1].startswith("differs by 0") else f"worst {self._worst[1]}"
        return Result(self.test, self.title, self.level, what, Status.PASS, detail)

    def excused(self, declares: str, reason: str) -> Result:
        """Not applicable because the card says so; contradicted where every case held all the same."""
        seen = "held in all cases here" if not self.broken else "seen: " + self._broken[0]
        return Result(
            self.test,
            self.title,
            self.level,
            self.what,
            Status.NOT_APPLICABLE,
            seen,
            reason,
            declares,
            not self.broken,
        )


def describe(x: Inputs, note: str = "") -> str:
    return f"Lq={x.length_q} Lk={x.length_k}" + (" padded" if x.mask is not None else "") + (f" {note}" if note else "")
