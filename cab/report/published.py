"""CAB's published efficiency lengths beside those measured here, and what CAB's own raw data show.

Published figures are never ranked with measured ones; they stand in columns of their own, with their source.

Source: J. Zhang et al., "CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling", ICML 2023,
arXiv:2210.07661, section 5 (noncausal self attention against vanilla attention, on a GPU); raw costs: CAB's repository.
"""

from __future__ import annotations

from typing import get_args

from cab.report.cells import crossing_text
from cab.report.certificates import verdict
from cab.report.cost import Costs
from cab.report.crossings import UNFUSED, Kind, fitted_cell, measured_cell
from cab.report.evidence import Evidence
from cab.report.patterns import PATTERNS
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.efficiency_length import efficiency_length, fit_cab2023
from cab.stats.published import published_rows

LENGTHS_FILE = "cab2023-efficiency-lengths.csv"
RAW_FILE = "cab2023-efficiency-raw.csv"
VANILLA = "vanilla"
NONCAUSAL_SELF = next(pattern for pattern in PATTERNS if pattern.short == "NS")
TITLES = {"time": "Time", "memory": "Memory"}


def published_table(evidence: Evidence, costs: Costs, anchor: str) -> Table | None:
    """A row per mechanism that CAB published and per setting of it here; None where this variant has none."""
    pattern = NONCAUSAL_SELF
    if costs.variant.level != "layer":
        return None
    mechanisms = {str(row.get("setting")): str(row.get("attention")) for row in evidence.rows}
    measured = [name for name in costs.settings(pattern.name) if name in mechanisms]
    admitted = [name for name in measured if verdict(evidence.certificates, name, pattern.name).admitted]
    baselines = [UNFUSED, *(name for name in costs.baselines(pattern.name) if name != UNFUSED)]
    columns: list[Column] = []
    for kind in get_args(Kind):
        columns += [
            Column(f"{TITLES[kind]}: CAB printed", "tokens, ÷ vanilla", "the efficiency length in CAB's paper"),
            Column(f"{TITLES[kind]}: CAB's fit here", f"tokens, ÷ {UNFUSED}", "CAB's own fit of our costs"),
            *(
                Column(f"{TITLES[kind]}: measured here", f"tokens, ÷ {name}", "where the measured ratio crosses 1")
                for name in baselines
            ),
        ]
    rows = []
    for entry in published_rows(LENGTHS_FILE):
        settings = [name for name in admitted if mechanisms[name] == entry["attention"]]
        for setting in settings:
            cells: list[Cell] = []
            for kind in get_args(Kind):
                printed = int(entry[kind])
                cells.append(Cell(f"{printed:,}", float(printed), details=(("source", entry["source"]),)))
                cells.append(fitted_cell(costs, setting, UNFUSED, pattern, kind))
                cells += [measured_cell(costs, setting, name, pattern, kind) for name in baselines]
            rows.append(Row(Cell(f"{entry['printed_name']} ({setting})", entry["printed_name"]), tuple(cells)))
    if not rows:
        return None
    title = f"{pattern.title} ({pattern.short}): CAB's published efficiency lengths and ours, {costs.variant.title}"
    remarks = (
        "The length from which a mechanism costs less than exact attention. Printed: CAB (ICML 2023), on a GPU, "
        f"against attention that materialises its weights; here that is `{UNFUSED}`. Device, code and clock are "
        "others, so equal figures are not expected; what carries over is the method, and the order of the mechanisms.",
    )
    return Table(anchor, title, "CAB's name (setting here)", tuple(columns), tuple(rows), (), remarks)


def raw_table(anchor: str) -> Table:
    """CAB's raw costs, for the mechanisms for which its repository ships them: the fit, its residuals, the points."""
    raw: dict[tuple[str, str], dict[int, float]] = {}
    for row in published_rows(RAW_FILE):
        raw.setdefault((row["attention"], row["cost"]), {})[int(row["length"])] = float(row["value"])
    printed = {
        (row["printed_name"], kind): row[kind] for row in published_rows(LENGTHS_FILE) for kind in get_args(Kind)
    }
    rows = []
    for (name, cost), values in raw.items():
        if name == VANILLA:
            continue
        kind: Kind = next(kind for kind in get_args(Kind) if kind == cost)
        lengths, vanilla = list(values), [raw[VANILLA, cost][length] for length in values]
        fit = fit_cab2023(lengths, vanilla, list(values.values()), kind)
        points = efficiency_length(lengths, [[a / b] for a, b in zip(values.values(), vanilla, strict=True)])
        cells = (
            Cell(f"{int(printed[name, cost]):,}", float(printed[name, cost])) if (name, cost) in printed else BLANK,
            BLANK
            if fit.efficiency_length is None
            else Cell(f"{fit.efficiency_length:,}", float(fit.efficiency_length)),
            Cell(", ".join(f"{root:,.0f}" for root in fit.roots) or "none"),
            Cell(f"{fit.r_squared_vanilla:.4f}", fit.r_squared_vanilla),
            Cell(f"{fit.r_squared_efficient:.4f}", fit.r_squared_efficient),
            _worst(lengths, vanilla, fit.residuals_vanilla),
            _worst(lengths, list(values.values()), fit.residuals_efficient),
            crossing_text(points),
        )
        rows.append(Row(Cell(f"{name}, {cost}", f"{name} {cost}"), cells))
    columns = (
        Column("CAB printed", "tokens"),
        Column("CAB's fit", "tokens", "made again here from the raw costs"),
        Column("Where the fits cross", "tokens", "both roots; CAB prints the larger"),
        Column("R² of the parabola", "", "of the fit of vanilla attention's costs"),
        Column("R² of the line", "", "of the fit of the mechanism's costs"),
        Column("Worst residual, parabola", "of the cost", "measured less fitted, over what was measured"),
        Column("Worst residual, line", "of the cost", "measured less fitted, over what was measured"),
        Column("Where the points cross", "tokens", "ratio 1, linear between neighbours in the logarithms"),
    )
    remark = (
        f"From `results/published/{RAW_FILE}`, the raw costs that CAB's repository ships; it has those of one "
        "mechanism. A parabola through points that are bound by kernel launches at short lengths crosses late."
    )
    return Table(anchor, "CAB's fit on CAB's own raw data", "Raw data of", columns, tuple(rows), (), (remark,))


def _worst(lengths: list[int], costs: list[float], residuals: tuple[float, ...]) -> Cell:
    """The largest residual as a share of the measured cost, and where it is; a fit leaves out the first lengths."""
    used = len(residuals)
    shares = [r / cost for r, cost in zip(residuals, costs[-used:], strict=True)]
    worst = max(range(used), key=lambda n: abs(shares[n]))
    return Cell(f"{shares[worst]:+.1%} at {lengths[-used:][worst]:,}", abs(shares[worst]))
