"""Finds mechanisms by name: the modules of this folder, and entry points of the group ``attention_zoo``.

Nothing is imported before it is asked for, so listing names costs no import of torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_zoo.errors import UnknownName

if TYPE_CHECKING:
    from attention_zoo.contract import Attention, AttentionCore, Card

# Annotations that are checked, as they stand in the source (annotations are not evaluated here).
_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "None": type(None)}
ENTRY_POINT_GROUP = "attention_zoo"
_NOT_MECHANISMS = frozenset(
    {
        *("contract", "errors", "registry", "primitives", "conformance", "reference"),
        *("eligibility", "convert", "fidelity", "integrations"),
    }
)


def _own() -> list[str]:
    folder = str(Path(__file__).parent)
    return [m.name for m in pkgutil.iter_modules([folder]) if m.name not in _NOT_MECHANISMS and m.name[0] != "_"]


def plugins() -> dict[str, EntryPoint]:
    """Mechanisms that installed packages bring, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def names() -> list[str]:
    """All mechanisms, sorted; a plug-in cannot take the name of one of ours."""
    return sorted({*plugins(), *_own()})


def mechanism(name: str) -> type[Attention]:
    """The layer class of a mechanism; imports its module."""
    from attention_zoo.contract import Attention

    if name in _own():
        module = importlib.import_module(f"attention_zoo.{name}")
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Attention) and value.__module__ == module.__name__:
                if value.card.name == name:
                    return value
        raise LookupError(f"attention_zoo/{name}.py defines no Attention whose card is named {name!r}")
    if name in plugins():
        loaded: type[Attention] = plugins()[name].load()
        return loaded
    raise UnknownName("attention", name, names())


def card(name: str) -> Card:
    """The card of a mechanism."""
    return mechanism(name).card


def check_options(kind: type[Attention] | type[AttentionCore], options: Mapping[str, Any]) -> None:
    """Raises :class:`UnknownName` for an option that the constructor does not have, ``ValueError`` for a wrong type."""
    allowed = kind.option_parameters()
    for option, value in options.items():
        if option not in allowed:
            raise UnknownName("option", option, allowed)
        wanted = str(allowed[option].annotation)
        names = {part.strip() for part in wanted.split("|")}
        if names <= set(_TYPES) and not any(_fits(value, _TYPES[name]) for name in names):
            raise ValueError(f"option {option}={value!r} is not of type {wanted}")


def _fits(value: object, kind: type) -> bool:
    """Whether a value may stand for a type: an int for a float, but no bool for a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def build(
    name: str,
    embed_dim: int,
    num_heads: int,
    pattern: str,
    *,
    max_length: int,
    max_length_key: int | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    **options: Any,
) -> Attention:
    """The layer ``name`` for a pattern; see :class:`attention_zoo.contract.Attention` for the arguments."""
    kind = mechanism(name)
    check_options(kind, options)
    return kind(
        embed_dim,
        num_heads,
        pattern,
        max_length=max_length,
        max_length_key=max_length_key,
        dropout=dropout,
        bias=bias,
        **options,
    )


def build_core(
    name: str,
    num_heads: int,
    head_dim: int,
    pattern: str,
    *,
    max_length: int,
    max_length_key: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> AttentionCore:
    """The core of ``name`` for a pattern; :class:`~attention_zoo.contract.Unsupported` where the mechanism has none."""
    from attention_zoo.contract import HeadwiseAttention, Pattern, Unsupported

    kind = mechanism(name)
    if not issubclass(kind, HeadwiseAttention):
        raise Unsupported(f"{name} has no core: {kind.card.no_core_reason}")
    kind.card.require(Pattern(pattern))
    check_options(kind, options)
    return kind.core_type(
        num_heads,
        head_dim,
        pattern,
        max_length=max_length,
        max_length_key=max_length_key,
        dropout=dropout,
        **options,
    )
