"""The page of a drop-in study: what is left of a trained model with another attention in it, and what that saves.

From records, their side files and ``study.json``, which says which setting is which rung. A row is a setting; values
with exact attention stand in the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cab.records import RecordStore, Status
from cab.report.evidence import Evidence
from cab.report.imported import plain_table
from cab.report.numbers import with_interval
from cab.report.study_figures import Curve, SpectrumFigure, StudyFigure, StudyPoint
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.intervals import Interval, interval_over_units, paired_difference, ratio_interval, without_spread

PLAN = "study.json"
PUBLISHED = "smyrf2020-results.csv"
NOT_RUN = "not run"
ABOUT = (
    "Each model is trained with exact attention, or comes trained; then another attention takes the place of it, and "
    "nothing is trained again unless the column says so. SMYRF (Daras et al., NeurIPS 2020, arXiv:2010.05315) claims "
    "that this keeps quality at half of the memory."
)


@dataclass(frozen=True)
class StudyCell:
    """One setting at one task of a study. ``source`` is the task's setting without the drop-in."""

    task: str
    source: str
    pattern: str
    length: int
    heads: int
    head_dim: int
    attention: str
    setting: str
    budget: float | None

    @property
    def place(self) -> tuple[str, str]:
        return self.source, self.pattern


@dataclass(frozen=True)
class Study:
    """What the page shows."""

    tables: tuple[Table, ...]
    figures: tuple[StudyFigure | SpectrumFigure, ...]
    published: Table


@dataclass(frozen=True)
class _Scored:
    """A run's primary metric: its units, averaged over seeds, and the values of its means."""

    values: np.ndarray
    weights: np.ndarray | None


def build_study(evidence: Evidence) -> Study | None:
    """None where the folder holds none."""
    path = evidence.folder / PLAN
    if not path.exists():
        return None
    cells = [StudyCell(**entry) for entry in json.loads(path.read_text())]
    reader = _Reader(evidence)
    tables: list[Table] = []
    figures: list[StudyFigure | SpectrumFigure] = []
    for number, place in enumerate(dict.fromkeys(cell.place for cell in cells)):
        own = [cell for cell in cells if cell.place == place]
        tables.append(_table(reader, own, f"study-{number}"))
        figures += _figures(reader, own, number)
    published = plain_table(PUBLISHED, "SMYRF, as published", "Data, model", ("data", "model"), ("metric",))
    return Study(tuple(tables), tuple(figures), published)


class _Reader:
    """Finds in the records what belongs to a cell of the study."""

    def __init__(self, evidence: Evidence) -> None:
        self.store = RecordStore(evidence.folder)
        self.cards = evidence.cards
        self._runs: dict[tuple[str, str, str, int], dict[int, dict[str, Any]]] = {}
        self._failed: dict[tuple[str, str, str, int], str] = {}
        self._figures: dict[tuple[str, str, str, str], list[float]] = {}
        self._costs: dict[tuple[Any, ...], list[float]] = {}
        for row in evidence.rows:
            if row.get("level") == "op":
                key = tuple(map(row.get, ("pattern", "length_q", "heads", "head_dim", "setting", "metric", "baseline")))
                if row["status"] == Status.OK:
                    self._costs.setdefault(key, []).append(float(row["value"]))
            elif row.get("task") and row.get("seed") is not None and "dropin=" in str(row.get("task_setting")):
                self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        source, steps = _source(str(row["task_setting"]))
        place = (source, str(row["pattern"]), str(row["setting"]))
        primary = self.metric(str(row["task"]))["name"]
        if row["status"] != Status.OK:
            self._failed[(*place, steps)] = str(row.get("reason"))
        elif row.get("phase") == "fidelity":
            self._figures.setdefault((*place, str(row["metric"])), []).append(float(row["value"]))
        elif row.get("phase") == "evaluate" and row["metric"] == primary:
            self._runs.setdefault((*place, steps), {})[int(row["seed"])] = dict(row)

    def metric(self, task: str) -> Mapping[str, Any]:
        """The primary metric of a task's card."""
        metrics = self.cards.get(task, {}).get("metrics") or [{"name": "", "unit": "", "higher_is_better": True}]
        return metrics[0]

    def scored(self, cell: StudyCell, steps: int, *, exact: bool = False) -> _Scored | None:
        """The units of a cell's runs, averaged over seeds; ``exact``: with exact attention again."""
        runs = self._runs.get((*cell.place, cell.setting, steps), {})
        name, prefix = self.metric(cell.task)["name"], "exact/" if exact else ""
        found = [self.store.read_units(str(run["run_key"])) for run in runs.values()]
        found = [units for units in found if f"{prefix}values/{name}" in units]
        if not found:
            return None
        values = np.mean([units[f"{prefix}values/{name}"] for units in found], axis=0)
        return _Scored(values, found[0].get(f"{prefix}weights/{name}"))

    def reason(self, cell: StudyCell, steps: int) -> str:
        return self._failed.get((*cell.place, cell.setting, steps), NOT_RUN)

    def steps(self, cells: Sequence[StudyCell]) -> list[int]:
        """The numbers of fine-tuning steps that any of the cells has a run of."""
        places = {cell.place for cell in cells}
        return sorted({key[3] for key in (*self._runs, *self._failed) if key[:2] in places})

    def figure(self, cell: StudyCell, metric: str) -> float | None:
        values = self._figures.get((*cell.place, cell.setting, metric))
        return None if values is None else float(np.mean(values))

    def spectrum(self, cells: Sequence[StudyCell]) -> np.ndarray | None:
        """Of the exact setting's run without fine-tuning: singular values by layer."""
        for cell in cells:
            for run in self._runs.get((*cell.place, cell.setting, 0), {}).values():
                units = self.store.read_units(str(run["run_key"]))
                if "fidelity/singular_values" in units:
                    return units["fidelity/singular_values"]
        return None

    def memory(self, cell: StudyCell, exact: str) -> float | None:
        """Peak extra bytes of the core at the task's shape, relative to the exact setting's."""
        own, dense = (self._cost(cell, name, "peak_extra_bytes", None) for name in (cell.setting, exact))
        return None if not own or not dense else float(np.median(own) / np.median(dense))

    def time(self, cell: StudyCell, exact: str) -> Interval | None:
        """Paired ratio to the exact setting."""
        ratios = self._cost(cell, cell.setting, "ratio", exact)
        return ratio_interval(ratios) if ratios else None

    def _cost(self, cell: StudyCell, setting: str, metric: str, baseline: str | None) -> list[float]:
        key = (cell.pattern, cell.length, cell.heads, cell.head_dim, setting, metric, baseline)
        return self._costs.get(key, [])


def _source(task_setting: str) -> tuple[str, int]:
    """The name of a task's setting without the drop-in's options, and the steps of fine-tuning."""
    name, _, inside = task_setting.partition("[")
    parts = inside.removesuffix("]").split(",") if inside else []
    kept = [part for part in parts if not part.startswith(("dropin=", "finetune="))]
    steps = re.search(r"\bfinetune=(\d+)", task_setting)
    return name + (f"[{','.join(kept)}]" if kept else ""), int(steps[1]) if steps else 0


def _exact(cells: Sequence[StudyCell]) -> StudyCell:
    """The one that all are compared with: the first of the plan, which is the experiment's ``dropin``."""
    return cells[0]


def _interval(scored: _Scored, metric: Mapping[str, Any]) -> Interval:
    found = interval_over_units(scored.values, scored.weights, metric.get("aggregate", "mean"))
    return without_spread(found, 0.0, 1.0) if _is_share(scored) else found


def _is_share(scored: _Scored) -> bool:
    """Of right answers, say: then equal units do not say that the mean is theirs exactly."""
    return bool(np.isin(scored.values, (0.0, 1.0)).all())


def _table(reader: _Reader, cells: Sequence[StudyCell], anchor: str) -> Table:
    exact, metric = _exact(cells), reader.metric(cells[0].task)
    arrow = "↑" if metric["higher_is_better"] else "↓"
    tuned = [steps for steps in reader.steps(cells) if steps]
    columns = [
        Column("Budget", "weights, share of dense", "attention weights per query that are kept, nominal"),
        Column(metric["name"], f"{metric['unit']} {arrow}", "± half of a 95 % interval over test examples"),
        Column("Difference", "from exact attention", "paired over the same test examples"),
        Column("Memory", "of exact attention's", "measured peak of the core at this shape, batch 1"),
        Column("Time", "of exact attention's", "paired, of the core at this shape, batch 1"),
        Column("Output error", "mean of layers", "|o - o_dense| / |o_dense| on the trained model's q, k, v"),
        Column("Mass", "mean of layers", "dense attention's weight on the pairs that the mechanism sees"),
    ]
    for steps in tuned:
        columns.append(Column(f"After {steps} steps", f"{metric['unit']} {arrow}", "fine-tuned with the mechanism"))
        columns.append(Column("Exact again", f"after {steps} steps", "the same weights with exact attention"))
    rows = [Row(Cell(cell.setting, cell.setting), tuple(_cells(reader, cell, exact, tuned))) for cell in cells]
    caption = f"{cells[0].source} ({cells[0].pattern}): {cells[0].length} tokens, {cells[0].heads} heads"
    remark = "Settings are certified by their mechanism's conformance tests, as its YAML says, not at every rung."
    return Table(anchor, caption, "Setting", tuple(columns), tuple(rows), (), (remark,))


def _cells(reader: _Reader, cell: StudyCell, exact: StudyCell, tuned: Sequence[int]) -> Iterator[Cell]:
    metric = reader.metric(cell.task)
    yield BLANK if cell.budget is None else Cell(f"{cell.budget:.1%}", cell.budget)
    scored, dense = reader.scored(cell, 0), reader.scored(exact, 0)
    yield _value(scored, metric, reader.reason(cell, 0))
    yield _difference(scored, dense, metric, cell, exact)
    memory, time = reader.memory(cell, exact.setting), reader.time(cell, exact.setting)
    yield Cell("–", kind="gap", note="not measured") if memory is None else Cell(f"{memory:.2f}", memory)
    yield Cell("–", kind="gap", note="not measured") if time is None else _shown(time)
    for name in ("output_error", "captured_mass"):
        figure = reader.figure(cell, name)
        yield Cell("–", kind="gap", note="no meaning here, or not run") if figure is None else _plain(figure)
    for steps in tuned:
        for again in (False, True):
            yield _value(reader.scored(cell, steps, exact=again), metric, reader.reason(cell, steps))


def _plain(value: float) -> Cell:
    return Cell(f"{value:.3f}" if value >= 5e-4 or value == 0 else f"{value:.0e}", value)


def _shown(interval: Interval) -> Cell:
    return Cell(with_interval(interval.value, interval.half_width), interval.value)


def _value(scored: _Scored | None, metric: Mapping[str, Any], reason: str) -> Cell:
    return Cell("–", kind="gap", note=reason) if scored is None else _shown(_interval(scored, metric))


def _difference(
    scored: _Scored | None, dense: _Scored | None, metric: Mapping[str, Any], cell: StudyCell, exact: StudyCell
) -> Cell:
    if scored is None or dense is None or cell == exact:
        return BLANK
    found = paired_difference(scored.values, dense.values, dense.weights, metric.get("aggregate", "mean"))
    shares = _is_share(scored) and _is_share(dense)
    return _shown(without_spread(found, -1.0, 1.0) if shares else found)


def _figures(reader: _Reader, cells: Sequence[StudyCell], number: int) -> Iterator[StudyFigure | SpectrumFigure]:
    exact, metric = _exact(cells), reader.metric(cells[0].task)
    curves: dict[str, list[StudyPoint]] = {}
    for cell in cells:
        scored = reader.scored(cell, 0)
        memory, time = reader.memory(cell, exact.setting), reader.time(cell, exact.setting)
        if scored is None or memory is None or time is None:
            continue
        quality = _interval(scored, metric)
        point = StudyPoint(
            cell.budget, memory, time.value, time.low, time.high, quality.value, quality.low, quality.high
        )
        curves.setdefault(cell.attention, []).append(point)
    if len(curves) > 1:
        yield StudyFigure(
            f"study-{number}",
            f"{exact.source}: {exact.length} tokens, without training again",
            f"{metric['name']} [{metric['unit']}]",
            bool(metric["higher_is_better"]),
            tuple(dict.fromkeys(cell.attention for cell in cells)),
            tuple(Curve(name, tuple(points)) for name, points in curves.items()),
        )
    spectrum = reader.spectrum(cells)
    if spectrum is not None:
        layers = tuple(tuple(float(value) for value in layer) for layer in spectrum)
        title = f"{exact.source}: singular values of the attention matrices"
        yield SpectrumFigure(f"spectrum-{number}", title, layers)


def study_markdown(study: Study, folder: Path, names: Sequence[str]) -> Iterator[str]:
    """``dropin.md``; ``names`` are the figures that are drawn."""
    from cab.report.markdown import titled

    yield from (f"# Drop-in attention: `{folder.parent.name}` on `{folder.name}`", "")
    yield from (ABOUT, "")
    yield from ("Intervals are over test examples; runs of several seeds are averaged per example.", "")
    for number, table in enumerate(study.tables):
        yield from titled(table, "##")
        shown = [f"![{name}](figures/{name}.png)" for name in names if name.endswith(f"-{number}")]
        yield from (" ".join(shown), "") if shown else ()
    yield from titled(study.published, "##", "Imported, other models and data; never ranked with the rows above.")
