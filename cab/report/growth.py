"""The growth of costs with the length: fitted exponents of time and memory beside what the card claims."""

from __future__ import annotations

from collections.abc import Sequence

from cab.report import numbers
from cab.report.cells import CellMaker
from cab.report.certificates import card, verdict
from cab.report.cost import Costs, Length
from cab.report.patterns import PatternText
from cab.report.tables import Cell, Column, Row, Table
from cab.stats.growth import claimed_exponent, growth_exponent

LAST = 3  # lengths of a fit: the end of the grid, where constant costs weigh least
TOLERANCE = 0.1  # an exponent may be this much above the claimed one
KINDS = (("Time", "time_s", "time_order"), ("Memory", "peak_extra_bytes", "memory_order"))


def growth_table(make: CellMaker, costs: Costs, pattern: PatternText, anchor: str) -> Table | None:
    """Exponents over the last three lengths with as many keys as queries; None where there are fewer."""
    lengths = [length for length in costs.lengths(pattern.name) if length[0] == length[1]][-LAST:]
    if len(lengths) < LAST:
        return None
    known = make.evidence.certificates
    settings = [name for name in costs.settings(pattern.name) if verdict(known, name, pattern.name).admitted]
    rows = []
    for name in settings:
        about = card(known, name)
        cells: list[Cell] = []
        for _, metric, order in KINDS:
            claim = str(about.get(order) or "")
            cells += [_claimed(claim, lengths), _fitted(make, costs, name, pattern, lengths, metric, claim)]
        rows.append(Row(Cell(name, name), tuple(cells)))
    columns = []
    for title, _, _ in KINDS:
        columns.append(Column(f"{title} claimed", "order: exponent", "of the card's order over these lengths"))
        columns.append(Column(f"{title} measured", "exponent", "slope of log cost on log length"))
    first, last = numbers.length(*lengths[0]), numbers.length(*lengths[-1])
    title = f"{pattern.title} ({pattern.short}): growth from {first} to {last}, {costs.variant.title}"
    remark = (
        "Slope of log cost on log length over the last three lengths, interval over processes; the claimed order's own "
        f"slope beside it. ▲: more than {TOLERANCE} above the claim, interval included."
    )
    return Table(anchor, title, "Setting", tuple(columns), tuple(rows), (), (remark,)) if rows else None


def _claimed(order: str, lengths: Sequence[Length]) -> Cell:
    if not order:
        return Cell("not claimed", kind="gap", note="the certificate names no order")
    exponent = claimed_exponent(order, [length for length, _ in lengths])
    return Cell(f"{order}: {exponent:.2f}", exponent)


def _fitted(
    make: CellMaker,
    costs: Costs,
    setting: str,
    pattern: PatternText,
    lengths: Sequence[Length],
    metric: str,
    order: str,
) -> Cell:
    measured = [costs.median(setting, pattern.name, length, metric) for length in lengths]
    found = [cost for cost in measured if cost is not None]
    if len(found) < len(lengths):
        gap = next(length for length, cost in zip(lengths, measured, strict=True) if cost is None)
        return make.cost_cell(costs, setting, pattern.name, gap, metric)
    if any(float(row["value"]) <= 0 for cost in found for row in cost.rows):
        return Cell("none", kind="gap", note="nothing was counted, so that nothing grows")
    sizes = [length for length, _ in lengths]
    fit = growth_exponent(sizes, [[float(row["value"]) for row in cost.rows] for cost in found])
    least = fit.value if fit.low is None else fit.low
    above = bool(order) and least > claimed_exponent(order, sizes) + TOLERANCE
    text = numbers.with_interval(fit.value, fit.half_width) if fit.half_width else f"{fit.value:.2f}"
    values = ", ".join(
        f"{numbers.length(*length)}: {numbers.plain(cost.value)}" for length, cost in zip(lengths, found, strict=True)
    )
    return Cell(f"{text} ▲" if above else text, fit.value, details=(("medians", values),))
