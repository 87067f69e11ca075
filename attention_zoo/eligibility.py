"""Whether a mechanism can stand in for trained softmax attention, as it is, without retraining.

A pretrained model brings W_Q, W_K, W_V and W_O and nothing else. So what takes the place of its attention

* has a core, which takes projected heads;
* keeps all that was trained: a layer without value or output projection, or one that projects queries but no keys,
  has no place for those weights (a floor that uses neither queries nor keys may leave both out);
* is not tied to one length, and has no trained parameter of its own in the core: there are no values for it;
* in the causal patterns does not see the future in its selection.

All of it is read off a small layer, built for the purpose: no mechanism is judged by its name. Where the defaults do
not stand in every pattern that the card supports, each option is tried alone (the other truth values, the other names,
zero), and the first that stands in more of them is ``needed``. Eligible is not the same as good: what a mechanism
leaves of a model is measured, not declared.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from attention_zoo.contract import Card, HeadwiseAttention, Pattern, ProjectedAttention, Support, Unsupported
from attention_zoo.errors import UnknownName
from attention_zoo.registry import build_core, check_options, mechanism, names

PROJECTIONS = ("query", "key", "value", "output")
HEADS, HEAD_DIM = 8, 64  # of the layer that is looked at; counts of parameters are told for these


@dataclass(frozen=True)
class Standing:
    """Where a mechanism can stand in for softmax attention.

    Attributes:
        card: of the mechanism.
        needed: options, other than the defaults, with which it can, or can in more patterns.
        refused: for each pattern in which it cannot, why not.
        reason: why it can in no pattern; empty where it can in one.
    """

    card: Card
    needed: Mapping[str, Any]
    refused: Mapping[Pattern, str]
    reason: str

    @property
    def eligible(self) -> bool:
        return not self.reason

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(pattern for pattern in Pattern if pattern not in self.refused)

    def require(self, pattern: Pattern) -> None:
        """Raises :class:`Unsupported` with the reason unless it can stand in there."""
        if pattern in self.refused:
            raise Unsupported(f"{self.card.name} cannot stand in for softmax attention: {self.refused[pattern]}")


def left_out(layer: ProjectedAttention) -> tuple[str, ...]:
    """The trained projections that would have no place in a layer; a floor needs neither queries nor keys."""
    missing = tuple(name for name in PROJECTIONS if name not in layer.projections)
    return () if missing == ("query", "key") else missing


def standing(name: str, **options: Any) -> Standing:
    """Where ``name`` with these options can stand in; errors as :func:`attention_zoo.registry.build_core`."""
    check_options(mechanism(name), options)
    return _standing(name, tuple(sorted(options.items())))


def eligible() -> list[str]:
    """The mechanisms that can stand in for softmax attention in one pattern at least."""
    return [name for name in names() if standing(name).eligible]


def require(name: str, **options: Any) -> dict[str, Any]:
    """The options, with those that are needed, if ``name`` can stand in; else :class:`Unsupported` with the reason."""
    found = standing(name, **options)
    if found.reason:
        raise Unsupported(f"{name} cannot stand in for softmax attention: {found.reason}")
    return {**found.needed, **options}


@cache
def _standing(name: str, given: tuple[tuple[str, Any], ...]) -> Standing:
    kind, options = mechanism(name), dict(given)
    if not issubclass(kind, HeadwiseAttention):
        return _nowhere(kind.card, f"it has no core ({kind.card.no_core_reason})")
    if kind.card.fixed_length:
        return _nowhere(kind.card, "its parameters are tied to one length")
    found = _judge(kind, options)
    for option, value in _alternatives(kind, options) if len(found.refused) > len(kind.card.unsupported) else ():
        other = _judge(kind, {**options, option: value})
        if len(other.refused) < len(found.refused):
            return Standing(kind.card, MappingProxyType({option: value}), other.refused, "")
    return found


def _nowhere(card: Card, reason: str) -> Standing:
    return Standing(card, MappingProxyType({}), MappingProxyType(dict.fromkeys(Pattern, reason)), reason)


def _judge(kind: type[HeadwiseAttention], options: Mapping[str, Any]) -> Standing:
    refused = {}
    for pattern in Pattern:
        reason = _reason(kind, pattern, options)
        if reason:
            refused[pattern] = reason
    supported = [pattern for pattern in kind.card.supports if kind.card.supports[pattern] is not Support.VALUE_CAUSAL]
    # The supported patterns share their reason, where there is none that stands.
    reason = refused[supported[0]] if supported and len(refused) == len(Pattern) else ""
    return Standing(kind.card, MappingProxyType({}), MappingProxyType(refused), reason)


def _reason(kind: type[HeadwiseAttention], pattern: Pattern, options: Mapping[str, Any]) -> str:
    """Why not, in one line; empty where nothing is in the way."""
    card = kind.card
    if pattern in card.unsupported:
        return f"no {pattern} form: {card.unsupported[pattern]}"
    if card.supports[pattern] is Support.VALUE_CAUSAL:
        return f"in {pattern} it is causal in the values only, its selection sees the future"
    try:
        with torch.random.fork_rng(devices=[]):
            layer = kind(HEADS * HEAD_DIM, HEADS, pattern, max_length=HEAD_DIM, **options)
    except Unsupported as refusal:
        return refusal.reason
    if lost := left_out(layer):
        return f"it has no {' and no '.join(lost)} projection, so trained ones have no place"
    own = {name.partition(".")[0]: None for name, _ in layer.core.named_parameters()}
    if own:
        count = f"{sum(p.numel() for p in layer.core.parameters()):,} at {HEADS} heads of {HEAD_DIM}"
        return f"its core has parameters to train, which a pretrained model does not bring: {', '.join(own)} ({count})"
    return ""


def _alternatives(kind: type[HeadwiseAttention], options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Other values of each option that was not given, of those with which a core can be built."""
    pattern = next(iter(kind.card.supports))
    for name, parameter in kind.option_parameters().items():
        if name in options:
            continue
        for value in _candidates(kind, pattern, options, name, parameter):
            try:
                _probe(kind, pattern, {**options, name: value})
            except ValueError:
                continue
            yield name, value


def _candidates(
    kind: type[HeadwiseAttention],
    pattern: Pattern,
    options: Mapping[str, Any],
    name: str,
    parameter: inspect.Parameter,
) -> list[Any]:
    types = {part.strip() for part in str(parameter.annotation).split("|")}
    if "bool" in types:
        return [False, True]
    if "int" in types:
        return [0]
    if "str" in types:
        try:
            _probe(kind, pattern, {**options, name: ""})
        except UnknownName as error:  # it knows the names that there are
            return error.allowed
        except ValueError:
            return []
    return []


def _probe(kind: type[HeadwiseAttention], pattern: Pattern, options: Mapping[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        build_core(kind.card.name, 2, 8, pattern, max_length=8, **options)
