"""Reads record files: JSON objects, one to a line, whose columns hold what :class:`~cab.record.Record` says."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from attention_zoo.contract import Pattern
from cab.record import SCHEMA_VERSION, Record, Status

END = b"\n"  # an empty line, which ends what was appended at once

_REQUIRED = ("run_key", "metric", "status")
# Columns with few words, and those.
_WORDED = {
    "status": tuple(map(str, Status)),
    "pattern": tuple(map(str, Pattern)),
    "level": ("op", "layer", "model"),
    "phase": ("inference", "training_forward", "training", "decode", "train", "evaluate", "evaluate_exact", "fidelity"),
    "split": ("train", "validation", "test"),
    "slots": ("one", "all"),
}
_POSITIVE = frozenset({"ratio", "time_s", "first_call_s", "train_time_s", "steps_per_s", "tokens_per_s", "perplexity"})
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _types() -> dict[str, tuple[type, ...]]:
    """By column the types that its values may have; an integer is a number, and true is not."""
    found = {}
    for column, hint in typing.get_type_hints(Record).items():
        kinds = tuple(str if kind is Status else kind for kind in (typing.get_args(hint) or (hint,)))
        found[column] = (*kinds, int) if float in kinds else kinds
    return found


COLUMN_TYPES = _types()


class LineReader:
    """Reads lines. Equal texts of different rows are one object: half a million rows would take thrice the memory."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._right: set[tuple[object, ...]] = set()

    def rows(self, path: Path, problems: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of a file with their line numbers; what cannot be read goes to ``problems``."""
        lines = path.read_bytes().splitlines()
        whole = len(lines)
        if lines and not lines[0]:
            whole = len(lines) - next(place for place, line in enumerate(reversed(lines)) if not line)
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                if number > whole:
                    raise ValueError("no empty line after it: its process was cut while it wrote, so it does not count")
                row = self.row(line)
            except ValueError as error:
                if problems is not None:
                    problems.append(f"{path}:{number}: {error}")
                continue
            yield number, row

    def row(self, line: bytes) -> dict[str, Any]:
        """The row; ``ValueError`` says what is wrong with the line. Columns that no ``Record`` has are kept."""
        row = orjson.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        types = tuple(map(type, row.values()))
        if dict in types or list in types:
            raise ValueError(
                f"{', '.join(c for c, v in row.items() if isinstance(v, list | dict))}: more than one value"
            )
        # Few combinations of columns, types and words occur, so all but the first row of each are only looked up.
        signature = (*row, *types, *map(row.get, _WORDED), row.get("schema_version"))
        if signature not in self._right:
            _check(row)
            self._right.add(signature)
        _check_numbers(row)
        texts = self._texts
        for column, value in row.items():
            if type(value) is str:
                row[column] = texts.setdefault(value, value)
        return row


def _check(row: Mapping[str, Any]) -> None:
    if missing := [column for column in _REQUIRED if row.get(column) is None]:
        raise ValueError(f"no {', '.join(missing)}")
    for column, value in row.items():
        allowed = COLUMN_TYPES.get(column)
        if allowed is not None and value is not None and type(value) not in allowed:
            raise ValueError(f"{column}={value!r} is not {_WORDS[allowed[0]]}")
    version = SCHEMA_VERSION if row.get("schema_version") is None else row["schema_version"]
    if version < 1:
        raise ValueError(f"schema_version={version} is none")
    if version > SCHEMA_VERSION:
        raise ValueError(f"schema_version={version} is of a newer cab, this one reads up to {SCHEMA_VERSION}")
    for column, allowed_words in _WORDED.items():
        if row.get(column) is not None and row[column] not in allowed_words:
            raise ValueError(f"{column}={row[column]!r} is none of {', '.join(allowed_words)}")
    if row["status"] == Status.OK and row.get("value") is None:
        raise ValueError("status ok without a value")


def _check_numbers(row: Mapping[str, Any]) -> None:
    """What no measuring gives."""
    if not row["run_key"]:
        raise ValueError("an empty run_key")
    value = row.get("value")
    if value is not None and value <= 0 and row["metric"] in _POSITIVE:
        raise ValueError(f"{row['metric']}={value!r} is not positive")
    for column in ("length_q", "length_kv"):
        if (length := row.get(column)) is not None and length < 1:
            raise ValueError(f"{column}={length} is no length")
