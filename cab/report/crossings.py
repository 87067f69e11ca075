"""Efficiency lengths of time and memory against every baseline, measured and, where asked for, by CAB's own fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from cab.errors import unknown
from cab.report import numbers
from cab.report.cells import crossing_text
from cab.report.certificates import verdict
from cab.report.cost import Costs
from cab.report.evidence import Evidence
from cab.report.patterns import PatternText
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.efficiency_length import fit_cab2023

Fit = Literal["measured", "cab2023"]
Kind = Literal["time", "memory"]
UNFUSED = "softmax"  # CAB's own baseline: its weights are materialised
FEWEST = 4  # lengths that CAB's fit needs


def fit_named(name: str) -> Fit:
    """A fit by its name; :class:`~cab.errors.UserError` for another one."""
    for fit in get_args(Fit):
        if name == fit:
            return fit
    raise unknown("fit", name, get_args(Fit))


def fit_recorded(evidence: Evidence) -> Fit:
    """The fit that the newest command of a folder asked for; ``measured`` where none says."""
    for name in sorted(evidence.manifests, reverse=True):
        config = evidence.manifests[name].get("config") or {}
        if config.get("fit") in get_args(Fit):
            found: Fit = config["fit"]
            return found
    return "measured"


def crossing_table(costs: Costs, evidence: Evidence, pattern: PatternText, anchor: str, fit: Fit) -> Table | None:
    """A row per setting with two lengths or more; None where there is none."""
    baselines = costs.baselines(pattern.name)
    known = evidence.certificates
    settings = [name for name in costs.settings(pattern.name) if verdict(known, name, pattern.name).admitted]
    columns = []
    for baseline in baselines:
        columns += [
            Column("Faster from", f"÷ {baseline}", f"length from which the time ratio to {baseline} stays below 1"),
            Column("Less memory from", f"÷ {baseline}", f"length from which it takes less memory than {baseline}"),
        ]
    against = UNFUSED if UNFUSED in {*baselines, *costs.settings(pattern.name)} else costs.baseline
    if fit == "cab2023":
        columns += [
            Column("CAB's fit, time", f"÷ {against}", "larger root of quadratic minus line, as CAB (2023) fitted it"),
            Column("CAB's fit, memory", f"÷ {against}", "the same of peak memory"),
        ]
    rows = []
    for name in settings:
        cells: list[Cell] = []
        for baseline in baselines:
            cells += [measured_cell(costs, name, baseline, pattern, kind) for kind in get_args(Kind)]
        if fit == "cab2023":
            cells += [fitted_cell(costs, name, against, pattern, kind) for kind in get_args(Kind)]
        if any(cell is not BLANK for cell in cells):
            rows.append(Row(Cell(name, name), tuple(cells)))
    remarks = ["Measured: where the ratio crosses 1 between two lengths; memory is counted and does not scatter."]
    if fit == "cab2023":
        remarks.append("CAB's fit extrapolates, and its residuals can be large: R² of both fits is behind each cell.")
    title = f"{pattern.title} ({pattern.short}): efficiency lengths, {costs.variant.title}"
    return Table(anchor, title, "Setting", tuple(columns), tuple(rows), (), tuple(remarks)) if rows else None


def measured_cell(costs: Costs, setting: str, baseline: str, pattern: PatternText, kind: Kind) -> Cell:
    """The measured efficiency length against a baseline; blank without two lengths at which both were measured."""
    find = {"time": costs.crossing, "memory": costs.memory_crossing}[kind]
    found = find(setting, pattern.name, baseline)
    return BLANK if found is None else crossing_text(found)


def fitted_cell(costs: Costs, setting: str, baseline: str, pattern: PatternText, kind: Kind) -> Cell:
    """The efficiency length by CAB's own fit, with its quality behind it."""
    if setting == baseline:
        return BLANK
    metric = {"time": "time_s", "memory": "peak_extra_bytes"}[kind]
    points: list[tuple[int, float, float]] = []
    for length in costs.lengths(pattern.name):
        both = [costs.median(name, pattern.name, length, metric) for name in (baseline, setting)]
        if length[0] == length[1] and both[0] is not None and both[1] is not None:
            points.append((length[1], both[0].value, both[1].value))
    if len(points) < FEWEST:
        return Cell("–", kind="gap", note=f"CAB's fit needs {FEWEST} lengths at which both were measured")
    lengths: Sequence[int]
    lengths, exact, efficient = zip(*points, strict=True)
    made = fit_cab2023(lengths, exact, efficient, kind)
    quality = f"R² {made.r_squared_vanilla:.3f} of {baseline}, {made.r_squared_efficient:.3f} of {setting}"
    details = (("fit", quality), ("roots", ", ".join(numbers.plain(root, 4) for root in made.roots) or "none"))
    if made.efficiency_length is None:
        return Cell("none", kind="gap", note="the two fitted curves do not cross", details=details)
    return Cell(f"{made.efficiency_length:,}", float(made.efficiency_length), details=details)
