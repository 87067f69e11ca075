"""Checks of a task's options: each failure is a ``ValueError`` of one line that says what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from attention_zoo.contract import Pattern
from attention_zoo.errors import UnknownName
from tasks.contract import TaskCard
from tasks.sources import cache_folder

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


def original_folder(data: str, data_root: str | None, default: str) -> Path | None:
    """Where ``data=original`` is read: ``data_root``, or ``<cache>/original/<default>``. None for ``data=registry``."""
    chosen("data", data, {"registry": None, "original": None})
    if data == "original":
        return cache_folder() / "original" / default if data_root is None else Path(data_root).expanduser()
    if data_root is not None:
        raise ValueError(f"data_root={data_root} is read with data=original only; data=registry comes from a package")
    return None


def whole(name: str, value: int, *, at_least: int, at_most: int | None = None, why: str = "") -> int:
    """``value`` if it is a whole number in the range."""
    allowed = f"at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    in_range = isinstance(value, int) and at_least <= value and (at_most is None or value <= at_most)
    if isinstance(value, bool) or not in_range:
        raise ValueError(f"{name}={value} is not allowed: a whole number {allowed}{f' ({why})' if why else ''}")
    return value
