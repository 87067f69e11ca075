"""The space of a search: the options that get several values, in the grammar of Hydra's sweeps.

choice(a,b,c), a,b,c, glob(a*)      one of them, in no order
range(start,stop,step)              one of them, in their order; without ``stop`` itself
interval(low,high)                  any number between; whole where the option is, or as int(interval(low,high))
tag(log,interval(low,high))         the same, evenly on a logarithmic scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import AnyNode, DictConfig, FloatNode, IntegerNode, OmegaConf

from cab.errors import UserError, unknown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# What may be searched: it changes how a setting is built or trained, and not what it is scored on.
SEARCHED = ("attention", "attention.", "trainer.", "task.")
TAGS = ("log",)


class Dimension(Protocol):
    """One option. ``text`` is as it was given; ``size`` counts its values; ``probes`` are values to try it with."""

    @property
    def key(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def size(self) -> float: ...

    @property
    def probes(self) -> Sequence[str]: ...

    def distribution(self) -> BaseDistribution: ...

    def written(self, drawn: Any) -> str:
        """A draw from the distribution as it stands in an override."""
        ...


@dataclass(frozen=True)
class Values:
    """Some values; ``ordered`` where neighbours are alike."""

    key: str
    text: str
    values: tuple[str, ...]
    ordered: bool

    @property
    def size(self) -> float:
        return len(self.values)

    @property
    def probes(self) -> Sequence[str]:
        return (self.values[0], self.values[-1]) if self.ordered else self.values

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.ordered:
            return IntDistribution(0, len(self.values) - 1)
        return CategoricalDistribution(range(len(self.values)))

    def written(self, drawn: Any) -> str:
        return self.values[drawn]


@dataclass(frozen=True)
class Between:
    """The numbers from ``low`` to ``high``, both included."""

    key: str
    text: str
    low: float
    high: float
    log: bool
    whole: bool = False

    @property
    def size(self) -> float:
        return self.high - self.low + 1 if self.whole else inf

    @property
    def probes(self) -> Sequence[str]:
        return (self.written(self.low), self.written(self.high))

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def written(self, drawn: Any) -> str:
        return str(int(drawn)) if self.whole else repr(float(drawn))


@dataclass(frozen=True)
class Space:
    """Dimensions in the order of their keys: in what order they are given changes no proposal."""

    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> float:
        """How many settings there are."""
        return prod(dimension.size for dimension in self.dimensions)

    def texts(self) -> dict[str, str]:
        return {dimension.key: dimension.text for dimension in self.dimensions}

    def distributions(self) -> dict[str, BaseDistribution]:
        return {dimension.key: dimension.distribution() for dimension in self.dimensions}

    def overrides(self, drawn: Mapping[str, Any]) -> tuple[str, ...]:
        """A setting as overrides."""
        return tuple(f"{each.key}={each.written(drawn[each.key])}" for each in self.dimensions)

    def probes(self) -> Iterator[tuple[str, ...]]:
        """Settings in which every value of interest occurs, one dimension changed at a time."""
        first = [f"{each.key}={each.probes[0]}" for each in self.dimensions]
        yield tuple(first)
        for place, each in enumerate(self.dimensions):
            for value in each.probes[1:]:
                yield (*first[:place], f"{each.key}={value}", *first[place + 1 :])


def space_of(swept: Sequence[Override], compose: Callable[[Sequence[str]], DictConfig]) -> Space:
    """The space of the overrides that sweep.

    Args:
        swept: parsed overrides.
        compose: the config with further overrides; a mistake in them is a :class:`UserError`.

    Raises:
        UserError: a key that is not to be searched or is not there, or values that are none.
    """
    for override in swept:
        _require_searchable(override)
    finite = {override.key_or_group: _values(override) for override in swept if not override.is_interval_sweep()}
    between = [_between(override) for override in swept if override.is_interval_sweep()]
    chosen = [f"{each.key}={each.values[0]}" for each in finite.values()]
    # The bounds are tried first: they tell a key that is not there, with the nearest one.
    for each in between:
        if each.key.startswith("+"):
            raise UserError(f"{each.key}={each.text}: only options that are there can be searched; leave the + out")
    if between:
        known = compose(chosen)
        between = [_typed(each, known, lambda word: compose([*chosen, word])) for each in between]
    dimensions: list[Dimension] = [*finite.values(), *between]
    return Space(tuple(sorted(dimensions, key=lambda each: each.key)))


def _require_searchable(override: Override) -> None:
    key = override.key_or_group
    if not any(key == each or (each.endswith(".") and key.startswith(each)) for each in SEARCHED):
        raise UserError(
            f"{override.input_line}: {key} is fixed in a search, as its values would be scored on other terms; "
            "what can be searched: attention, attention.OPTION, trainer.OPTION, task.OPTION"
        )
    for tag in getattr(override.value(), "tags", ()):  # a glob has none
        if tag not in TAGS:
            raise unknown("tag", tag, TAGS)


def _values(override: Override) -> Values:
    key, sweep = override.get_key_element(), override.value()
    if getattr(sweep, "shuffle", False):
        raise UserError(f"{override.input_line}: a search has an order of its own; leave shuffle out")
    if getattr(sweep, "tags", ()):
        raise UserError(f"{override.input_line}: tag(log, ...) goes with interval(low,high)")
    try:
        values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    except HydraException as error:
        raise UserError(f"{override.input_line}: {error}") from error
    if not values:
        raise UserError(f"{override.input_line}: no value at all")
    return Values(key, override.get_value_string(), values, ordered=override.is_range_sweep())


def _between(override: Override) -> Between:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not low < high:
        raise UserError(f"{override.input_line}: the interval is empty: give the smaller bound first")
    if log and low <= 0:
        raise UserError(f"{override.input_line}: a logarithmic scale begins above 0, not at {low:g}")
    whole = isinstance(low, int) and isinstance(high, int)
    return Between(override.get_key_element(), override.get_value_string(), low, high, log, whole)


def _typed(each: Between, known: DictConfig, compose: Callable[[str], DictConfig]) -> Between:
    """Whole where the option is, by its type or by the value that its YAML gives it."""
    integral = float(each.low).is_integer() and float(each.high).is_integer()
    node = _node(known, each.key)
    if node is None:
        compose(f"{each.key}={each.probes[0]}")  # says which keys there are
        raise UserError(f"{each.key}={each.text}: no such option")
    value = node._value()
    typed = isinstance(node, IntegerNode | FloatNode)
    if not typed and (not isinstance(node, AnyNode) or isinstance(value, bool) or not _number(value)):
        raise UserError(
            f"{each.key}={each.text}: an interval is of numbers, and {each.key} is {value!r}; give choice(a,b)"
        )
    if isinstance(node, IntegerNode) and not integral:
        raise UserError(f"{each.key}={each.text}: {each.key} takes whole numbers")
    return replace(each, whole=each.whole or isinstance(node, IntegerNode) or (isinstance(value, int) and integral))


def _number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _node(config: DictConfig, key: str) -> Any:
    """The node of an option; None where there is none."""
    parent, _, last = key.rpartition(".")
    mapping = OmegaConf.select(config, parent) if parent else config
    return mapping._get_node(last) if isinstance(mapping, DictConfig) and last in mapping else None
