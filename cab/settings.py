"""Settings of attention mechanisms: what ``conf/attention/*.yaml`` (or ``_target_`` of a plug-in) resolves to.

The registry lists mechanisms (``smyrf``); the config group ``attention`` lists settings of them (``smyrf``,
``smyrf_2x32``). A setting's name carries the options that differ from its YAML: ``performer[num_features=64]``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attention_zoo.contract import Attention, AttentionCore, Card, HeadwiseAttention, Pattern, Unsupported
from attention_zoo.errors import UnknownName
from attention_zoo.registry import check_options


@dataclass(frozen=True)
class Setting:
    """A mechanism with its options: picklable, so that a spawned child can build it.

    Attributes:
        name: of the setting, with the options that differ from its YAML.
        target: dotted path of the :class:`~attention_zoo.contract.Attention` subclass.
        options: keyword-only options of its constructor.
    """

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_node(cls, name: str, node: Mapping[str, Any]) -> Setting:
        """From a resolved config node: ``_target_`` and the options beside it."""
        if "_target_" not in node:
            raise ValueError(f"attention {name!r}: its YAML needs a _target_, the dotted path of an Attention class")
        options = {key: value for key, value in node.items() if key != "_target_"}
        setting = cls(name, str(node["_target_"]), options)
        check_options(setting.kind, options)
        return setting

    @property
    def kind(self) -> type[Attention]:
        """The layer class; imports its module."""
        module_name, _, attribute = self.target.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"attention {self.name!r}: cannot import {self.target!r}: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Attention)):
            raise ValueError(f"attention {self.name!r}: {self.target!r} is not a subclass of Attention")
        return kind

    @property
    def card(self) -> Card:
        return self.kind.card

    @property
    def module(self) -> str:
        """The module that defines the mechanism."""
        return self.target.rpartition(".")[0]

    def build(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> Attention:
        """The layer; :class:`~attention_zoo.contract.Unsupported` where the card has no such form."""
        return self.kind(
            embed_dim,
            num_heads,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            bias=bias,
            **self.options,
        )

    @property
    def impl(self) -> str:
        """The implementation that is built."""
        return str(self.options.get("impl", "auto"))

    def implemented(self, impl: str) -> Setting:
        """The same mathematics by another implementation; ``auto`` leaves the setting as its YAML says."""
        if impl == "auto":
            return self
        return replace(self, name=f"{self.name}[impl={impl}]", options={**self.options, "impl": impl})

    @property
    def has_core(self) -> bool:
        """Whether the mechanism has an op level."""
        return issubclass(self.kind, HeadwiseAttention)

    def build_core(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
    ) -> AttentionCore:
        """The core; :class:`~attention_zoo.contract.Unsupported` where the mechanism is a layer only."""
        self.card.require(Pattern(pattern))
        if not issubclass(self.kind, HeadwiseAttention):
            raise Unsupported(f"{self.card.name} has no op level: {self.card.no_core_reason}")
        return self.kind.core_type(
            num_heads,
            head_dim,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            **self.options,
        )


def by_implementation(settings: Sequence[Setting], wanted: Sequence[str]) -> tuple[list[Setting], dict[str, list[str]]]:
    """Each setting in each wanted implementation that its mechanism offers.

    Returns:
        The settings, and by implementation the names of those that do not offer it.

    Raises:
        UnknownName: for an implementation that none of the settings offers.
        ValueError: there are no settings.
    """
    if not settings:
        raise ValueError("attentions is empty: name at least one, such as attentions=[linear]")
    offers = {setting.name: setting.kind.implementations() for setting in settings}
    known = dict.fromkeys(name for offered in offers.values() for name in offered)
    for impl in wanted:
        if impl not in known:
            raise UnknownName("impl", impl, known)
    found = [setting.implemented(impl) for setting in settings for impl in wanted if impl in offers[setting.name]]
    without = {impl: [name for name, offered in offers.items() if impl not in offered] for impl in wanted}
    return found, {impl: names for impl, names in without.items() if names}
