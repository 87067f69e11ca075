"""Tasks from their config nodes: the class, the card, the object, the pattern; a mistake is one line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from attention_zoo.contract import Pattern
from cab.errors import UserError, one_line, unknown
from tasks.contract import Task, TaskCard


def task_class(name: str, target: str) -> type[Task]:
    """The class that a task's config names; a wrong target is a :class:`UserError` in one line."""
    module, _, attribute = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"task {name!r}: cannot import {target!r}: {one_line(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError(f"task {name!r}: {target!r} is not a subclass of Task")
    return kind


def task_card(name: str, target: str) -> TaskCard:
    """The card of a task, without its data."""
    return task_class(name, target).card


def make_task(name: str, target: str, options: Mapping[str, Any]) -> Task:
    """A task from its config node; a wrong option is a :class:`UserError` in one line."""
    kind = task_class(name, target)
    if "size" in options and options["size"] not in kind.card.lengths:
        raise unknown(f"size of task {name}", str(options["size"]), kind.card.lengths)
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"task {name!r}: {one_line(error)}") from error


def resolve_pattern(name: str | None, task_name: str, task_target: str) -> Pattern:
    """The pattern under test: the task's primary one where none is given."""
    card = task_card(task_name, task_target)
    if name is None:
        return card.primary_pattern
    if name not in {str(pattern) for pattern in Pattern}:
        raise unknown("pattern", name, Pattern)
    if Pattern(name) not in card.patterns:
        scored = ", ".join(str(pattern) for pattern in card.patterns)
        raise UserError(f"task {task_name!r} does not score pattern {name!r}: allowed: {scored}")
    return Pattern(name)
