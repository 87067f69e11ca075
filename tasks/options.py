"""Checks of a task's options: each failure is a ``ValueError`` of one line that says what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from attention_zoo.contract import Pattern
from attention_zoo.errors import UnknownName
from tasks.contract import TaskCard

Value = TypeVar("Value")


def chosen(what: str, name: str, allowed: Mapping[str, Value]) -> Value:
    """``allowed[name]``; :class:`UnknownName` with the nearest name where there is none."""
    if name not in allowed:
        raise UnknownName(what, str(name), allowed)
    return allowed[name]


def scored_pattern(card: TaskCard, pattern: Pattern | str | None) -> Pattern:
    """The pattern under test, one of ``card.patterns``; the primary one for None."""
    if pattern is None:
        return card.primary_pattern
    if str(pattern) not in card.patterns:
        raise UnknownName(f"pattern of task {card.name}", str(pattern), map(str, card.patterns))
    return Pattern(pattern)


def whole(name: str, value: int, *, at_least: int, at_most: int | None = None, why: str = "") -> int:
    """``value`` if it is a whole number in the range."""
    allowed = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    in_range = isinstance(value, int) and at_least <= value and (at_most is None or value <= at_most)
    if isinstance(value, bool) or not in_range:
        raise ValueError(f"{name}={value} is not allowed: a whole number {allowed}{f' ({why})' if why else ''}")
    return value
