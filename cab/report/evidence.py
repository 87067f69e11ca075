"""What one folder of results holds, read once: rows, units, certificates, task cards, manifests, the plan.

Nothing is dropped in silence: what cannot be read, and what was written twice, is named in ``Evidence.problems``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cab.record_lines import LineReader
from cab.records import COLUMNS, RETRIED, RecordStore, Status
from cab.samples import sample_paths

Row = dict[str, Any]

# Columns in which two rows of one measurement may differ: a repeat, or a run of newer code.
_VOLATILE = frozenset(
    {
        "run_key",
        "value",
        "unit",
        "higher_is_better",
        "status",
        "reason",
        "started_at",
        "duration_s",
        "manifest",
        "schema_version",
    }
)
_IDENTITY = tuple(column for column in COLUMNS if column not in _VOLATILE)

# Rows that differ in one of these never share a table.
GROUP = ("protocol", "hardware", "device", "dtype", "threads", "size")


@dataclass(frozen=True)
class Evidence:
    """The content of ``<results>/<protocol>/<hardware>``.

    Attributes:
        rows: every readable line of the records, exact duplicates once, in the order of the files.
        certificates, cards, manifests, searches: JSON content by setting, task, manifest id and name of the search.
        plan: cells that a protocol wants: ``{setting, pattern, task}`` or ``{setting, pattern, length_q}``.
        problems: what could not be read or was there twice, as ``file:line: why``.
        samples: by run key the paths of a run's sample outputs, relative to ``folder``.
    """

    folder: Path
    rows: Sequence[Row]
    certificates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plan: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def units(self, run_key: str) -> dict[str, np.ndarray]:
        """The side file of a run; empty where it has none."""
        return RecordStore(self.folder).read_units(run_key)


def read_evidence(folder: Path) -> Evidence:
    """Reads ``folder``; ``ValueError`` where it holds no readable record."""
    store = RecordStore(folder)
    problems: list[str] = []
    lines = list(store.lines(problems))
    rows = _without_duplicates(lines)
    problems.extend(_contradictions(store, rows))
    problems.extend(_strangers(rows))
    if not rows:
        torn = f" ({len(problems)} lines cannot be read; the first: {problems[0]})" if problems else ""
        raise ValueError(f"{folder} holds no records{torn}; a results folder is <results>/<protocol>/<hardware>")
    if len(rows) < len(lines):
        problems.extend(_duplicates(store))
    plan = _read_json(folder / "plan.json", problems) if (folder / "plan.json").exists() else []
    if not (isinstance(plan, list) and all(isinstance(cell, dict) for cell in plan)):
        problems.append(f"{folder / 'plan.json'}: not a list of cells")
        plan = []
    return Evidence(
        folder,
        rows,
        certificates=_by_key(folder / "certificates", "*.json", "setting", problems),
        cards=_by_key(folder / "cards", "task-*.json", "name", problems),
        manifests=_by_key(folder / "manifests", "*.json", "id", problems),
        searches=_by_key(folder / "searches", "*.json", "search", problems),
        plan=plan,
        problems=[problem.replace(f"{folder}/", "") for problem in problems],
        samples=sample_paths(folder),
    )


def _without_duplicates(lines: Iterable[Row]) -> list[Row]:
    seen: dict[tuple[Any, ...], Row] = {}
    for row in lines:
        seen.setdefault(_content(row), row)
    return list(seen.values())


def _content(row: Row) -> tuple[Any, ...]:
    """Equal for rows that are equal in every column."""
    return tuple(map(row.get, COLUMNS))


def _duplicates(store: RecordStore) -> list[str]:
    """Where lines stand that repeat an earlier one in every column."""
    first: dict[tuple[Any, ...], str] = {}
    repeats = []
    reader = LineReader()
    for path in store.files():
        for number, row in reader.rows(path):
            content = _content(row)
            if content in first:
                repeats.append(f"{path}:{number}: repeats {first[content]}; counted once")
            else:
                first[content] = f"{path.name}:{number}"
    return repeats


def _place(row: Row) -> tuple[Any, ...] | None:
    """What names one value of one run; None for a row without a value."""
    if row["status"] != Status.OK:
        return None
    return tuple(map(row.get, ("run_key", "setting", "metric", "baseline", "phase", "split", "replicate")))


def _contradictions(store: RecordStore, rows: Iterable[Row]) -> list[str]:
    """Lines that give a run another value than an earlier line does; of such, the newest is shown."""
    counts = Counter(place for row in rows if (place := _place(row)) is not None)
    twice = {place for place, count in counts.items() if count > 1}
    if not twice:
        return []
    first: dict[tuple[Any, ...], tuple[str, Any]] = {}
    found, reader = [], LineReader()
    for path in store.files():
        for number, row in reader.rows(path):
            place = _place(row)
            if place is None or place not in twice:
                continue
            where, value = first.setdefault(place, (f"{path.name}:{number}", row["value"]))
            if where != f"{path.name}:{number}" and value != row["value"]:
                said = f"{row['metric']} of run {row['run_key']} is {row['value']}, and {value} in {where}"
                found.append(f"{path}:{number}: {said}; the newest is shown")
    return found


def _strangers(rows: Sequence[Row]) -> list[str]:
    """Rows of another protocol or machine than most of the folder: they stand in sections of their own."""
    found = []
    for column in ("protocol", "hardware"):
        counts = Counter(row[column] for row in rows if row.get(column) is not None)
        for name, count in counts.most_common()[1:]:
            found.append(f"{count} of {len(rows)} lines are of {column} {name}, most of {counts.most_common(1)[0][0]}")
    return found


def _read_json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}")
        return None


def _by_key(folder: Path, pattern: str, key: str, problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """JSON objects of a folder by their ``key``, else by the file's stem."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob(pattern)):
        before = len(problems)
        content = _read_json(path, problems)
        if len(problems) > before:
            continue
        if not isinstance(content, dict) or not _FORMS[key](content):
            problems.append(f"{path}: not of the form of a file there; left out")
            continue
        found[str(content.get(key, path.stem.removeprefix("task-")))] = content
    return found


def _is_card(content: Mapping[str, Any]) -> bool:
    metrics = content.get("metrics", [])
    return isinstance(metrics, list) and all(
        isinstance(m, dict) and {"name", "higher_is_better"} <= m.keys() for m in metrics
    )


def _is_certificate(content: Mapping[str, Any]) -> bool:
    parts = content.get("patterns", {})
    return isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values())


def _is_search(content: Mapping[str, Any]) -> bool:
    return {"chosen_run_key", "metric"} <= content.keys() and all(
        isinstance(content.get(key), kind) for key, kind in (("space", dict), ("runs", list))
    )


# By the key that names a file's content, whether it is what a report reads.
_FORMS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "setting": _is_certificate,
    "name": _is_card,
    "id": lambda content: True,
    "search": _is_search,
}


@dataclass(frozen=True)
class Section:
    """Rows that may share a table: equal in every column of ``GROUP`` (a row's None agrees with any value)."""

    key: tuple[Any, ...]
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """The group in words, such as ``cpu, float32, 2 threads, size tiny``."""
        _, _, device, dtype, threads, size = self.key
        parts = [device, dtype, threads and f"{threads} thread{'s' if threads != 1 else ''}", size and f"size {size}"]
        return ", ".join(str(part) for part in parts if part) or "all records"


def sections(rows: Iterable[Row]) -> list[Section]:
    """The groups of ``rows``, the one with most rows first; of repeated measurements the newest only.

    Runs that were scored on validation data chose between settings; they are no results, and in no group.
    """
    rows = newest(row for row in rows if on_test_data(row))
    groups = list(map(_group, rows))
    keys = Counter(groups)
    wholes = [key for key in keys if not any(other != key and _agrees(key, other) for other in keys)]
    members: dict[tuple[Any, ...], list[Row]] = {whole: [] for whole in wholes}
    homes = {key: [whole for whole in wholes if _agrees(key, whole)] for key in keys}
    for row, group in zip(rows, groups, strict=True):
        for whole in homes[group]:
            members[whole].append(row)
    ordered = sorted(wholes, key=lambda key: (-len(members[key]), repr(key)))
    return [Section(key, members[key]) for key in ordered]


def _group(row: Row) -> tuple[Any, ...]:
    """The row's values of ``GROUP``; a floor is the same on every machine, so it goes with every group of its size."""
    if str(row.get("setting")).startswith("floor"):
        return tuple(row.get(column) if column in ("protocol", "size") else None for column in GROUP)
    return tuple(map(row.get, GROUP))


def _agrees(part: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    return all(a is None or a == b for a, b in zip(part, whole, strict=True))


def newest(rows: Iterable[Row]) -> list[Row]:
    """One row per measurement. A cell shows runs of one run key's age: the newest of each seed and replicate.

    A retried status (``error``) gives way to any other of the same run key, however old.
    """
    best: dict[tuple[tuple[Any, ...], str], tuple[tuple[Any, ...], Row]] = {}
    latest: dict[tuple[Any, ...], tuple[str, str]] = {}
    for row in rows:
        run = (tuple(map(row.get, _IDENTITY)), row["run_key"])
        rank = (row["status"] not in RETRIED, row.get("started_at") or "")
        if run not in best or rank >= best[run][0]:
            best[run] = (rank, row)
    kept: dict[tuple[Any, ...], Row] = {}
    for (key, _), (_, row) in best.items():
        age = (row.get("started_at") or "", row["run_key"])
        if key not in kept or age >= latest[key]:
            kept[key], latest[key] = row, age
    return list(kept.values())


def on_test_data(row: Row) -> bool:
    """Whether a row may stand in a table: a score on test data, or what has no split (costs)."""
    return row.get("split") in (None, "test")


def is_ok(row: Row) -> bool:
    return bool(row["status"] == Status.OK and row.get("value") is not None)
