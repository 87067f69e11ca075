"""Reads record files: JSON objects, one to a line, whose columns hold what :class:`~cab.record.Record` says."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from cab.record import SCHEMA_VERSION, Record, Status

END = b"\n"  # an empty line, which ends what was appended at once

_REQUIRED = ("run_key", "metric", "status")
_STATUSES = frozenset(map(str, Status))
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
        # Few combinations of columns and types occur, so all but the first row of each are only looked up.
        signature = (*row, *map(type, row.values()), row.get("status"), row.get("schema_version"))
        if signature not in self._right:
            _check(row)
            self._right.add(signature)
        texts = self._texts
        for column, value in row.items():
            if type(value) is str:
                row[column] = texts.setdefault(value, value)
        return row


def _check(row: Mapping[str, Any]) -> None:
    if missing := [column for column in _REQUIRED if row.get(column) is None]:
        raise ValueError(f"no {', '.join(missing)}")
    if nested := [column for column, value in row.items() if isinstance(value, list | dict)]:
        raise ValueError(f"{', '.join(nested)}: more than one value")
    for column, value in row.items():
        allowed = COLUMN_TYPES.get(column)
        if allowed is not None and value is not None and type(value) not in allowed:
            raise ValueError(f"{column}={value!r} is not {_WORDS[allowed[0]]}")
    version = row.get("schema_version") or SCHEMA_VERSION
    if version > SCHEMA_VERSION:
        raise ValueError(f"schema_version={version} is of a newer cab, this one reads up to {SCHEMA_VERSION}")
    if row["status"] not in _STATUSES:
        raise ValueError(f"status={row['status']!r} is none of {', '.join(sorted(_STATUSES))}")
    if row["status"] == Status.OK and row.get("value") is None:
        raise ValueError("status ok without a value")
